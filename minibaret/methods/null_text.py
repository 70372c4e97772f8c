"""Null-text inversion (Mokady et al. 2022): the empty prompt's embedding is tuned at each time step so that guided
sampling with the source prompt retraces the DDIM inversion; then prompt-to-prompt, away from the same embeddings."""

from collections.abc import Generator
from dataclasses import dataclass

from torch import Tensor

from ..pipeline import StableDiffusion
from ..sampler import Branch, Step
from ..tuning import Tuned, tune
from .common import Found, Job, Method, TuningKnobs, edit_beside, invert_source, knob, said
from .prompt_to_prompt import WordKnobs, controllers


@dataclass(frozen=True)
class NullTextKnobs(TuningKnobs, WordKnobs):
    learning_rate: float = knob(1e-2, "positive", "learning rate of Adam; at time step i this times 1 − i/100")


def invert(sd: StableDiffusion, job: Job, knobs: NullTextKnobs) -> Generator[Step, None, tuple[Tensor, list[Tuned]]]:
    """z*[T], and the tuned embeddings with the latents where they lead, noisiest first."""
    latents = yield from invert_source(sd, job, knobs)
    null, source = sd.embed(""), sd.embed(job.source)
    recipe = {"source": said(sd, job.source), **knobs.recipe()}
    tuned = job.kept.find("null embeddings", recipe, Tuned, (null.shape, job.latents.shape))
    how = {**knobs.tuning(decay=0.01), "unconditional": True, "stage": "null-text inversion"}
    yield from tune(sd, tuned, latents, null, source, **how)
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
    batch=3,
    paper_values={"solver": "adam", "inner_steps": 10},
)
