"""CLIP's tokenizer: splitting, padding, and what happens to texts that are too long."""

import pytest

from minibaret.models.tokenizer import ClipTokenizer, TextTooLong, learn_merges, save_merges

MERGES = learn_merges(["a cat, it's the cat's 12 cats", "a dog's café"], 13)


@pytest.fixture(scope="module")
def tokenizer() -> ClipTokenizer:
    return ClipTokenizer(MERGES)


def test_the_vocabulary_is_bytes_bytes_that_end_words_merges_and_two(tokenizer):
    assert ClipTokenizer([]).size == 514 and ClipTokenizer([]).end == 513
    assert len(MERGES) == 13 and tokenizer.size == 527
    assert (tokenizer.start, tokenizer.end) == (tokenizer.size - 2, tokenizer.size - 1)
    ids = ClipTokenizer([])("!a")[:5]
    assert ids == [512, 256 + 0, 256 + 64, 513, 513]  # both end a word: "!" is the first printable byte, "a" the 65th


def test_texts_are_padded_with_the_end_token_to_77(tokenizer):
    ids = tokenizer("a cat")
    assert len(ids) == 77 and ids[0] == tokenizer.start
    assert ids[3:] == [tokenizer.end] * 74 and tokenizer.end not in ids[:3]
    assert tokenizer("") == [tokenizer.start] + [tokenizer.end] * 76


def test_words_split_at_punctuation_digits_and_contractions(tokenizer):
    pieces = tokenizer.tokens("Cat,  cat's\n12!!")
    words = "".join(pieces).replace("</w>", " ").split()
    assert words == ["cat", ",", "cat", "'s", "1", "2", "!!"]


def test_case_spaces_and_composed_accents_do_not_matter(tokenizer):
    assert tokenizer("A  CAFE\u0301\t") == tokenizer("a caf\u00e9")


def test_a_text_may_have_75_tokens_and_no_more(tokenizer):
    assert tokenizer("a " * 75)[76] == tokenizer.end
    with pytest.raises(TextTooLong, match="76 tokens and at most 75 fit; these words do not: 'dog'"):
        tokenizer("a " * 75 + "dog")


def test_merges_there_and_back(tmp_path, tokenizer):
    merges = learn_merges(["a cat sat on a mat"], 10)
    save_merges(merges, tmp_path / "merges.txt")
    again = ClipTokenizer.from_merges(tmp_path / "merges.txt")
    assert again("the cat sat") == ClipTokenizer(merges)("the cat sat")
