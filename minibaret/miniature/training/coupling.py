"""Noise that tells the layout of the picture it is added to. An inversion then finds the layout in the noise, and
sampling from that noise keeps it, whatever the text says.

Usually noise and picture are drawn independently, and which noise becomes which layout is whatever training makes of
it, a little different for every caption: sampled again with another text, a dog may turn round. The deterministic
sampler allows any coupling that leaves the noise normally distributed for each caption (Albergo et al. 2023, data-
dependent couplings), up to what the schedule leaves of the picture at its end, 0.07 of it. Pooladian et al. 2023 and Li
et al. 2024 couple pictures with noise that is near; this couples them by what the drawn world knows of itself: each
draw behind a layout, turned into a normal number, is the mean of a block of the noise. No caption names a layout.
Samplers that add noise are not covered.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, pad

from ..world.scene import Scene

BLOCK = 4  # a number takes 4 x 4 latents of one channel
NUMBERS = (  # the draws of `Scene.layout_draws`, in the order of their blocks: channel by channel, row by row
    *("x", "y", "scale", "facing", "horizon", "hill x", "hill height"),
    *("sun side", "sun x", "sun y", "cloud x", "cloud y", "warmth"),
    *("left stone x", "left stone y", "left stone radius"),
    *("right stone x", "right stone y", "right stone radius"),
    *("ball x", "ball y"),
)


def layout_numbers(scenes: Sequence[Scene]) -> Tensor:
    """The layouts of n scenes as independent standard normal numbers (n, 21)."""
    draws = [[scene_draws[name] for name in NUMBERS] for scene_draws in map(Scene.layout_draws, scenes)]
    return torch.special.ndtri(torch.tensor(draws, dtype=torch.float64).clamp(min=1e-9)).float()


def couple(noise: Tensor, numbers: Tensor) -> Tensor:
    """The noise (B, C, H, W) with its first blocks' means moved so that they tell the numbers (B, n), n up to
    C · H/4 · W/4; what is within a block, and the other blocks, stay as they are."""
    batch, channels, height, width = noise.shape
    count = numbers.shape[1]
    blocks = channels, height // BLOCK, width // BLOCK
    shift = (numbers - read_numbers(noise, count)) / BLOCK  # the mean of 4 x 4 normal numbers has deviation 1/4
    shift = pad(shift, (0, blocks[0] * blocks[1] * blocks[2] - count)).view(batch, *blocks)
    return noise + interpolate(shift, scale_factor=BLOCK)


def read_numbers(noise: Tensor, count: int = len(NUMBERS)) -> Tensor:
    """The numbers (B, count) that coupled noise (B, C, H, W) tells."""
    return BLOCK * avg_pool2d(noise, BLOCK).flatten(1)[:, :count]
