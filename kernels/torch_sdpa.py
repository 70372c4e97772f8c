"""The operator on PyTorch: differentiable, on every device.

Rows that share a source share one QKᵀ and one softmax, in one of two ways. Long sequences, and whatever needs a
gradient, take one call of scaled_dot_product_attention: the values are laid side by side along the head dimension, and
the shared queries and keys are padded with zeros to the same width. Short sequences on a CPU, where that padding costs
more than sharing saves, take a few queries at a time through matrix products, their map small enough for the cache.
"""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

LONG = 2048  # keys from which the fused call wins
MAP_PART = 2**20  # numbers of the map that exist at once


def attention(q: Tensor, k: Tensor, v: Tensor, source: Sequence[int] | None = None) -> Tensor:
    """See `minibaret.kernels.attention`."""
    if source is None:
        return _sdpa(q, k, v)
    needs_gradient = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    short = q.device.type == "cpu" and k.shape[1] < LONG and not needs_gradient
    return (_in_parts if short else _side_by_side)(q, k, v, _rows_by_source(source))


def _side_by_side(q: Tensor, k: Tensor, v: Tensor, rows: dict[int, list[int]]) -> Tensor:
    """One fused call for all sources that as many rows share."""
    pieces: dict[int, Tensor] = {}
    for share in {len(sharing) for sharing in rows.values()}:
        sources = [source for source, sharing in rows.items() if len(sharing) == share]
        columns = list(zip(*(rows[source] for source in sources)))  # the first rows of each source, the second …
        values = [_take(v, column) for column in columns]
        out = _sdpa(_take(q, sources), _take(k, sources), torch.cat(values, dim=-1) if share > 1 else values[0])
        for column, moved in zip(columns, out.chunk(share, dim=-1)):
            pieces |= zip(column, moved.split(1))
    return torch.cat([pieces[row] for row in range(len(v))])


def _in_parts(q: Tensor, k: Tensor, v: Tensor, rows: dict[int, list[int]]) -> Tensor:
    """A fused call for the rows that share with none; for the others matrix products, a part of the queries at a
    time."""
    (length, heads, width), keys = q.shape[1:], k.shape[1]
    out = v.new_empty(len(v), length, heads, width)
    alone = {sharing[0]: source for source, sharing in rows.items() if len(sharing) == 1}
    if alone:
        out[_run(alone)] = _sdpa(_take(q, alone.values()), _take(k, alone.values()), _take(v, alone))
    part = max(16, MAP_PART // (heads * keys))
    for source, sharing in rows.items():
        if len(sharing) == 1:
            continue
        side_by_side = torch.stack([v[row] for row in sharing], dim=2)  # [M, H, rows, D]
        side_by_side = side_by_side.permute(1, 0, 2, 3).reshape(heads, keys, -1)
        queries, keys_across = (q[source] * width**-0.5).transpose(0, 1), k[source].permute(1, 2, 0)
        for begin in range(0, length, part):
            maps = torch.bmm(queries[:, begin : begin + part], keys_across)  # [H, part, M]
            torch.softmax(maps, dim=-1, out=maps)
            moved = torch.bmm(maps, side_by_side).unflatten(-1, (-1, width))  # [H, part, rows, D]
            for row, piece in zip(sharing, moved.unbind(2)):
                out[row, begin : begin + part] = piece.transpose(0, 1)
    return out


def _rows_by_source(source: Sequence[int]) -> dict[int, list[int]]:
    rows: dict[int, list[int]] = {}
    for row, index in enumerate(source):
        rows.setdefault(index, []).append(row)
    return rows


def _take(x: Tensor, rows: Iterable[int]) -> Tensor:
    """x[rows], as a view where the rows are a run."""
    return x[_run(rows)]


def _run(rows: Iterable[int]) -> slice | list[int]:
    """The rows as a slice where they follow one another."""
    rows = list(rows)
    run = range(rows[0], rows[0] + len(rows))
    return slice(run.start, run.stop) if rows == list(run) else rows


def _sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scale = q.shape[-1] ** -0.5
    if v.shape[-1] != q.shape[-1]:  # unequal head dimensions would fall to SDPA's slow path
        q, k = (F.pad(x, (0, v.shape[-1] - x.shape[-1])) for x in (q, k))
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # [B, H, N, D]
    return F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2)
