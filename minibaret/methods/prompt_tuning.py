"""Prompt Tuning Inversion (Dong et al. 2023): the target's embedding is tuned until guided sampling leads back to the
picture; the edit is sampled with a mixture of the tuned embedding and the target's. No attention control.

It is BARET without its last stage: target-text inversion, and one constant weight instead of a progressive transition.
"""

from collections.abc import Generator
from dataclasses import dataclass

from torch import Tensor

from ..pipeline import StableDiffusion
from ..sampler import Branch, Step, sample
from ..tuning import Tuned
from . import baret
from .common import Found, Job, Method, TuningKnobs, interpolate, knob


@dataclass(frozen=True)
class PromptTuningKnobs(TuningKnobs):
    eta: float = knob(
        0.1, "fraction", "η, the weight of the tuned embedding; 1 − η is the target's", "a reimplementation"
    )
    learning_rate: float = knob(
        1e-2, "positive", "learning rate of Adam; at time step i this times 1 − i/100", "a reimplementation"
    )
    tolerance: tuple[float, float] = knob((0.0, 0.0), "pair", "as BARET's; 0: no time step ends early")


def invert(
    sd: StableDiffusion, job: Job, knobs: PromptTuningKnobs
) -> Generator[Step, None, tuple[Tensor, list[Tuned]]]:
    """DDIM inversion with the empty prompt, then target-text inversion: z*[T]; E[i] and where
    it leads, noisiest first."""
    return (yield from baret.invert(sd, job, baret.BaretKnobs(**knobs.recipe(), inversion_prompt="null"), decay=0.01))


def edit(sd: StableDiffusion, job: Job, knobs: PromptTuningKnobs) -> Generator[Step, None, Found]:
    noise, tuned = yield from invert(sd, job, knobs)
    mixed = [interpolate(step.embedding, sd.embed(job.prompt), knobs.eta) for step in tuned]
    edited = Branch("edit", noise, mixed, sd.embed(""))
    found = yield from sample(sd, [edited], knobs.schedule, knobs.guidance, recorders=job.recorders)
    return {"reconstruction": tuned[-1].latents, **found}


METHOD = Method(
    name="prompt-tuning",
    summary="target-text inversion, then sampling with a mixture of the tuned embedding and the target's",
    paper="Dong et al. 2023",
    edit=edit,
    knobs=PromptTuningKnobs,
    invert=invert,
    strength="eta",
    tunes="target embedding",
    keeps="target embeddings",
    batch=2,
    paper_values={"solver": "adam", "inner_steps": 10},
)
