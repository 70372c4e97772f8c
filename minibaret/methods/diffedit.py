"""DiffEdit (Couairon et al. 2022), in the order of its section 3.2.

1. mask      where the target prompt and the source prompt (or the empty one) predict different noise
2. encode    DDIM inversion with the empty prompt, part of the way; every latent is kept
3. decode    sampling with the target prompt; outside the mask, every step puts back the latent that was kept
"""

from collections.abc import Generator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..pipeline import StableDiffusion
from ..sampler import Branch, Step, sample
from . import encode_decode
from .common import Found, Job, Method, knob, noise_like, random_numbers

NOISES = 10  # that the difference is the mean over
CLAMP = 3  # times the mean difference is as much as counts


@dataclass(frozen=True)
class DiffEditKnobs(encode_decode.EncodeDecodeKnobs):
    threshold: float = knob(0.5, "fraction", "of the mask, as part of three times the mean difference")
    seed: int = knob(0, "count", "of the noises that the mask is found with")


def find_mask(sd: StableDiffusion, job: Job, knobs: DiffEditKnobs) -> Generator[Step, None, Tensor]:
    """Where the picture is to change: bool (1, 1, h, w). Both prompts predict the noise in the picture, halfway through
    the schedule and without guidance; where the two are as good as equal, nothing is to change."""
    context = torch.cat([sd.embed(job.source), sd.embed(job.prompt)])
    timestep = knobs.schedule.timesteps[-max(knobs.steps // 2, 1)]
    difference = torch.zeros_like(job.latents[:, :1])
    for index, noise in enumerate(noise_like(job.latents, random_numbers(knobs.seed), NOISES).split(1)):
        noisy = knobs.schedule.add_noise(job.latents, noise, timestep)
        with torch.no_grad():
            source, target = sd.eps(torch.cat([noisy, noisy]), timestep, context).split(1)
        difference += (target - source).abs().mean(1, keepdim=True) / NOISES
        yield Step("mask", index, NOISES, noisy)
    most = CLAMP * difference.mean()
    return difference.clamp(max=most) > knobs.threshold * most


def edit(sd: StableDiffusion, job: Job, knobs: DiffEditKnobs) -> Generator[Step, None, Found]:
    mask = yield from find_mask(sd, job, knobs)
    encoded = yield from encode_decode.invert(sd, job, knobs)
    edited = Branch("edit", encoded[-1], sd.embed(job.prompt), sd.embed(""))

    def put_back(step: int, latents: Found) -> Found:
        reached = encoded[knobs.steps - 1 - step]  # of the timestep that the step leads to; z0 after the last
        return {"edit": torch.where(mask, latents["edit"], reached)}

    return (
        yield from sample(
            sd, [edited], knobs.schedule, knobs.guidance,
            after=put_back, recorders=job.recorders, first=knobs.steps + 1 - len(encoded),
        )
    )  # fmt: skip


METHOD = Method(
    name="diffedit",
    summary="a mask where the prompts predict different noise; outside it the picture is put back at every step",
    paper="Couairon et al. 2022",
    edit=edit,
    knobs=DiffEditKnobs,
    invert=encode_decode.invert,
    strength="ratio",
    batch=2,
)
