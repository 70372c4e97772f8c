"""Rows of a batch by their numbers, without an index tensor: copying one to a GPU makes the CPU wait."""

from collections.abc import Sequence

import torch
from torch import Tensor


def take_rows(x: Tensor, rows: Sequence[int]) -> Tensor:
    """x[rows], as a view where the rows are a run."""
    first = rows[0] if rows else 0
    run = tuple(rows) == tuple(range(first, first + len(rows)))
    return x[first : first + len(rows)] if run else gather_rows(x, rows)


def gather_rows(x: Tensor, rows: Sequence[int]) -> Tensor:
    """x[rows] as a copy."""
    return torch.cat([x[row : row + 1] for row in rows])
