"""What every method is made of: its knobs, what it is asked for, what it says of itself."""

import math
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from ..control import Control, Recorder
from ..errors import InputError
from ..inversion import Inversion
from ..pipeline import StableDiffusion
from ..sampler import Branch, Schedule, Step, invert, sample
from ..tuning import adam, signs

WANTED = {  # by kind of knob: what its value must be, in words
    "steps": "a whole number from 1 to 999",
    "count": "a whole number, at least 0",
    "number": "a number from -1000 to 1000",
    "positive": "a number above 0, at most 1000",
    "fraction": "a number from 0 to 1",
    "fractions": "two numbers from 0 to 1",
    "pair": "two numbers, at least 0",
    "flag": "true or false",
    "word": "a word",
    "weights": "words and numbers, such as hat=2",
}


TOLERANCE = "loss that ends the tuning of a time step: of the first, and its rise per step"
FAST = {"steps": 20}  # BARET then needs 20 gradient passes


def knob(default, kind: str | tuple[str, ...], help: str, source: str = ""):
    """A field of a method's knobs. kind: a name in WANTED, or the values to choose from; help: one line for the command
    line; source: where the default is from, "ours" where the paper is silent."""
    return field(default=default, metadata={"kind": kind, "help": help, "source": source})


@dataclass(frozen=True)
class Knobs:
    """What can be chosen about any method. Raises InputError for impossible values."""

    steps: int = knob(50, "steps", "DDIM steps")
    guidance: float = knob(7.5, "number", "w, the scale of classifier-free guidance")

    def __post_init__(self) -> None:
        for entry in fields(self):
            kind, value = entry.metadata["kind"], getattr(self, entry.name)
            if not (value is None and entry.default is None) and not fits(kind, value):
                wanted = WANTED[kind] if isinstance(kind, str) else f"one of {', '.join(kind)}"
                raise InputError(f"{entry.name.replace('_', ' ')} must be {wanted}, got {value!r}")

    def idle(self) -> dict[str, str]:
        """The knobs that do nothing beside the values of others, and beside which."""
        return {}

    @property
    def schedule(self) -> Schedule:
        return Schedule(self.steps)

    def first(self, fraction: float) -> int:
        """How many steps are the first `fraction` of all: step i is among them where i < fraction · steps."""
        return math.ceil(fraction * self.steps - 1e-9)


@dataclass(frozen=True)
class TuningKnobs(Knobs):
    """Of a method that tunes an embedding at each time step."""

    solver: str = knob("signs", ("signs", "adam"), "of the tuning: the gradient's signs, or Adam", "ours")
    inner_steps: int = knob(1, "count", "gradient steps at each time step, at most", "ours")
    step_length: float = knob(0.08, "positive", "first step of the signs, as a part of the embedding's size", "ours")
    learning_rate: float = knob(1e-3, "positive", "learning rate of Adam")
    tolerance: tuple[float, float] = knob((1e-5, 2e-5), "pair", TOLERANCE)

    def idle(self) -> dict[str, str]:
        return {"learning_rate" if self.solver == "signs" else "step_length": f"solver {self.solver}"}

    def tuning(self, decay: float = 0.0) -> dict:
        """As `tune` takes it. decay: of Adam's learning rate, per time step."""
        first, rise = self.tolerance
        by_adam = adam(lambda i: self.learning_rate * max(1 - decay * i, 0))
        return {
            "schedule": self.schedule,
            "guidance": self.guidance,
            "solver": by_adam if self.solver == "adam" else signs(self.step_length),
            "inner_steps": self.inner_steps,
            "threshold": lambda i: first + i * rise,
        }

    def recipe(self) -> dict:
        """What the tuned embeddings depend on, beside prompts and trajectory."""
        return {entry.name: getattr(self, entry.name) for entry in fields(TuningKnobs)}


def fits(kind: str | tuple[str, ...], value) -> bool:
    """Whether the value is one that a knob of that kind may have."""
    if not isinstance(kind, str):
        return value in kind
    whole = isinstance(value, int) and not isinstance(value, bool)
    finite = (isinstance(value, float) and math.isfinite(value)) or (whole and abs(value) < 2**63)
    if kind in ("fractions", "pair"):
        high = 1 if kind == "fractions" else math.inf
        pair = isinstance(value, tuple | list) and len(value) == 2
        return pair and all(fits("number", part) and 0 <= part <= high for part in value)
    if kind == "weights":
        pairs = isinstance(value, tuple | list) and all(isinstance(part, tuple | list) for part in value)
        return pairs and all(len(p) == 2 and isinstance(p[0], str) and fits("number", p[1]) for p in value)
    return {
        "steps": whole and 1 <= value < 1000,
        "count": whole and value >= 0,
        "number": finite and abs(value) <= 1000,
        "positive": finite and 0 < value <= 1000,
        "fraction": finite and 0 <= value <= 1,
        "flag": isinstance(value, bool),
        "word": isinstance(value, str) and bool(value.strip()),
    }[kind]


def as_text(value: object) -> str:
    """A knob's value as the command line takes it; "none" for none."""
    if value is None or value == ():
        return "none"
    if not isinstance(value, tuple):
        return str(value)
    return ":".join(f"{part[0]}={part[1]:g}" if isinstance(part, tuple | list) else f"{part:g}" for part in value)


