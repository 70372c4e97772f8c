"""DDIM (Song et al. 2020, Eq. 12), both ways: the only loops over time steps that there are, with `tuning.tune`.

    invert    picture → noise
    sample    noise → pictures: all branches together, as rows of one batched forward

Both are generators: the caller sees every step, and stops by not asking for the next. Latents are float32 between steps
whatever the networks' dtype.
"""

from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .control import Control, Recorder, Row, RowControl, check_takes, no_control, partner, takes_of
from .pipeline import StableDiffusion

TRAINING_STEPS = 1000
BETA_FIRST, BETA_LAST = 0.00085, 0.012
OFFSET = 1  # of the timesteps: 50 steps are 981, 961, …, 21, 1


def cumulative_alphas() -> Tensor:
    """ᾱ for the timesteps 0 … 999, float32 (1000,), computed in float64: betas are linear in their square roots."""
    betas = torch.linspace(BETA_FIRST**0.5, BETA_LAST**0.5, TRAINING_STEPS, dtype=torch.float64).square()
    return (1 - betas).cumprod(0).float()


ALPHAS: list[float] = cumulative_alphas().tolist()


@dataclass(frozen=True)
class Schedule:
    """The timesteps of a run of `steps` DDIM steps. Raises ValueError unless 1 ≤ steps ≤ 999."""

    steps: int = 50

    def __post_init__(self) -> None:
        if not 1 <= self.steps < TRAINING_STEPS:
            raise ValueError(f"steps must be between 1 and {TRAINING_STEPS - 1}, got {self.steps}")

    @property
    def timesteps(self) -> list[int]:
        """Noisiest first: 981, 961, …, 21, 1 for 50 steps."""
        stride = TRAINING_STEPS // self.steps
        return [index * stride + OFFSET for index in reversed(range(self.steps))]

    def alphas(self, timestep: int) -> tuple[float, float]:
        """ᾱ at the timestep and a step less noisy; below timestep 0 that is ᾱ[0], not 1."""
        return ALPHAS[timestep], ALPHAS[max(timestep - TRAINING_STEPS // self.steps, 0)]

    def step(self, latents: Tensor, noise: Tensor, timestep: int) -> Tensor:
        """One DDIM step from `timestep` to the less noisy one, given the predicted noise."""
        return _move(latents, noise, *self.alphas(timestep))

    def inverse_step(self, latents: Tensor, noise: Tensor, timestep: int) -> Tensor:
        """The same step backwards: from the less noisy timestep to `timestep`."""
        here, below = self.alphas(timestep)
        return _move(latents, noise, below, here)

    def add_noise(self, latents: Tensor, noise: Tensor, timestep: int) -> Tensor:
        """Clean latents as they are at the timestep: √ᾱ z + √(1 − ᾱ) n."""
        alpha = ALPHAS[timestep]
        return alpha**0.5 * latents + (1 - alpha) ** 0.5 * noise

    def warning(self) -> str | None:
        """One sentence where the steps do not begin at noise, because as many would not fit evenly."""
        stride, first = TRAINING_STEPS // self.steps, self.timesteps[0]
        if first >= 900 or TRAINING_STEPS - stride * self.steps < stride:
            return None
        near = TRAINING_STEPS // (stride + 1), min(TRAINING_STEPS // stride, TRAINING_STEPS - 1)
        return f"{self.steps} steps begin at timestep {first} of 999, not at noise; {near[0]} or {near[1]} steps do"


def _move(latents: Tensor, noise: Tensor, alpha_from: float, alpha_to: float) -> Tensor:
    """The clean latents that the noise implies, brought to another noise level. Both alphas are ᾱ."""
    clean = (latents - (1 - alpha_from) ** 0.5 * noise) / alpha_from**0.5
    return alpha_to**0.5 * clean + (1 - alpha_to) ** 0.5 * noise


def guide(noise_uncond: Tensor, noise_cond: Tensor, guidance: float) -> Tensor:
    """Classifier-free guidance (Ho and Salimans 2022): ε_null + w (ε_text − ε_null)."""
    return noise_uncond + guidance * (noise_cond - noise_uncond)


@dataclass(frozen=True)
class Step:
    """One finished step of a stage, for whoever watches."""

    stage: str  # such as "inversion", "tuning" or "edit"
    index: int  # from 0
    total: int
    latents: Tensor  # (1, 4, h, w), where the stage stands now
    loss: float | None = None  # of a tuning, after its last inner iteration
    iterations: int | None = None  # inner iterations, at this step


@torch.no_grad()
def invert(
    sd: StableDiffusion, trajectory: list[Tensor], context: Tensor, schedule: Schedule, count: int | None = None
) -> Iterator[Step]:
    """DDIM inversion at guidance 1: extends the trajectory z*[0] … to z*[count], all of the schedule if None.

    The noise of a step should be predicted in the noisier latents, which are not known yet; it is predicted in the less
    noisy ones, with the noisier timestep (as diffusers' DDIMInverseScheduler and the null-text code do). So guided
    sampling from z*[T] does not come back to the picture by itself. context: (1, 77, width).
    """
    total = schedule.steps if count is None else count
    for index in range(len(trajectory) - 1, total):
        timestep = schedule.timesteps[-1 - index]
        noise = sd.eps(trajectory[-1], timestep, context)
        trajectory.append(schedule.inverse_step(trajectory[-1], noise, timestep))
        yield Step("inversion", index, total, trajectory[-1])


@dataclass(frozen=True)
class Branch:
    """One run of DDIM: what it begins with, and what guides it. It is sampled beside the others of its batch."""

    name: str
    start: Tensor  # (1, 4, h, w)
    context: Tensor | Sequence[Tensor]  # of its prompt, (1, 77, width): one for all steps, or one for each
    uncond: Tensor | Sequence[Tensor] | None = None  # what guidance leads away from; None: no guidance, and one row
    replay: Sequence[Tensor] | None = None  # its latents after each step, where they are known and not to be sampled

    def rows(self) -> list[Row]:
        return [Row(self.name, False)] * (self.uncond is not None) + [Row(self.name, True)]

    def context_at(self, step: int, conditional: bool) -> Tensor:
        found = self.context if conditional else self.uncond
        return found if isinstance(found, Tensor) else found[step]


def plan_rows(
    branches: Sequence[Branch], takes: Sequence[dict], wanted: Collection[str], recorded: Collection[str] = ()
) -> list[tuple[Row, ...]]:
    """For each step, the rows that its batch needs: those of the wanted branches, of those that anybody takes from, and
    of those that will be taken from later. A branch that is replayed is there only where it is taken from.

    takes: of each step, what each layer's control gave. recorded: branches whose attention maps are looked at.
    """
    by_name = {branch.name: branch for branch in branches}
    everyone = [row for branch in branches for row in branch.rows()]
    alive = {name for name in wanted if by_name[name].replay is None}
    plans = []
    for layers in reversed(takes):
        needed = {row for name in alive for row in by_name[name].rows()} | {Row(name, True) for name in recorded}
        while True:
            names = {
                partner(name, row, everyone)
                for row in needed
                for found in layers.values()
                for take in takes_of(found, row)
                for name in (take.q, take.k, take.v)
            }
            sampled = {name for name, _ in needed | names if by_name[name].replay is None}
            grown = needed | names | {row for name in sampled for row in by_name[name].rows()}
            if grown == needed:
                break
            needed = grown
        alive |= sampled
        plans.append(tuple(row for row in everyone if row in needed))
    return plans[::-1]


@torch.no_grad()
def sample(
    sd: StableDiffusion,
    branches: Sequence[Branch],
    schedule: Schedule,
    guidance: float,
    control: Control = no_control,
    wanted: Collection[str] = ("edit",),
    after: Callable[[int, dict[str, Tensor]], dict[str, Tensor]] | None = None,
    recorders: Sequence[Recorder] = (),
    first: int = 0,
) -> Generator[Step, None, dict[str, Tensor]]:
    """Samples the branches together, from step `first` on; returns their latents by name.

    wanted: the branches whose picture somebody wants; the others are in the batch only while those take from them, and
    their latents stay where they were then. after(step, latents by name): changes latents between steps.
    """
    height, width = branches[0].start.shape[-2:]
    layers = sd.unet.layers(height, width)
    steps = range(first, schedule.steps)
    takes = [_takes(control, step, layers, branches) for step in steps]
    recorded = {name for recorder in recorders for name in recorder.branches} & {branch.name for branch in branches}
    plans = plan_rows(branches, takes, wanted, recorded)
    by_name = {branch.name: branch for branch in branches}
    latents = {branch.name: branch.start for branch in branches}
    for step, rows, taken in zip(steps, plans, takes):
        timestep = schedule.timesteps[step]
        batch = torch.cat([latents[name] for name, _ in rows])
        context = torch.cat([by_name[name].context_at(step, conditional) for name, conditional in rows])
        by_row = RowControl(step, rows, taken, recorders) if taken or recorders else None
        noise = dict(zip(rows, sd.eps(batch, timestep, context, by_row).split(1)))
        for name, branch in by_name.items():
            if branch.replay is not None:
                latents[name] = branch.replay[step]
            elif Row(name, True) in noise:
                predicted = noise[name, True]
                if branch.uncond is not None:
                    predicted = guide(noise[name, False], predicted, guidance)
                latents[name] = schedule.step(latents[name], predicted, timestep)
        if after is not None:
            latents = after(step, latents)
        yield Step("edit", step - first, len(steps), latents[next(iter(wanted))])
    return latents


def _takes(control: Control, step: int, layers: Sequence, branches: Sequence[Branch]) -> dict:
    """What the layers' branches take, of those layers where any does."""
    names, tokens = [branch.name for branch in branches], branches[0].context_at(step, True).shape[-2]
    found = {layer: check_takes(control(step, layer), layer, names, tokens) for layer in layers}
    return {layer: takes for layer, takes in found.items() if takes}
