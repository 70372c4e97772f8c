"""Null-text inversion (Mokady et al. 2022): the empty prompt's embedding is tuned at each time step so that guided
sampling with the source prompt retraces the DDIM inversion; then prompt-to-prompt, away from the same embeddings."""

from collections.abc import Generator
from dataclasses import dataclass

from torch import Tensor

from ..pipeline import StableDiffusion
from ..sampler import Branch, Step
from ..tuning import Tuned, tune
from .common import Found, Job, Method, edit_beside, invert_source, knob, said
from .prompt_to_prompt import WordKnobs, controllers


@dataclass(frozen=True)
class NullTextKnobs(WordKnobs):
    inner_steps: int = knob(10, "count", "Adam steps at each time step, at most")
    learning_rate: float = knob(1e-2, "positive", "at time step i: this times 1 − i/100")
    tolerance: tuple[float, float] = knob(
        (1e-5, 2e-5), "pair", "loss that ends the tuning of a time step: of the first, and its rise per step"
    )


def invert(sd: StableDiffusion, job: Job, knobs: NullTextKnobs) -> Generator[Step, None, tuple[Tensor, list[Tuned]]]:
    """z*[T], and the tuned embeddings with the latents where they lead, noisiest first."""
    latents = yield from invert_source(sd, job, knobs)
    null, source = sd.embed(""), sd.embed(job.source)
    names = ("steps", "guidance", "inner_steps", "learning_rate", "tolerance")
    recipe = {"source": said(sd, job.source), **{name: getattr(knobs, name) for name in names}}
    tuned = job.kept.find("null embeddings", recipe, Tuned, (null.shape, job.latents.shape))
    first, rise = knobs.tolerance
    yield from tune(
        sd, tuned, latents, null, source, knobs.schedule, knobs.guidance, unconditional=True,
        inner_steps=knobs.inner_steps, learning_rate=lambda i: knobs.learning_rate * max(1 - i / 100, 0),
        threshold=lambda i: first + i * rise, stage="null-text inversion",
    )  # fmt: skip
    return latents[-1], tuned


def edit(sd: StableDiffusion, job: Job, knobs: NullTextKnobs) -> Generator[Step, None, Found]:
    controls = controllers(sd, job, knobs)
    noise, tuned = yield from invert(sd, job, knobs)
    nulls, latents = [step.embedding for step in tuned], [step.latents for step in tuned]
    source = Branch("source", noise, sd.embed(job.source), nulls, replay=latents)
    found = yield from edit_beside(sd, job, knobs, source, nulls, *controls)
    return {"reconstruction": found["source"], **found}


METHOD = Method(
    name="null-text",
    summary="null-text inversion, then prompt-to-prompt",
    paper="Mokady et al. 2022",
    edit=edit,
    knobs=NullTextKnobs,
    invert=invert,
    needs_source=True,
    strength="cross_steps",
    tunes="null embedding",
    keeps="null embeddings",
    rows=3,
)
