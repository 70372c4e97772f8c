"""The definition of the operator: any float dtype, the maps in memory. Everything else is measured against it."""

from collections.abc import Sequence

import torch
from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor, takes: Sequence[Sequence[tuple[int, int, int]]]) -> Tensor:
    """out[b] = Σ softmax(q[i] k[j]ᵀ / √D) v[l] over takes[b]; shapes as in `minibaret.kernels.attention`."""
    rows = [row for row, terms in enumerate(takes) for _ in terms]
    of_q, of_k, of_v = torch.tensor([take for terms in takes for take in terms], device=q.device).T
    scores = torch.einsum("tnhd,tmhd->thnm", q[of_q] * q.shape[-1] ** -0.5, k[of_k])
    terms = torch.einsum("thnm,tmhd->tnhd", scores.softmax(dim=-1), v[of_v])
    return terms.new_zeros(len(takes), *terms.shape[1:]).index_add(0, torch.tensor(rows, device=q.device), terms)
