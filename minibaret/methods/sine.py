"""SINE (Zhang et al. 2022), in the order of its sections 3.1 and 3.2: a copy of the networks learns the picture under
its source prompt, and leads the base model's sampling of the target prompt while the picture's layout is decided.

As in the authors' code, the UNet and the text encoder are tuned, and guidance leads away from the base model's noise.
Their training on crops, for pictures of other sizes than the model's, is left out.
"""

from collections.abc import Generator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..control import RowControl
from ..models.unet import UNet
from ..pipeline import StableDiffusion
from ..sampler import Branch, Step, sample
from .common import Found, Job, Knobs, Method, knob, noise_like, random_numbers
from .fine_tuning import copy_to_tune, fine_tune


@dataclass(frozen=True)
class SineKnobs(Knobs):
    source_weight: float = knob(0.3, "fraction", "b, the weight of the tuned networks' noise", "the authors' code")
    mix_until: int = knob(400, "count", "K, the last timestep at which the noises are mixed", "the authors' code")
    tuning_steps: int = knob(800, "count", "Adam steps on the copies", "the authors' code")
    learning_rate: float = knob(1e-6, "positive", "of the copies", "the authors' code")
    seed: int = knob(0, "count", "of the noise that is sampled from, and of the tuning")


@dataclass(frozen=True)
class Mixed:
    """Predicts noise for `sample`: the base model's, in the row with the prompt mixed with the tuned copies'."""

    base: StableDiffusion
    tuned: StableDiffusion
    source: Tensor  # embedding of the source prompt, by the tuned text encoder (1, 77, width)
    knobs: SineKnobs

    @property
    def unet(self) -> UNet:
        return self.base.unet

    def eps(self, latents: Tensor, timestep: int, context: Tensor, control: RowControl | None = None) -> Tensor:
        """latents (2, 4, h, w) and context (2, 77, width): of the empty prompt, then of the target."""
        null, target = self.base.eps(latents, timestep, context, control).split(1)
        if timestep >= self.knobs.mix_until:
            source = self.tuned.eps(latents[1:], timestep, self.source)
            target = (1 - self.knobs.source_weight) * target + self.knobs.source_weight * source
        return torch.cat([null, target])


def edit(sd: StableDiffusion, job: Job, knobs: SineKnobs) -> Generator[Step, None, Found]:
    numbers = random_numbers(knobs.seed)
    start = noise_like(job.latents, numbers)
    target, null = sd.embed(job.prompt), sd.embed("")
    ids = torch.tensor([sd.tokens(job.source)], device=sd.device)
    text_encoder, unet = copy_to_tune(sd.network("text_encoder")), copy_to_tune(sd.network("unet"))
    tuned = sd.with_unet(unet)
    yield from fine_tune(
        tuned, job.latents, lambda: text_encoder(ids), [*text_encoder.parameters(), *unet.parameters()],
        steps=knobs.tuning_steps, learning_rate=knobs.learning_rate, numbers=numbers, stage="fine-tuning",
    )  # fmt: skip
    with torch.no_grad():
        mixed = Mixed(sd, tuned, text_encoder(ids), knobs)
    edited = Branch("edit", start, target, null)
    return (yield from sample(mixed, [edited], knobs.schedule, knobs.guidance, recorders=job.recorders))


METHOD = Method(
    name="sine",
    summary="a copy of the networks tuned on the picture leads the base model's first steps",
    paper="Zhang et al. 2022",
    edit=edit,
    knobs=SineKnobs,
    needs_source=True,
    strength="source_weight",
    tunes="copies of UNet and text encoder",
    copies=("unet", "text_encoder"),
    batch=2,
)
