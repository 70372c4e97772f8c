"""Which token of a source prompt stands for which of a target prompt (prompt-to-prompt, seq_aligner.py), as matrices.

A_source @ matrix is a cross-attention map of the target: rows are the source's 77 tokens, columns the target's.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..models.tokenizer import LENGTH, ClipTokenizer

GAP, MATCH, MISMATCH = 0, 1, -1


def mixing(source: str, target: str, tokenizer: ClipTokenizer) -> tuple[Tensor, Tensor | None]:
    """The edit's map becomes A_source @ first + A_edit @ second; no second where prompts have equally many words."""
    words = source.split(), target.split()
    if len(words[0]) == len(words[1]):
        return replacement(*([len(tokenizer.tokens(word)) for word in prompt] for prompt in words)), None
    return refinement(*(tokenizer(prompt)[: len(tokenizer.tokens(prompt)) + 2] for prompt in (source, target)))


def replacement(source: Sequence[int], target: Sequence[int]) -> Tensor:
    """M (77, 77) for prompts of equally many words: each word takes the place of the one at its position.

    source, target: how many tokens each word has. Words of as many tokens pair them in order; otherwise every token of
    the target's word has an equal share of the attention to the source's word. (The original's M is the identity after
    the last word that changed, which is the same unless the prompts differ in their number of tokens.)
    """
    words = [torch.eye(a) if a == b else torch.full((a, b), 1 / b) for a, b in zip(source, target)]
    return torch.block_diag(torch.eye(1), *words, torch.eye(LENGTH))[:LENGTH, :LENGTH]  # start, words, end and padding


def refinement(source: Sequence[int], target: Sequence[int]) -> tuple[Tensor, Tensor]:
    """P diag(α) and diag(1 − α), (77, 77) each: the target's tokens that have a partner in the source take its column,
    the others keep their own.

    source, target: ids from the start token to the end token. Padding is the partner of padding.
    """
    taken, own = torch.zeros(2, LENGTH, LENGTH)
    for column, row in enumerate([*align(source, target), *range(len(target), LENGTH)]):
        if row is None:
            own[column, column] = 1
        else:
            taken[row, column] = 1
    return taken, own


def align(source: Sequence[int], target: Sequence[int]) -> list[int | None]:
    """For each token of the target the place of its partner in the source, None where it has none: the global alignment
    of highest score (Needleman and Wunsch 1970). Where several are equal, partners are the earliest in the target."""
    scores = [[0] * (len(target) + 1) for _ in range(len(source) + 1)]  # of the best alignment of two beginnings
    for i, a in enumerate(source, 1):
        for j, b in enumerate(target, 1):
            paired = scores[i - 1][j - 1] + (MATCH if a == b else MISMATCH)
            scores[i][j] = max(scores[i][j - 1] + GAP, scores[i - 1][j] + GAP, paired)
    partners: list[int | None] = [None] * len(target)
    i, j = len(source), len(target)
    while i and j:
        if scores[i][j] == scores[i][j - 1] + GAP:
            j -= 1
        elif scores[i][j] == scores[i - 1][j] + GAP:
            i -= 1
        else:
            i, j = i - 1, j - 1
            partners[j] = i
    return partners
