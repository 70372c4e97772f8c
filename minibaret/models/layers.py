"""The blocks that the UNet and the VAE share, under diffusers' names."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.rows import take_rows


class ResnetBlock(nn.Module):
    """GroupNorm, SiLU, convolution, twice, added to the input; `time_width` is the width of the time embedding added
    between.

    LDM's ResBlock (openaimodel.py; eps 1e-5) and ResnetBlock (model.py; eps 1e-6, no time).
    """

    def __init__(self, width_in: int, width_out: int, groups: int, eps: float, time_width: int | None = None):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, width_in, eps)
        self.conv1 = nn.Conv2d(width_in, width_out, 3, padding=1)
        if time_width is not None:
            self.time_emb_proj = nn.Linear(time_width, width_out)
        self.norm2 = nn.GroupNorm(groups, width_out, eps)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, padding=1)
        if width_in != width_out:
            self.conv_shortcut = nn.Conv2d(width_in, width_out, 1)

    def forward(self, x: Tensor, time: Tensor | None = None, rows: Sequence[int] | None = None) -> Tensor:
        """rows: for each row of the batch, the row whose features it adds to its input; None: its own."""
        h = self.conv1(F.silu(self.norm1(x)))
        if time is not None:
            h = h + self.time_emb_proj(F.silu(time))[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        if rows is not None:
            h = take_rows(h, rows)
        return h + (self.conv_shortcut(x) if hasattr(self, "conv_shortcut") else x)


class Downsample(nn.Module):
    """Halves height and width. The UNet pads on all sides; the VAE (`asymmetric`) on the right and bottom only."""

    def __init__(self, width: int, asymmetric: bool = False):
        super().__init__()
        self.asymmetric = asymmetric
        self.conv = nn.Conv2d(width, width, 3, stride=2, padding=0 if asymmetric else 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.asymmetric else x)


class Upsample(nn.Module):
    """Doubles height and width: nearest neighbour, then a convolution."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
