"""Which tokens of two prompts are each other's, and the matrices that prompt-to-prompt makes of it."""

import pytest
import torch

from minibaret.methods.alignment import align, mixing, refinement, replacement


@pytest.mark.parametrize(
    ("source", "target", "partners"),
    [
        ("abc", "abc", [0, 1, 2]),
        ("abc", "abxc", [0, 1, None, 2]),  # a word comes in
        ("abxc", "abc", [0, 1, 3]),  # a word goes out
        ("abc", "axc", [0, None, 2]),  # a word is another: a mismatch costs more than two gaps
        ("ab", "cd", [None, None]),
        ("ab", "ba", [1, None]),  # either could pair: the earliest of the target
        ("a", "aa", [0, None]),
        ("aa", "a", [0]),
        ("", "ab", [None, None]),
    ],
)
def test_alignment(source, target, partners):
    assert align(source, target) == partners


def test_replacement_shares_a_words_tokens():
    """Two words: the first has 1 token in the source and 3 in the target, the second 2 and 1."""
    expected = torch.zeros(77, 77)
    expected[0, 0] = 1  # start
    expected[1, 1:4] = 1 / 3
    expected[2:4, 4] = 1
    for token in range(4, 76):  # end and padding, one place on
        expected[token, token + 1] = 1
    assert torch.equal(replacement([1, 2], [3, 1]), expected)
    assert torch.equal(replacement([2, 3], [2, 3]), torch.eye(77))
    fewer = replacement([3], [1])  # the target is shorter: its last padding is nobody's
    assert fewer[1:4, 1].tolist() == [1, 1, 1] and fewer[4, 2] == 1 and fewer[76, 74] == 1 and not fewer[:, 75:].any()
    assert torch.allclose(fewer.sum(1), torch.ones(77))  # no attention is lost


def test_refinement_takes_where_there_is_a_partner():
    taken, own = refinement([9, 1, 2, 8], [9, 1, 5, 2, 8])
    expected = torch.zeros(77, 77)
    for row, column in ((0, 0), (1, 1), (2, 3), (3, 4), *((i, i) for i in range(5, 77))):
        expected[row, column] = 1
    assert torch.equal(taken, expected)
    assert own.nonzero().tolist() == [[2, 2]] and own[2, 2] == 1


def test_prompts_of_equally_many_words_are_replaced_and_others_refined(editor):
    tokenizer = editor.sd.tokenizer
    taken, own = mixing("a brown dog", "a zebra dog", tokenizer)  # zebra: z, e, br, a
    assert own is None and torch.equal(taken, replacement([1, 1, 1], [1, 4, 1]))
    taken, own = mixing("a dog", "a brown dog", tokenizer)
    assert own.nonzero().tolist() == [[2, 2]] and taken[2, 3] == 1 and taken[3, 4] == 1
    taken, own = mixing("", "a dog", tokenizer)  # start and end are all that the two share
    assert own.nonzero().tolist() == [[1, 1], [2, 2]] and taken[0, 0] == 1 and taken[1, 3] == 1
