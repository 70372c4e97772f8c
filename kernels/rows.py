"""Rows of a batch by their numbers, without an index tensor: copying one to a GPU makes the CPU wait."""

from collections.abc import Sequence

import torch
from torch import Tensor


def take_rows(x: Tensor, rows: Sequence[int]) -> Tensor:
    """x[rows], as a view where the rows are evenly spaced (or all the same), else as a copy."""
    step = rows[1] - rows[0] if len(rows) > 1 else 1
    if step < 0 or any(b - a != step for a, b in zip(rows, rows[1:])):
        return gather_rows(x, rows)
    first = x[rows[0] : rows[-1] + 1 : step or 1]
    return first if step else first.expand(len(rows), *x.shape[1:])


def gather_rows(x: Tensor, rows: Sequence[int]) -> Tensor:
    """x[rows] as a copy."""
    return torch.cat([x[row : row + 1] for row in rows])
