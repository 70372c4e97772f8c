"""Tuning an embedding, time step by time step, so that guided sampling retraces a DDIM inversion.

Target-text inversion tunes the prompt's embedding (BARET, Eq. 1, 2, Algorithm 1); null-text inversion (Mokady et al.
2022, Algorithm 1) the empty one, against which guidance leads away. They differ in which of the two noises moves.
"""

import math
from collections.abc import Callable, Iterator
from itertools import count
from typing import NamedTuple

import torch
from torch import Tensor

from .adam import Adam
from .errors import InputError
from .pipeline import StableDiffusion
from .sampler import Schedule, Step, guide


class Tuned(NamedTuple):
    """What the tuning found at one time step."""

    embedding: Tensor  # (1, 77, width), float32
    latents: Tensor  # (1, 4, h, w): where guided sampling with it leads
    losses: Tensor  # before the first inner iteration, and after each

    @property
    def iterations(self) -> int:
        return len(self.losses) - 1


Solver = Callable[[Tensor, int], Callable[[], object]]
"""Of the embedding, at time step i: what moves it, in place, each time that its gradient has been found."""


def signs(length: float) -> Solver:
    """Steps along the gradient's signs, as the first of Adam's are. The length is a part of the embedding's own size
    (root mean square), so it is the same for every model, where Adam's learning rate is not; a time step's second is
    half of it, its third a third: of one length, many would run around what they look for."""

    def begin(embedding: Tensor, index: int) -> Callable[[], object]:
        lengths = (length / number for number in count(1))

        @torch.no_grad()
        def move() -> None:
            embedding.sub_(next(lengths) * embedding.square().mean().sqrt() * embedding.grad.sign())

        return move

    return begin


def adam(learning_rate: Callable[[int], float]) -> Solver:
    """Adam, begun anew at each time step, as in the papers. learning_rate: at time step i."""
    return lambda embedding, index: Adam([embedding], learning_rate(index)).step


def tune(
    sd: StableDiffusion,
    tuned: list[Tuned],
    trajectory: list[Tensor],
    embedding: Tensor,
    fixed: Tensor,
    schedule: Schedule,
    guidance: float,
    *,
    solver: Solver,
    inner_steps: int,
    threshold: Callable[[int], float],
    unconditional: bool = False,
    stage: str = "tuning",
) -> Iterator[Step]:
    """Extends `tuned` by one entry for each time step that it lacks, the noisiest first.

    trajectory: z*[0] … z*[T]. embedding: to begin with, (1, 77, width); each time step goes on from the one before.
    fixed: the other embedding, whose noise is predicted once a step and used again. solver: `signs` or `adam`, which
    moves the embedding inner_steps times at each time step, at most. threshold: the loss, at time step i, below which
    its tuning ends. unconditional: tune what guidance leads away from (null-text inversion, which takes the step that
    found the loss low enough), not the prompt (target-text inversion, which does not). Only the embedding,
    float32, has a gradient. Raises InputError where the loss is not finite.
    """
    latents = tuned[-1].latents if tuned else trajectory[-1]
    embedding = tuned[-1].embedding if tuned else embedding.float()
    for index in range(len(tuned), schedule.steps):
        timestep, goal = schedule.timesteps[index], trajectory[-2 - index]
        with torch.no_grad():
            still = sd.eps(latents, timestep, fixed)

        def arrive(embedding: Tensor, latents=latents, timestep=timestep, still=still) -> Tensor:
            moving = sd.eps(latents, timestep, embedding)
            pair = (moving, still) if unconditional else (still, moving)
            return schedule.step(latents, guide(*pair, guidance), timestep)

        embedding = embedding.detach().clone().requires_grad_()
        move = solver(embedding, index)
        losses: list[float] = []
        while True:
            last = len(losses) == inner_steps
            with torch.set_grad_enabled(not last):
                moved = arrive(embedding)
                error = (moved - goal).square().sum()
            losses.append(error.item() / goal.numel())  # here the CPU waits for a GPU
            if not math.isfinite(losses[-1]):
                raise InputError(
                    f"{stage} needs a finite loss, got {losses[-1]}: a smaller step or a wider dtype may help"
                )
            met = losses[-1] < threshold(index)
            if last or (met and not unconditional):
                break
            # Of the sum, not of the mean, and scaled as if differences were about 1: the gradient would vanish in
            # float16. A power of two leaves float32 as it is.
            scale = 2.0 ** -round(math.log2(max(losses[-1], 1e-30)) / 2)
            embedding.grad = torch.autograd.grad(error * scale, embedding)[0] / (scale * goal.numel())
            sd.counts.gradient_passes += 1
            move()
            if met:
                with torch.no_grad():
                    moved = arrive(embedding)
                    losses.append((moved - goal).square().sum().item() / goal.numel())
                break
        embedding, latents = embedding.detach(), moved.detach()
        tuned.append(Tuned(embedding, latents, torch.tensor(losses)))
        yield Step(stage, index, schedule.steps, latents, losses[-1], len(losses) - 1)
