"""DDIM inversion, from the picture to noise; and target-text inversion (BARET Eq. 1, 2, Algorithm 1), the text
embeddings with which guided sampling leads from that noise back to the picture."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import InputError
from .models.unet import UNet
from .prediction import guide, no_tf32, predict
from .schedule import Schedule
from .settings import Settings

BETAS, EPSILON = (0.9, 0.999), 1e-8  # Adam's, as its authors propose


@torch.no_grad()
def ddim_invert(unet: UNet, latents: Tensor, embedding: Tensor, schedule: Schedule, done: int = 0) -> Iterator[Tensor]:
    """Yields z*[done + 1] … z*[T], each noisier than the one before; guidance 1.

    The noise of a step should be predicted in the noisier latents, which are not known yet. It is predicted in the less
    noisy ones, with the noisier timestep, so guided sampling from z*[T] does not come back to the picture by itself:
    target-text inversion makes up for that.

    latents: z*[done], (1, 4, h, w), z*[0] to begin with; embedding: (1, 77, width), of the text to invert with.
    """
    text = unet.project_text(embedding)
    for timestep in schedule.timesteps[::-1][done:]:
        noise = predict(unet, latents, timestep, text)
        latents = schedule.inverse_step(latents, noise, timestep)
        yield latents


@dataclass(frozen=True)
class TunedStep:
    """What target-text inversion found at one time step."""

    embedding: Tensor  # E[i], (1, 77, width), float32
    latents: Tensor  # Z_rec[i + 1], where the tuned embedding leads: (1, 4, h, w)
    losses: tuple[float, ...]  # before the first Adam step, and after each

    @property
    def iterations(self) -> int:
        return len(self.losses) - 1


def tune_text(
    unet: UNet,
    trajectory: list[Tensor],
    target: Tensor,
    null: Tensor,
    schedule: Schedule,
    settings: Settings,
    done: Sequence[TunedStep] = (),
) -> Iterator[TunedStep]:
    """Tunes the target text's embedding, time step by time step, so that guided sampling retraces the trajectory.

    trajectory: z*[0] … z*[T]; target, null: (1, 77, width); done: the first steps, where they are known. Yields the
    steps after those up to T, noisiest first. The networks' weights are left alone: only the embedding has a gradient,
    and is float32 whatever the networks' dtype.
    """
    latents, embedding = (done[-1].latents, done[-1].embedding) if done else (trajectory[-1], target.float())
    first, raise_by = settings.tolerance
    with torch.no_grad(), no_tf32():
        text_null = unet.project_text(null)
    for index, timestep in list(enumerate(schedule.timesteps))[len(done) :]:
        with no_tf32():
            with torch.no_grad():
                noise_null = predict(unet, latents, timestep, text_null)

            def retrace(text: Tensor, latents=latents, timestep=timestep, noise_null=noise_null) -> Tensor:
                noise = guide(noise_null, predict(unet, latents, timestep, text), settings.guidance)
                return schedule.step(latents, noise, timestep)

            goal = trajectory[-2 - index]  # z*[T - 1 - i], where the step from Z_rec[i] should arrive
            step = _tune(retrace, embedding, goal, first + index * raise_by, settings)
        latents, embedding = step.latents, step.embedding
        yield step


def _tune(
    retrace: Callable[[Tensor], Tensor], embedding: Tensor, goal: Tensor, threshold: float, settings: Settings
) -> TunedStep:
    """Adam (Kingma and Ba 2015, written out) on the embedding until `retrace` leads near enough to the goal."""
    embedding = embedding.detach().clone().requires_grad_()
    first_moment, second_moment = torch.zeros_like(embedding), torch.zeros_like(embedding)
    losses: list[float] = []
    while True:
        last = len(losses) == settings.inner_steps
        with torch.set_grad_enabled(not last):
            moved = retrace(embedding)
            error = (moved - goal).square().sum()
        losses.append(error.item() / goal.numel())  # the one time that the CPU waits for a GPU
        if not math.isfinite(losses[-1]):
            raise InputError(
                f"target-text inversion needs a finite loss, got {losses[-1]}: a smaller learning rate "
                "or a wider dtype may help"
            )
        if last or losses[-1] < threshold:
            return TunedStep(embedding.detach(), moved.detach(), tuple(losses))
        # of the sum, not of the mean: that one's gradient would vanish in float16
        gradient = torch.autograd.grad(error, embedding)[0] / goal.numel()
        with torch.no_grad():
            first_moment.lerp_(gradient, 1 - BETAS[0])
            second_moment.lerp_(gradient.square(), 1 - BETAS[1])
            count = len(losses)
            deviation = (second_moment / (1 - BETAS[1] ** count)).sqrt() + EPSILON
            embedding -= settings.learning_rate / (1 - BETAS[0] ** count) * first_moment / deviation
