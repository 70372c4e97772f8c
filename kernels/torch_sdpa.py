"""The operator on PyTorch: differentiable, on every device.

Rows that share a source share one QKᵀ and one softmax. One call of scaled_dot_product_attention does that with the
values side by side along the head dimension, and the shared queries and keys padded with zeros to the same width. On a
CPU, where no gradient is wanted, what surrounds that call costs more than sharing saves; so there it is made a head at
a time, its copies small enough for the cache. For short sequences the padding alone costs too much: they take a few
queries at a time through matrix products, with a part of the map that fits the cache.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .rows import take_rows

LONG = 2048  # keys from which the fused call wins
MAP_PART = 2**20  # numbers of the map that exist at once


def attention(q: Tensor, k: Tensor, v: Tensor, source: Sequence[int] | None = None) -> Tensor:
    """See `minibaret.kernels.attention`."""
    if source is None:
        return _sdpa(q, k, v)
    groups = _rows_by_source(source)
    needs_gradient = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    if needs_gradient or q.device.type != "cpu":
        return _side_by_side(q, k, v, groups)
    out = v.new_empty(len(v), *q.shape[1:])
    alone = {rows[0]: index for index, rows in groups.items() if len(rows) == 1}  # row of v: its row of q and k
    if alone:
        sources = list(alone.values())
        moved = _sdpa(take_rows(q, sources), take_rows(k, sources), take_rows(v, list(alone)))
        for row, piece in zip(alone, moved):
            out[row] = piece
    for index, rows in groups.items():
        if len(rows) > 1:
            attend = _by_head if k.shape[1] >= LONG else _in_parts
            attend(q[index], k[index], [v[row] for row in rows], [out[row] for row in rows])
    return out


def _side_by_side(q: Tensor, k: Tensor, v: Tensor, groups: dict[int, list[int]]) -> Tensor:
    """One fused call for each size of group: for all sources that so many rows share."""
    pieces: dict[int, Tensor] = {}
    for size in {len(rows) for rows in groups.values()}:
        sources = [index for index, rows in groups.items() if len(rows) == size]
        columns = list(zip(*(groups[index] for index in sources)))  # the first rows of each source, the second …
        values = [take_rows(v, column) for column in columns]
        out = _sdpa(take_rows(q, sources), take_rows(k, sources), torch.cat(values, dim=-1) if size > 1 else values[0])
        for column, moved in zip(columns, out.chunk(size, dim=-1)):
            pieces |= zip(column, moved.split(1))
    return torch.cat([pieces[row] for row in range(len(v))])


def _by_head(q: Tensor, k: Tensor, values: list[Tensor], out: list[Tensor]) -> None:
    """Fills the rows of `out` (N, H, D) by the fused call, a head at a time. q: (N, H, D); k, values: (M, H, D)."""
    heads, width = q.shape[1:]
    queries = q.new_zeros(1, len(q), 1, len(values) * width)
    keys, side_by_side = k.new_zeros(2, 1, len(k), 1, len(values) * width)
    for head in range(heads):
        queries[0, :, 0, :width], keys[0, :, 0, :width] = q[:, head], k[:, head]
        torch.cat([value[:, head] for value in values], dim=-1, out=side_by_side[0, :, 0])
        moved = _sdpa(queries, keys, side_by_side, scale=width**-0.5)[0, :, 0]
        for row, piece in zip(out, moved.split(width, dim=-1)):
            row[:, head] = piece


def _in_parts(q: Tensor, k: Tensor, values: list[Tensor], out: list[Tensor]) -> None:
    """The same by matrix products, a part of the queries at a time."""
    length, heads, width = q.shape
    queries, keys_across = q.transpose(0, 1), k.permute(1, 2, 0)
    by_head = [value.transpose(0, 1) for value in values]
    part, nothing = max(16, MAP_PART // (heads * len(k))), q.new_empty(())
    for begin in range(0, length, part):
        piece = slice(begin, begin + part)
        maps = torch.baddbmm(nothing, queries[:, piece], keys_across, beta=0, alpha=width**-0.5)  # [H, part, M]
        torch.softmax(maps, dim=-1, out=maps)
        for row, value in zip(out, by_head):
            row[piece] = torch.bmm(maps, value).transpose(0, 1)


def _rows_by_source(source: Sequence[int]) -> dict[int, list[int]]:
    """By row of q and k: the rows of v that take its map."""
    rows: dict[int, list[int]] = {}
    for row, index in enumerate(source):
        rows.setdefault(index, []).append(row)
    return rows


def _sdpa(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
    scale = scale or q.shape[-1] ** -0.5
    if v.shape[-1] != q.shape[-1]:  # unequal head dimensions would fall to SDPA's slow path
        q, k = (F.pad(x, (0, v.shape[-1] - x.shape[-1])) for x in (q, k))
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # [B, H, N, D]
    return F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2)
