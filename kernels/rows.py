"""Rows of a batch by their numbers, without an index tensor: copying one to a GPU makes the CPU wait."""

from collections.abc import Sequence

import torch
from torch import Tensor


def take_rows(x: Tensor, rows: Sequence[int]) -> Tensor:
    """x[rows], as a view where the rows are evenly spaced or all the same, else as a copy."""
    if len(set(rows)) == 1:
        return x[rows[0] : rows[0] + 1].expand(len(rows), *x.shape[1:])
    run = range(rows[0], rows[-1] + 1, max(1, rows[1] - rows[0]))
    if list(rows) == list(run):
        return x[run.start : run.stop : run.step]
    return torch.cat([x[row : row + 1] for row in rows])
