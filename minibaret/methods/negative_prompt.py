"""Negative-prompt inversion (Miyake et al. 2023): null-text inversion would end near the source prompt's embedding, so
that one stands in for the empty prompt's at every step and nothing is tuned; then prompt-to-prompt."""

from collections.abc import Generator

from ..pipeline import StableDiffusion
from ..sampler import Branch, Step
from .common import Found, Job, Method, edit_beside, invert_source
from .prompt_to_prompt import WordKnobs, controllers


class NegativePromptKnobs(WordKnobs):
    """Prompt-to-prompt's, in a class of their own: knobs tell which method they are of."""


def edit(sd: StableDiffusion, job: Job, knobs: NegativePromptKnobs) -> Generator[Step, None, Found]:
    controls = controllers(sd, job, knobs)
    latents = yield from invert_source(sd, job, knobs)
    embedding = sd.embed(job.source)
    source = Branch("source", latents[-1], embedding)  # guidance from a prompt to itself is none
    return (yield from edit_beside(sd, job, knobs, source, embedding, *controls))


METHOD = Method(
    name="negative-prompt",
    summary="guidance away from the source prompt, with prompt-to-prompt",
    paper="Miyake et al. 2023",
    edit=edit,
    knobs=NegativePromptKnobs,
    invert=invert_source,
    needs_source=True,
    strength="cross_steps",
    batch=3,
)
