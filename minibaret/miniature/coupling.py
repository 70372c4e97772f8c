"""Noise that tells the layout of the picture it is added to. An inversion then finds the layout in the noise, and
sampling from that noise keeps it, whatever the text says.

Usually noise and picture are drawn independently, and which noise becomes which layout is left to chance, a little
different for every caption: sampled again with another text, a dog may turn round. The deterministic sampler allows
any coupling that leaves the noise normally distributed (Albergo et al. 2023, data-dependent couplings; Pooladian et al.
2023 and Li et al. 2024 couple pictures with noise that is near). Here each number of a layout, turned into a normal
one, is the mean of a block of the noise. No caption names a layout, so the noise is normally distributed for every
caption too. Samplers that add noise are not covered.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from .scene import Layout

BLOCK = 4  # a number takes 4 x 4 latents of one channel


def layout_numbers(layouts: Sequence[Layout]) -> Tensor:
    """The layouts (n) as n values of independent standard normal numbers (n, 21): normal scores of their ranks."""
    drawn = torch.tensor([_independent(layout) for layout in layouts], dtype=torch.float64)
    chance = torch.rand(drawn.shape, generator=torch.Generator().manual_seed(0))  # among equals, as of facing
    ranks = (drawn + 1e-9 * chance).argsort(dim=0, stable=True).argsort(dim=0)
    return torch.special.ndtri((ranks + 0.5) / len(drawn)).float()


def couple(noise: Tensor, numbers: Tensor) -> Tensor:
    """The noise (B, C, H, W) with its first blocks' means moved so that they tell the numbers (B, n), n up to
    C · H/4 · W/4; what is within a block, and the other blocks, stay as they are."""
    batch, channels, height, width = noise.shape
    count = numbers.shape[1]
    moved = noise.new_zeros(batch, channels * (height // BLOCK) * (width // BLOCK))
    moved[:, :count] = (numbers - told(noise, count)) / BLOCK  # the mean of 4 x 4 normal numbers has deviation 1/4
    moved = moved.view(batch, channels, height // BLOCK, width // BLOCK)
    return noise + moved.repeat_interleave(BLOCK, 2).repeat_interleave(BLOCK, 3)


def told(noise: Tensor, count: int) -> Tensor:
    """The numbers (B, count) that coupled noise (B, C, H, W) tells."""
    return BLOCK * avg_pool2d(noise, BLOCK).flatten(1)[:, :count]


def _independent(layout: Layout) -> list[float]:
    """What `Scene.layout` draws, each freed from what it was drawn relative to."""
    stones = [
        (abs(stone.x - 0.5), (stone.y - layout.horizon - 0.10) / (0.82 - layout.horizon), stone.radius)
        for stone in layout.stones
    ]
    return [
        layout.x,
        layout.y,
        layout.scale,
        layout.facing,
        layout.horizon,
        layout.hill_x,
        layout.hill_height,
        float(layout.sun_x > 0.5),
        abs(layout.sun_x - 0.5),
        layout.sun_y,
        abs(layout.cloud_x - 0.5),
        layout.cloud_y,
        layout.warmth,
        *(number for stone in stones for number in stone),
        layout.facing * (layout.x - layout.ball_x),
        layout.ball_y - layout.y,
    ]
