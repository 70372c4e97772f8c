"""Pictures from captions alone: plain guided DDIM sampling, to see what a model knows before it is asked to edit."""

import torch
from torch import Tensor

from ..models.unet import UNet
from ..prediction import guide
from ..schedule import Schedule


@torch.no_grad()
def sample(unet: UNet, texts: Tensor, null: Tensor, side: int, steps: int, guidance: float, seed: int = 0) -> Tensor:
    """texts (B, 77, width) and the empty text's (1, 77, width) → latents (B, 4, side, side), from seeded noise."""
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(len(texts), unet.config.latent_channels, side, side, generator=generator)
    context = torch.cat([null.expand_as(texts), texts])
    schedule = Schedule(steps)
    for timestep in schedule.timesteps:
        noise_null, noise_text = unet(torch.cat([latents] * 2), torch.tensor(timestep), context).chunk(2)
        latents = schedule.step(latents, guide(noise_null, noise_text, guidance), timestep)
    return latents
