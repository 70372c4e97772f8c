"""DDIM inversion, and target-text inversion (BARET Eq. 1, 2, Algorithm 1): the picture's way back to noise, and the
text embeddings that bring it home again."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .models.unet import UNet
from .schedule import Schedule
from .settings import Settings


@torch.no_grad()
def invert(unet: UNet, latents: Tensor, context: Tensor, schedule: Schedule) -> Iterator[Tensor]:
    """Yields z*[1] … z*[T], each noisier than the one before; guidance 1.

    latents: z*[0], (1, 4, h, w); context: (1, 77, width).
    """
    for label in reversed(schedule.labels):
        noise = predict(unet, latents, label, context)
        latents = schedule.inverse_step(latents, noise, label)
        yield latents


@dataclass(frozen=True)
class TunedStep:
    """What target-text inversion found at one time step."""

    embedding: Tensor  # E[i], (1, 77, width)
    latents: Tensor  # Z_rec[i + 1], where the tuned embedding leads: (1, 4, h, w)
    losses: tuple[float, ...]  # before the first Adam step, and after each

    @property
    def iterations(self) -> int:
        return len(self.losses) - 1


def tune_text(
    unet: UNet, trajectory: list[Tensor], target: Tensor, null: Tensor, schedule: Schedule, settings: Settings
) -> Iterator[TunedStep]:
    """Tunes the target text's embedding, time step by time step, so that guided sampling retraces the trajectory.

    trajectory: z*[0] … z*[T]; target, null: (1, 77, width). Yields T steps, noisiest first. The networks' weights are
    left alone: only the embedding has a gradient.
    """
    latents, embedding = trajectory[-1], target
    first, raise_by = settings.tolerance
    for index, label in enumerate(schedule.labels):
        goal = trajectory[-2 - index]
        with torch.no_grad():
            noise_null = predict(unet, latents, label, null)

        def retrace(text: Tensor, latents=latents, label=label, noise_null=noise_null) -> Tensor:
            noise = guide(noise_null, predict(unet, latents, label, text), settings.guidance)
            return schedule.step(latents, noise, label)

        threshold = first + index * raise_by
        embedding = embedding.detach().clone().requires_grad_()
        optimizer = torch.optim.Adam([embedding], lr=settings.learning_rate)
        losses: list[float] = []
        while True:
            last = len(losses) == settings.inner_steps
            with torch.set_grad_enabled(not last):
                moved = retrace(embedding)
                loss = F.mse_loss(moved, goal)
            losses.append(loss.item())
            if last or losses[-1] < threshold:
                break
            optimizer.zero_grad()
            scale = _loss_scale(unet, losses[-1], goal.numel())
            (loss * scale).backward()
            embedding.grad /= scale
            optimizer.step()
        latents, embedding = moved.detach(), embedding.detach()
        yield TunedStep(embedding, latents, tuple(losses))


def _loss_scale(unet: UNet, loss: float, count: int) -> float:
    """What to multiply a mean squared error of `count` numbers with before the backward pass: in float16 its gradient
    would underflow, so there the gradient of the numbers is brought to a root mean square of 1."""
    return count / (2 * loss**0.5) if unet.conv_in.weight.dtype == torch.float16 and loss > 0 else 1.0


def predict(unet: UNet, latents: Tensor, label: int, context: Tensor, *more) -> Tensor:
    """The UNet's noise in float32; latents and embeddings stay float32 whatever the networks' dtype.
    more: the UNet's injection and record."""
    timestep, dtype = torch.tensor(label, device=latents.device), unet.conv_in.weight.dtype
    return unet(latents.to(dtype), timestep, context.to(dtype), *more).float()


def guide(noise_null: Tensor, noise_text: Tensor, guidance: float) -> Tensor:
    """Classifier-free guidance."""
    return noise_null + guidance * (noise_text - noise_null)
