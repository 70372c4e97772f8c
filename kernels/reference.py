"""The definition of the operator: eager, any float dtype, the whole map in memory. Everything else is measured
against it."""

from collections.abc import Sequence

import torch
from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor, source: Sequence[int] | None = None) -> Tensor:
    """out[b] = softmax(q[source[b]] k[source[b]]ᵀ / √D) v[b]; shapes as in `minibaret.kernels.attention`."""
    scores = torch.einsum("gnhd,gmhd->ghnm", q, k) * q.shape[-1] ** -0.5
    maps = scores.softmax(dim=-1)
    if source is not None:
        maps = maps[list(source)]
    return torch.einsum("bhnm,bmhd->bnhd", maps, v)
