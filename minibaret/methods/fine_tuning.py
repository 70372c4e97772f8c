"""Fine-tuning on one picture: an embedding, or copies of the networks, by the loss that diffusion models are trained
with (Ho et al. 2020, Eq. 14)."""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..adam import Adam
from ..errors import InputError
from ..pipeline import StableDiffusion
from ..sampler import TRAINING_STEPS, Schedule, Step
from .common import noise_like

Network = TypeVar("Network", bound=nn.Module)


def copy_to_tune(network: Network) -> Network:
    """A copy in float32 whose weights have a gradient; the network itself stays as it is. The copy is not compiled."""
    made = copy.deepcopy(network).float().requires_grad_()
    vars(made).pop("forward", None)  # torch.compile's would compute with the network's own weights
    return made


def fine_tune(
    sd: StableDiffusion,
    latents: Tensor,
    context: Callable[[], Tensor],
    parameters: Sequence[Tensor],
    *,
    steps: int,
    learning_rate: float,
    numbers: torch.Generator,
    stage: str,
) -> Iterator[Step]:
    """Adam on ‖n − ε(√ᾱ z0 + √(1 − ᾱ) n, t, e)‖² / numel, with a timestep t and a noise n drawn anew for each step.

    latents: z0, of the picture (1, 4, h, w). context: gives e (1, 77, width) at each step. parameters: what is tuned,
    in place. Raises InputError where the loss is not finite.
    """
    schedule, adam = Schedule(), Adam(parameters, learning_rate)
    for index in range(steps):
        timestep = torch.randint(TRAINING_STEPS, (), generator=numbers).item()
        noise = noise_like(latents, numbers)
        with torch.enable_grad():
            predicted = sd.eps(schedule.add_noise(latents, noise, timestep), timestep, context())
            error = (noise - predicted).square().sum()
            loss = error.item() / noise.numel()
            if not math.isfinite(loss):
                raise InputError(f"{stage} needs a finite loss, got {loss}: a smaller learning rate may help")
            error.backward()  # of the sum, not of the mean: that one's gradient would vanish in float16
        sd.counts.gradient_passes += 1
        for parameter in parameters:
            parameter.grad /= noise.numel()
        adam.step()
        for parameter in parameters:
            parameter.grad = None
        yield Step(stage, index, steps, latents, loss, 1)
