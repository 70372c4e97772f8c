"""Whose attention maps the rows of a forward take, where they are not their own.

A map is a row's queries and keys, so these are what is shared: within a batch, and from one forward to the next where
the rows of a step run one after another.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..kernels.rows import gather_rows


@dataclass(frozen=True)
class Injection:
    """Row b's attention maps come from row source[b]; None is plain attention. The values are always the row's own.

    first: where the batch is a piece of the rows that the sources speak of, the place of its first row among them. Rows
    run after those that they take their maps from. carry: what the pieces hand on, empty before the first.
    """

    self_source: tuple[int, ...] | None = None
    cross_source: tuple[int, ...] | None = None
    first: int = 0
    carry: "Carry" = field(default_factory=dict, compare=False)

    def shares(self, rows: int) -> tuple["Share | None", "Share | None"]:
        """Of the self- and of the cross-attention, for the `rows` rows from the first."""
        sources = (self.self_source, self.cross_source)
        return tuple(source and Share.of(source, self.first, self.first + rows, self.carry) for source in sources)


NO_INJECTION = Injection()
Carry = dict[nn.Module, tuple[Tensor, Tensor]]  # queries and keys, by the site whose they are


@dataclass(frozen=True)
class Share:
    """How the rows of one forward share queries and keys, at every self- or every cross-attention site. For example
    five rows with source (0, 1, 2, 3, 0), so that the last takes the map of the first:

        all in one forward     project (0, 1, 2, 3)   source (0, 1, 2, 3, 0)   keep ()
        in pieces: rows 0, 1   project (0, 1)         source (0, 1)            keep (0,)
                   rows 2, 3   project (0, 1)         source (1, 2)            keep (0,)
                   row 4       project ()             source (0,)              keep ()

    The maps to choose from are the queries and keys that were carried here, then those projected in this forward.
    """

    project: tuple[int, ...]  # rows of this forward whose own queries and keys are needed
    source: tuple[int, ...]  # for each row of this forward, the place of its map among those to choose from
    keep: tuple[int, ...]  # places of those that later forwards need, to be carried on
    carry: Carry = field(compare=False)

    @classmethod
    def of(cls, source: tuple[int, ...], first: int, end: int, carry: Carry) -> "Share":
        """For rows first … end - 1 of all those that `source` speaks of."""
        taken = sorted(set(source[first:]))  # by these rows and later ones
        maps = [row for row in taken if row < end]
        later = set(source[end:])
        return cls(
            project=tuple(row - first for row in maps if row >= first),
            source=tuple(maps.index(row) for row in source[first:end]),
            keep=tuple(index for index, row in enumerate(maps) if row in later),
            carry=carry,
        )

    def exchange(self, site: nn.Module, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Puts the carried queries and keys before those just projected, and carries on those that are needed later."""
        if site in self.carry:
            q, k = (torch.cat(pair) for pair in zip(self.carry.pop(site), (q, k)))
        if self.keep:
            self.carry[site] = gather_rows(q, self.keep), gather_rows(k, self.keep)
        return q, k
