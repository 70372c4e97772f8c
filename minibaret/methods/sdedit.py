"""SDEdit (Meng et al. 2021), known as img2img: noise is added to the picture, as much as it has at some time step, and
from there it is sampled with the target prompt."""

from collections.abc import Generator
from dataclasses import dataclass

from ..pipeline import StableDiffusion
from ..sampler import Branch, Step, sample
from .common import Found, Job, Knobs, Method, knob, noise_like, random_numbers


@dataclass(frozen=True)
class SDEditKnobs(Knobs):
    strength: float = knob(0.8, "fraction", "s, part of the steps that are sampled", "diffusers' img2img")
    seed: int = knob(0, "count", "of the noise")


def edit(sd: StableDiffusion, job: Job, knobs: SDEditKnobs) -> Generator[Step, None, Found]:
    schedule, start = knobs.schedule, job.latents
    first = knobs.steps - int(knobs.steps * knobs.strength)
    if first < knobs.steps:  # √ᾱ z0 + √(1 − ᾱ) n, at the first timestep that is sampled
        start = schedule.add_noise(start, noise_like(start, random_numbers(knobs.seed)), schedule.timesteps[first])
    edited = Branch("edit", start, sd.embed(job.prompt), sd.embed(""))
    return (yield from sample(sd, [edited], schedule, knobs.guidance, recorders=job.recorders, first=first))


METHOD = Method(
    name="sdedit",
    summary="noise added to the picture part of the way, then sampling back with the target prompt",
    paper="Meng et al. 2021",
    edit=edit,
    knobs=SDEditKnobs,
    strength="strength",
    batch=2,
)
