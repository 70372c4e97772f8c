"""The operator on PyTorch's scaled_dot_product_attention: differentiable, on every device.

Rows that share a source share one call: their values are laid side by side along the head dimension and the shared
queries and keys are padded with zeros to the same width, so QKᵀ and the softmax are computed once and multiply every
row's values.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor, source: Sequence[int] | None = None) -> Tensor:
    """See `minibaret.kernels.attention`."""
    if source is None:
        return _sdpa(q, k, v)
    outputs, order = [], []
    for share, sources, rows in _launches(source):
        values = torch.cat([_take(v, column) for column in zip(*rows)], dim=-1) if share > 1 else _take(v, rows)
        out = _sdpa(_take(q, sources), _take(k, sources), values)
        outputs += out.chunk(share, dim=-1)
        order += [row for column in zip(*rows) for row in column]
    out = torch.cat(outputs)
    position = sorted(range(len(order)), key=order.__getitem__)
    return out if position == list(range(len(order))) else out[position]


def _launches(source: Sequence[int]) -> list[tuple[int, list[int], list[tuple[int, ...]]]]:
    """Sources grouped by how many rows share them: (rows a source, the sources, each source's rows)."""
    sharing: dict[int, list[int]] = {}
    for row, index in enumerate(source):
        sharing.setdefault(index, []).append(row)
    by_share: dict[int, list[int]] = {}
    for index, rows in sharing.items():
        by_share.setdefault(len(rows), []).append(index)
    return [(share, sources, [tuple(sharing[i]) for i in sources]) for share, sources in by_share.items()]


def _take(x: Tensor, rows: Sequence) -> Tensor:
    """x[rows], as a view where the rows are a run."""
    rows = [row[0] if isinstance(row, tuple) else row for row in rows]
    if rows == list(range(rows[0], rows[0] + len(rows))):
        return x[rows[0] : rows[0] + len(rows)]
    return x[rows]


def _sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scale = q.shape[-1] ** -0.5
    if v.shape[-1] != q.shape[-1]:  # unequal head dimensions would fall to SDPA's slow path
        q, k = (F.pad(x, (0, v.shape[-1] - x.shape[-1])) for x in (q, k))
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # [B, H, N, D]
    return F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2)
