"""The definition of the operator: any float dtype, the maps in memory. Everything else is measured against it."""

from collections.abc import Sequence

import torch
from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor, takes: Sequence[Sequence[tuple[int, int, int]]]) -> Tensor:
    """out[b] = Σ softmax(q[i] k[j]ᵀ / √D) v[l] over takes[b]; shapes as in `minibaret.kernels.attention`."""

    def term(i: int, j: int, row: int) -> Tensor:
        scores = torch.einsum("nhd,mhd->hnm", q[i], k[j]) * q.shape[-1] ** -0.5
        return torch.einsum("hnm,mhd->nhd", scores.softmax(dim=-1), v[row])

    return torch.stack([sum(term(*take) for take in terms) for terms in takes])
