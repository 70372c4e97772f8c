"""Encode-Decode, a baseline of DiffEdit (Couairon et al. 2022): DDIM inversion with the empty prompt, part of the way
to noise, and DDIM sampling back with the target prompt."""

from collections.abc import Generator
from dataclasses import dataclass

from torch import Tensor

from ..pipeline import StableDiffusion
from ..sampler import Branch, Step, sample
from .common import Found, Job, Knobs, Method, knob, trajectory


@dataclass(frozen=True)
class EncodeDecodeKnobs(Knobs):
    ratio: float = knob(0.8, "fraction", "r, part of the steps that the picture is encoded", "diffusers' DiffEdit")


def invert(sd: StableDiffusion, job: Job, knobs: EncodeDecodeKnobs) -> Generator[Step, None, list[Tensor]]:
    """z*[0] … z*[int(r T)] of the DDIM inversion with the empty prompt, at guidance 1."""
    return (yield from trajectory(sd, job, "", knobs, int(knobs.steps * knobs.ratio)))


def edit(sd: StableDiffusion, job: Job, knobs: EncodeDecodeKnobs) -> Generator[Step, None, Found]:
    latents = yield from invert(sd, job, knobs)
    edited = Branch("edit", latents[-1], sd.embed(job.prompt), sd.embed(""))
    first = knobs.steps + 1 - len(latents)
    return (yield from sample(sd, [edited], knobs.schedule, knobs.guidance, recorders=job.recorders, first=first))


METHOD = Method(
    name="encode-decode",
    summary="DDIM inversion part of the way, then sampling back with the target prompt",
    paper="Couairon et al. 2022, a baseline",
    edit=edit,
    knobs=EncodeDecodeKnobs,
    invert=invert,
    strength="ratio",
    batch=2,
)
