"""DDIM inversion, and target-text inversion (BARET Eq. 1, 2, Algorithm 1): the picture's way back to noise, and the
text embeddings that bring it home again."""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import InputError
from .models.unet import Text, UNet
from .schedule import Schedule
from .settings import Settings

BETAS, EPSILON = (0.9, 0.999), 1e-8  # of Adam, its authors' own


@torch.no_grad()
def ddim_invert(unet: UNet, latents: Tensor, context: Tensor, schedule: Schedule, done: int = 0) -> Iterator[Tensor]:
    """Yields z*[done + 1] … z*[T], each noisier than the one before; guidance 1.

    latents: z*[done], (1, 4, h, w), z*[0] to begin with; context: (1, 77, width).
    """
    text = unet.project_text(context)
    for label in schedule.labels[::-1][done:]:
        noise = predict(unet, latents, label, text)
        latents = schedule.inverse_step(latents, noise, label)
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
    for index, label in list(enumerate(schedule.labels))[len(done) :]:
        with no_tf32():
            with torch.no_grad():
                noise_null = predict(unet, latents, label, text_null)

            def retrace(text: Tensor, latents=latents, label=label, noise_null=noise_null) -> Tensor:
                noise = guide(noise_null, predict(unet, latents, label, text), settings.guidance)
                return schedule.step(latents, noise, label)

            step = _tune(retrace, embedding, trajectory[-2 - index], first + index * raise_by, settings)
        latents, embedding = step.latents, step.embedding
        yield step


def _tune(
    retrace: Callable[[Tensor], Tensor], embedding: Tensor, goal: Tensor, threshold: float, settings: Settings
) -> TunedStep:
    """Adam (Kingma and Ba 2015) on the embedding until `retrace` leads near enough to the goal."""
    embedding = embedding.detach().clone().requires_grad_()
    mean, square = torch.zeros_like(embedding), torch.zeros_like(embedding)  # of the gradient, running
    losses: list[float] = []
    while True:
        last = len(losses) == settings.inner_steps
        with torch.set_grad_enabled(not last):
            moved = retrace(embedding)
            error = (moved - goal).square().sum()
        losses.append(error.item() / goal.numel())  # the one time that the CPU waits for a GPU
        if not math.isfinite(losses[-1]):
            raise InputError(
                f"a loss of target-text inversion that is a number was wanted, got {losses[-1]}: "
                "a smaller learning rate or a wider dtype may give one"
            )
        if last or losses[-1] < threshold:
            return TunedStep(embedding.detach(), moved.detach(), tuple(losses))
        # of the sum, not of the mean: that one's gradient would vanish in float16
        gradient = torch.autograd.grad(error, embedding)[0] / goal.numel()
        with torch.no_grad():
            mean.lerp_(gradient, 1 - BETAS[0])
            square.lerp_(gradient.square(), 1 - BETAS[1])
            count = len(losses)
            deviation = (square / (1 - BETAS[1] ** count)).sqrt() + EPSILON
            embedding -= settings.learning_rate / (1 - BETAS[0] ** count) * mean / deviation


@contextlib.contextmanager
def no_tf32() -> Iterator[None]:
    """Float32 products on a GPU keep all their bits; what was chosen before is chosen again afterwards."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    if hasattr(matmul, "fp32_precision"):  # PyTorch 2.9 and newer: the older switches do less, and may not be mixed
        switches, name, off = (matmul, cudnn.conv), "fp32_precision", "ieee"
    else:
        switches, name, off = (matmul, cudnn), "allow_tf32", False
    before = [getattr(switch, name) for switch in switches]
    try:
        for switch in switches:
            setattr(switch, name, off)
        yield
    finally:
        for switch, chosen in zip(switches, before):
            setattr(switch, name, chosen)


def predict(unet: UNet, latents: Tensor, label: int, text: Tensor | Text, *more) -> Tensor:
    """The UNet's noise in float32; latents stay float32 between steps whatever the networks' dtype.
    more: the UNet's injection and recorder."""
    timestep = torch.full((), label, device=latents.device)  # filled there: a copy would wait
    return unet(latents.to(unet.dtype), timestep, text, *more).float()


def guide(noise_null: Tensor, noise_text: Tensor, guidance: float) -> Tensor:
    """Classifier-free guidance."""
    return noise_null + guidance * (noise_text - noise_null)
