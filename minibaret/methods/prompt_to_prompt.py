"""Prompt-to-prompt (Hertz et al. 2022): the edit begins with the attention maps of a branch with the source prompt.

Only rows with a prompt take maps. All controllers of the original are linear in the values, so no map is in memory
(A: the edit's map, V: its values, j: a token of its prompt):

    self      A_source V                                     in layers of at most 32² tokens
    replace   (A_source M) V = A_source (M V)                prompts of equally many words
    refine    A_source (P diag(α) V) + A (diag(1 − α) V)     others: α_j = 1 where j has a partner in the source
    reweight  diag(c) V in place of V, in either of these    c_j: the weight of token j
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..control import Layer, Take
from ..maps import find_words
from ..models.tokenizer import LENGTH
from ..pipeline import StableDiffusion
from ..sampler import Branch, Step, sample
from .alignment import mixing
from .common import Found, Job, Knobs, Method, edit_beside, invert_source, knob, noise_like, random_numbers
from .local_blend import LocalBlend


@dataclass(frozen=True)
class WordKnobs(Knobs):
    self_steps: float = knob(0.4, "fraction", "part of the steps, the first, with the source's self maps")
    cross_steps: float = knob(0.8, "fraction", "part of the steps, the first, with its cross maps", "PIE-Bench: 0.4")
    reweight: tuple[tuple[str, float], ...] = knob((), "weights", "attention to words of the prompt, times a number")
    blend: str | None = knob(None, "word", "words: the edit changes only where it or the source looks at them")


def controllers(sd: StableDiffusion, job: Job, knobs: WordKnobs) -> tuple:
    """Control, recorders and `after` of `edit_beside`. Raises InputError for words that the prompts do not have."""
    blend = LocalBlend(sd, job, knobs.blend) if knobs.blend else None
    mixed = cross_takes(sd, job, knobs)
    tau_self, tau_cross = knobs.first(knobs.self_steps), knobs.first(knobs.cross_steps)

    def control(step: int, layer: Layer) -> dict[str, Take | list[Take]]:
        if layer.kind == "self" and layer.tokens <= 32**2 and step < tau_self:
            return {"edit": Take(q="source", k="source")}
        if layer.kind == "cross" and step < tau_cross:
            return {"edit": mixed}
        return {}

    return (control, [blend], blend.after) if blend else (control, (), None)


def cross_takes(sd: StableDiffusion, job: Job, knobs: WordKnobs) -> list[Take]:
    """Replace or refine, and reweight."""
    weights = torch.ones(LENGTH)
    places = find_words([word for word, _ in knobs.reweight], job.prompt, sd.tokenizer, "reweight")
    for tokens, (_, weight) in zip(places, knobs.reweight):
        weights[tokens] = weight
    taken, own = mixing(job.source, job.prompt, sd.tokenizer)
    takes = [Take(q="source", k="source", words=(taken * weights).to(sd.device))]
    return takes if own is None else [*takes, Take(words=(own * weights).to(sd.device))]


def edit(sd: StableDiffusion, job: Job, knobs: WordKnobs) -> Generator[Step, None, Found]:
    """From where the DDIM inversion of the picture ends (PIE-Bench's "DDIM + P2P")."""
    controls = controllers(sd, job, knobs)
    latents = yield from invert_source(sd, job, knobs)
    return (yield from pair(sd, job, knobs, latents[-1], controls))


def generate(
    sd: StableDiffusion, source_prompt: str | None, prompt: str, knobs: WordKnobs, shape: Sequence[int], seed: int = 0
) -> Generator[Step, None, Found]:
    """Makes a picture, or with a source prompt two from the same noise, instead of editing one: returns the latents of
    "edit" and "source". shape: of the latents, (1, 4, h, w); seed: of the noise, which is the same on every device."""
    noise = noise_like(torch.empty(*shape, device=sd.device), random_numbers(seed))
    if source_prompt is None:
        target, null = sd.embed(prompt), sd.embed("")
        return (yield from sample(sd, [Branch("edit", noise, target, null)], knobs.schedule, knobs.guidance))
    job = Job(noise, prompt, source_prompt, pictures=("source",))
    return (yield from pair(sd, job, knobs, noise, controllers(sd, job, knobs)))


def pair(sd: StableDiffusion, job: Job, knobs: WordKnobs, start: Tensor, controls: tuple) -> Generator:
    """Both branches, from the same noise."""
    source, null = sd.embed(job.source), sd.embed("")
    return edit_beside(sd, job, knobs, Branch("source", start, source, null), null, *controls)


METHOD = Method(
    name="prompt-to-prompt",
    summary="attention maps of the source prompt, mapped to the words of the target's",
    paper="Hertz et al. 2022",
    edit=edit,
    knobs=WordKnobs,
    invert=invert_source,
    needs_source=True,
    strength="cross_steps",
)
