"""What a forward of the UNet is asked to write down of its attention: a `MapRecorder` is handed down to every site, and
the maps are computed beside the attention, for the rows and tokens asked for only."""

from collections.abc import Collection, Sequence

import torch.nn.functional as F
from torch import Tensor

from ..kernels import attention_maps


class MapRecorder:
    """Adds up the maps of one forward's sites, mean of the heads, brought to the grid of the latents."""

    def __init__(
        self,
        rows: Sequence[int],
        tokens: Sequence[int],
        points: Sequence[tuple[int, int]],
        grid: tuple[int, int],
        levels: Collection[int] | None = None,
    ):
        """rows: of the batch; tokens: of the text, whose cross-attention maps are wanted; points: (y, x) on the grid,
        whose self-attention maps are wanted; grid: (h, w) of the latents; levels: of the UNet, 0 the finest, all if
        None."""
        self.rows, self.tokens, self.points, self.grid, self.levels = rows, tokens, points, grid, levels
        self._sums: dict[str, Tensor] = {}
        self._sites: dict[str, int] = {}

    def record_cross(self, q: Tensor, k: Tensor, source: Sequence[int] | None) -> None:
        level = self._level(q.shape[1])
        if self.tokens and self._wanted(level):
            maps = attention_maps(*self._taken(q, k, source), keys=self.tokens)  # [rows, h w, tokens]
            self._add("cross", maps.mT, level)

    def record_self(self, q: Tensor, k: Tensor, source: Sequence[int] | None) -> None:
        level = self._level(q.shape[1])
        if self.points and self._wanted(level):
            width = self.grid[1] >> level
            queries = [(y >> level) * width + (x >> level) for y, x in self.points]
            maps = attention_maps(*self._taken(q, k, source), queries)  # [rows, points, h w]
            self._add("self", maps / 4**level, level)  # a coarse pixel's part is that of the 4^level under it

    @property
    def cross_maps(self) -> Tensor:
        """(rows, tokens, h, w): how much each pixel looks at each token, mean of the sites."""
        return self._sums["cross"] / self._sites["cross"]

    @property
    def self_maps(self) -> Tensor:
        """(rows, points, h, w): how much each point looks at each pixel, mean of the sites."""
        return self._sums["self"] / self._sites["self"]

    def _taken(self, q: Tensor, k: Tensor, source: Sequence[int] | None) -> tuple[Tensor, Tensor]:
        """The queries and keys that the rows' maps come from."""
        rows = [row if source is None else source[row] for row in self.rows]
        return q[rows], k[rows]

    def _level(self, tokens: int) -> int:
        height, width = self.grid
        return next(level for level in range(16) if (height >> level) * (width >> level) == tokens)

    def _wanted(self, level: int) -> bool:
        return self.levels is None or level in self.levels

    def _add(self, kind: str, maps: Tensor, level: int) -> None:
        height, width = self.grid
        maps = maps.unflatten(-1, (height >> level, width >> level))
        maps = F.interpolate(maps, size=self.grid, mode="bilinear", align_corners=False)
        self._sums[kind] = self._sums[kind] + maps if kind in self._sums else maps
        self._sites[kind] = self._sites.get(kind, 0) + 1
