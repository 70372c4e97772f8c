"""The operator on PyTorch: differentiable, on every device.

What takes the same map shares one QKᵀ and one softmax: one call of scaled_dot_product_attention has the values side by
side along the features, and the shared queries and keys padded with zeros to the same width. So the products cost as
much as without sharing, the exponentials a share of it.
"""

from collections.abc import Sequence
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from .rows import take_rows

WIDEST = 256  # features side by side; PyTorch's flash kernels for GPUs take no wider heads


def attention(q: Tensor, k: Tensor, v: Tensor, takes: Sequence[Sequence[tuple[int, int, int]]]) -> Tensor:
    """See `minibaret.kernels.attention`. Calls SDPA once for each number of values that share a map."""
    groups = values_by_map([take for terms in takes for take in terms], max(1, WIDEST // q.shape[-1]))
    products: dict[tuple[int, int, int], Tensor] = {}  # of a map and a row of v: (N, H, D)
    for size in sorted({len(values) for *_, values in groups}):
        q_rows, k_rows, values = zip(*(group for group in groups if len(group[-1]) == size))
        columns = list(zip(*values))  # the first row of v of each map, the second …
        parts = [take_rows(v, column) for column in columns]
        out = _sdpa(take_rows(q, q_rows), take_rows(k, k_rows), torch.cat(parts, -1) if size > 1 else parts[0])
        for column, part in zip(columns, out.split(q.shape[-1], -1)):
            products |= zip(zip(q_rows, k_rows, column), part)
        if size == 1 and takes == tuple((take,) for take in products):  # nothing shared, nothing summed
            return out
    return torch.stack([reduce(torch.add, (products[take] for take in terms)) for terms in takes])


def values_by_map(takes: Sequence[tuple[int, int, int]], most: int) -> list[tuple[int, int, list[int]]]:
    """(row of q, row of k, rows of v) for each map, and again where it multiplies more than `most` rows of v."""
    rows: dict[tuple[int, int], list[int]] = {}
    for q_row, k_row, v_row in dict.fromkeys(takes):
        rows.setdefault((q_row, k_row), []).append(v_row)
    return [(*pair, values[i : i + most]) for pair, values in rows.items() for i in range(0, len(values), most)]


def _sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q: (B, N, H, D), k: (B, M, H, D), v: (B, M, H, at least D); the scores are divided by √D."""
    scale = q.shape[-1] ** -0.5
    if v.shape[-1] != q.shape[-1]:  # unequal head dimensions would fall to SDPA's slow path
        q, k = (F.pad(x, (0, v.shape[-1] - x.shape[-1])) for x in (q, k))
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # [B, H, N, D]
    return F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2)
