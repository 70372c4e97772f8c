"""Imagic (Kawar et al. 2022), in the order of its section 3.2.

    A. the target prompt's embedding is tuned, a little, towards the picture: e_opt
    B. a copy of the UNet is tuned until e_opt gives the picture
    C. the copy samples a mixture of the target's embedding and e_opt, from noise

The paper's models are closed; the numbers here are those of the public versions for Stable Diffusion.
"""

from collections.abc import Generator
from dataclasses import dataclass

from torch import Tensor

from ..pipeline import StableDiffusion
from ..sampler import Branch, Step, sample
from .common import Found, Job, Knobs, Method, interpolate, knob, noise_like, random_numbers, said
from .fine_tuning import copy_to_tune, fine_tune


@dataclass(frozen=True)
class ImagicKnobs(Knobs):
    guidance: float = knob(3.0, "number", "w, the scale of classifier-free guidance", "public versions")
    target_weight: float = knob(0.8, "number", "a, the weight of the target's embedding; 1 − a is the tuned one's")
    embedding_steps: int = knob(500, "count", "Adam steps on the embedding", "public versions")
    embedding_rate: float = knob(1e-3, "positive", "learning rate of the embedding", "public versions")
    unet_steps: int = knob(1000, "count", "Adam steps on the copy of the UNet", "public versions")
    unet_rate: float = knob(1e-6, "positive", "learning rate of the copy of the UNet", "public versions")
    seed: int = knob(0, "count", "of the noise that is sampled from, and of both tunings")


def invert(sd: StableDiffusion, job: Job, knobs: ImagicKnobs) -> Generator[Step, None, Tensor]:
    """e_opt (1, 77, width), kept once it is finished. The copy of the UNet is not kept: it is as large as the model."""
    target = sd.embed(job.prompt)
    names = ("embedding_steps", "embedding_rate", "seed")
    recipe = {"prompt": said(sd, job.prompt), **{name: getattr(knobs, name) for name in names}}
    found = job.kept.find("embedding near the target", recipe, shapes=(target.shape,))
    if not found:
        embedding = target.detach().clone().requires_grad_()
        yield from fine_tune(
            sd, job.latents, lambda: embedding, [embedding],
            steps=knobs.embedding_steps, learning_rate=knobs.embedding_rate,
            numbers=random_numbers(knobs.seed), stage="embedding tuning",
        )  # fmt: skip
        found.append((embedding.detach(),))
    return found[0][0]


def edit(sd: StableDiffusion, job: Job, knobs: ImagicKnobs) -> Generator[Step, None, Found]:
    target, null = sd.embed(job.prompt), sd.embed("")
    e_opt = yield from invert(sd, job, knobs)  # A
    numbers = random_numbers(knobs.seed)
    start = noise_like(job.latents, numbers)
    unet = copy_to_tune(sd.unet)
    tuned = sd.with_unet(unet)
    yield from fine_tune(  # B
        tuned, job.latents, lambda: e_opt, list(unet.parameters()),
        steps=knobs.unet_steps, learning_rate=knobs.unet_rate, numbers=numbers, stage="UNet tuning",
    )  # fmt: skip
    edited = Branch("edit", start, interpolate(target, e_opt, knobs.target_weight), null)  # C
    return (yield from sample(tuned, [edited], knobs.schedule, knobs.guidance, recorders=job.recorders))


METHOD = Method(
    name="imagic",
    summary="an embedding, then a copy of the UNet, tuned on the picture; samples towards the target from noise",
    paper="Kawar et al. 2022",
    edit=edit,
    knobs=ImagicKnobs,
    invert=invert,
    strength="target_weight",
    tunes="target embedding, copy of UNet",
    keeps="embedding near the target",
    copies=("unet",),
    batch=2,
)
