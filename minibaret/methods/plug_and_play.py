"""Plug-and-play diffusion features (Tumanyan et al. 2022; pnp-diffusers): the edit has the source picture's layout, by
the self-attention maps and the features of one layer that a replay of its inversion has in the decoder."""

from collections.abc import Generator
from dataclasses import dataclass

from torch import Tensor

from ..control import Layer, Take
from ..pipeline import StableDiffusion
from ..sampler import Branch, Step
from .common import Found, Job, Knobs, Method, edit_beside, knob, trajectory


@dataclass(frozen=True)
class PlugAndPlayKnobs(Knobs):
    self_steps: float = knob(0.5, "fraction", "part of the steps, the first, with the source's self maps")
    feature_steps: float = knob(0.8, "fraction", "part of the steps, the first, with the source's features")


def decoder_layers(layers: list[Layer]) -> tuple[list[Layer], Layer]:
    """Whose self maps are taken: all of the decoder's but the first; whose features: what the second ResBlock of its
    first level with attention adds to its input (in Stable Diffusion 1.5 up_blocks[1].resnets[1])."""
    attending = [layer for layer in layers if layer.kind == "self" and layer.part == "up"]
    coarsest = attending[0].level
    resblocks = [x for x in layers if x.kind == "features" and x.part == "up" and x.level == coarsest]
    return attending[1:], resblocks[1]


def invert(sd: StableDiffusion, job: Job, knobs: PlugAndPlayKnobs) -> Generator[Step, None, list[Tensor]]:
    return (yield from trajectory(sd, job, "", knobs))


def edit(sd: StableDiffusion, job: Job, knobs: PlugAndPlayKnobs) -> Generator[Step, None, Found]:
    latents = yield from invert(sd, job, knobs)
    attending, resblock = decoder_layers(sd.unet.layers(*job.latents.shape[-2:]))
    last_self, last_features = knobs.first(knobs.self_steps), knobs.first(knobs.feature_steps)

    def control(step: int, layer: Layer) -> dict[str, Take]:
        if layer in attending and step < last_self:
            return {"edit": Take(q="source", k="source", rows="both")}
        if layer == resblock and step < last_features:
            return {"edit": Take(v="source", rows="both")}
        return {}

    null = sd.embed("")
    source = Branch("source", latents[-1], null, replay=latents[-2::-1])  # without guidance: one row
    return (yield from edit_beside(sd, job, knobs, source, null, control))


METHOD = Method(
    name="plug-and-play",
    summary="self-attention maps and features of the source in the decoder",
    paper="Tumanyan et al. 2022",
    edit=edit,
    knobs=PlugAndPlayKnobs,
    invert=invert,
    strength="self_steps",
    batch=3,
)
