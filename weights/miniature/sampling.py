"""Pictures from captions alone: plain guided sampling, to see what a model knows before it is asked to edit."""

from collections.abc import Sequence

import torch
from torch import Tensor

from minibaret import sampler
from minibaret.models.unet import UNet
from minibaret.progress import run_to_end


class Alone:
    """A UNet alone, as `sampler.sample` asks for one."""

    def __init__(self, unet: UNet):
        self.unet = unet

    def eps(self, latents: Tensor, timestep: int, context: Tensor, control=None) -> Tensor:
        return self.unet(latents, torch.tensor(timestep), context, control).float()


def sample(
    unet: UNet, texts: Tensor, null: Tensor, side: int, steps: int, guidance: float, seeds: Sequence[int] | None = None
) -> Tensor:
    """Embeddings (B, 77, width) of captions and of the empty one (1, 77, width) → latents (B, 4, side, side). Each
    picture's noise is drawn from its own seed, 0 … B − 1 if there are none."""
    shape = (1, unet.config.latent_channels, side, side)
    branches = [
        sampler.Branch(
            name=str(index),
            start=torch.randn(shape, generator=torch.Generator().manual_seed(seed)),
            context=context,
            uncond=None if guidance == 1 else null,
        )
        for index, (seed, context) in enumerate(zip(seeds or range(len(texts)), texts.split(1)))
    ]
    names, schedule = [branch.name for branch in branches], sampler.Schedule(steps)
    found = run_to_end(sampler.sample(Alone(unet), branches, schedule, guidance, wanted=names))
    return torch.cat([found[name] for name in names])