@dataclass
class Job:
    """What a method is asked for."""

    latents: Tensor  # of the picture, (1, 4, h, w), float32
    prompt: str  # what the edited picture should show
    source_prompt: str | None = None  # what the picture shows
    kept: Inversion = field(default_factory=Inversion)  # what is slow to find and known already; grows
    pictures: Collection[str] = ()  # branches whose pictures are wanted beside the edit's
    recorders: Sequence[Recorder] = ()  # that look at attention maps

    @property
    def source(self) -> str:
        """The source prompt, or the empty one."""
        return self.source_prompt or ""

    def wanted(self, branches: Sequence[Branch]) -> list[str]:
        """The branches whose pictures are wanted, the edit first."""
        others = [branch.name for branch in branches if branch.name in self.pictures and branch.name != "edit"]
        return ["edit", *others]


Found = dict[str, Tensor]  # final latents (1, 4, h, w) by branch; "edit" is among them
EditFunction = Callable[[StableDiffusion, Job, Knobs], Generator[Step, None, Found]]


@dataclass(frozen=True)
class Method:
    """A way to edit a picture."""

    name: str
    summary: str  # one line
    paper: str  # authors, year
    edit: EditFunction
    knobs: type[Knobs] = Knobs
    invert: EditFunction | None = None  # its slow part alone, whose findings an inversion file keeps
    needs_source: bool = False  # a source prompt
    strength: str = ""  # the knob for trade-off curves
    tunes: str = ""  # what it tunes, if anything
    keeps: str = ""  # the list of what it tunes in an `Inversion`
    copies: tuple[str, ...] = ()  # the networks that it tunes copies of
    batch: int = 4  # rows of the UNet's largest
    paper_values: Mapping[str, object] = field(default_factory=dict)  # of knobs whose defaults are not the paper's

    def needs(self) -> str:
        """In words, beside picture and prompt."""
        seed = any(entry.name == "seed" for entry in fields(self.knobs))
        return ", ".join(["source prompt"] * self.needs_source + ["seed"] * seed) or "–"

    def preset(self, name: str | None) -> Mapping[str, object]:
        """What the preset of that name changes. Raises InputError for another name."""
        presets = {"paper": self.paper_values, "fast": FAST}
        if name is not None and (not isinstance(name, str) or name not in presets):
            raise InputError(f"a preset must be one of {', '.join(presets)}, got {name!r}")
        return presets.get(name, {})

    def knobs_from(self, values: dict, changes: dict | None = None) -> Knobs:
        """The values, overridden by the changes. Raises InputError for a knob that the method does not have, and for a
        change that does nothing beside the others."""
        if changes:
            plain, chosen = self.knobs_from(values), self.knobs_from({**values, **changes})
            for name, beside in chosen.idle().items():
                if name in changes and getattr(chosen, name) != getattr(plain, name):
                    said = f"{name.replace('_', '-')} does nothing beside {beside}"
                    raise InputError(f"{said}, got {as_text(getattr(chosen, name))}")
            return chosen
        known = [entry.name for entry in fields(self.knobs)]
        for name in values:
            if name not in known:
                flags = ", ".join(entry.replace("_", "-") for entry in known)
                raise InputError(f"{self.name} has no {name.replace('_', '-')}; what it has: {flags}")
        return self.knobs(**values)


def trajectory(
    sd: StableDiffusion, job: Job, prompt: str, knobs: Knobs, count: int | None = None
) -> Generator[Step, None, list[Tensor]]:
    """z*[0] … z*[T] of the DDIM inversion with that prompt (to z*[count], if given), found once and kept."""
    recipe = {"steps": knobs.steps, "inversion prompt": said(sd, prompt)}
    found = job.kept.find("trajectory", recipe, shapes=(job.latents.shape,))
    if not found:
        found.append((job.latents,))
    latents = [item[0] for item in found]
    for step in invert(sd, latents, sd.embed(prompt), knobs.schedule, count):
        found.append((step.latents,))
        yield step
    return latents if count is None else latents[: count + 1]


def invert_source(sd: StableDiffusion, job: Job, knobs: Knobs) -> Generator[Step, None, list[Tensor]]:
    """The trajectory of the DDIM inversion with the source prompt, or the empty one if there is none."""
    return (yield from trajectory(sd, job, job.source, knobs))


def edit_beside(
    sd: StableDiffusion,
    job: Job,
    knobs: Knobs,
    source: Branch,
    uncond: Tensor | Sequence[Tensor],
    control: Control,
    recorders: Sequence[Recorder] = (),
    after: Callable[[int, Found], Found] | None = None,
) -> Generator[Step, None, Found]:
    """Samples the edit from where the source branch starts, beside it.

    uncond: what the edit's guidance leads away from. control, recorders, after: as `sample` has them; the job's
    recorders look on too.
    """
    branches = [source, Branch("edit", source.start, sd.embed(job.prompt), uncond)]
    wanted, recorders = job.wanted(branches), [*job.recorders, *recorders]
    return (yield from sample(sd, branches, knobs.schedule, knobs.guidance, control, wanted, after, recorders))


def said(sd: StableDiffusion, prompt: str) -> dict:
    """A prompt as a recipe has it: what it is to the model, and how it was written."""
    return {"text": prompt, "tokens": sd.tokens(prompt)}


def interpolate(towards: Tensor, start: Tensor, weight: float) -> Tensor:
    """weight · towards + (1 − weight) · start, of embeddings."""
    return weight * towards + (1 - weight) * start


def random_numbers(seed: int) -> torch.Generator:
    """Made on the CPU, so that every device gets the same. Raises InputError for a seed that is not of 64 bits."""
    if not 0 <= seed < 2**64:
        raise InputError(f"seed must be at least 0 and below 2⁶⁴, got {seed}")
    return torch.Generator().manual_seed(seed)


def noise_like(latents: Tensor, numbers: torch.Generator, count: int = 1) -> Tensor:
    """Normally distributed (count, 4, h, w), where the latents are."""
    return torch.randn(count, *latents.shape[1:], generator=numbers).to(latents.device)
