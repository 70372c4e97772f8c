"""MasaCtrl (Cao et al. 2023): the edit looks into the source picture. Late in the steps and in the decoder, its
self-attention takes keys and values of the source; queries are its own."""

from collections.abc import Generator
from dataclasses import dataclass

from ..control import Control, Layer, Take
from ..pipeline import StableDiffusion
from ..sampler import Branch, Step
from .common import Found, Job, Knobs, Method, edit_beside, invert_source, knob


@dataclass(frozen=True)
class MasaCtrlKnobs(Knobs):
    first_step: int = knob(4, "count", "S, the first step with the source's keys and values, from 0")
    first_layer: int | None = knob(
        None,
        "count",
        "L, the first self-attention layer with them, from 0; if not given, the decoder's two finest levels",
    )


def mutual_attention(knobs: MasaCtrlKnobs) -> Control:
    """softmax(Q K_sourceᵀ / √d) V_source, each guidance row from the same one of the source."""

    def control(step: int, layer: Layer) -> dict[str, Take]:
        if knobs.first_layer is None:
            late = layer.part == "up" and layer.level <= 1  # from 10 on of Stable Diffusion 1.5's 16 layers
        else:
            late = layer.index >= knobs.first_layer
        if layer.kind == "self" and late and step >= knobs.first_step:
            return {"edit": Take(k="source", v="source", rows="both")}
        return {}

    return control


def edit(sd: StableDiffusion, job: Job, knobs: MasaCtrlKnobs) -> Generator[Step, None, Found]:
    latents = yield from invert_source(sd, job, knobs)
    null = sd.embed("")
    # an empty source prompt's two guidance rows would be the same: one serves both of the edit's
    source = Branch("source", latents[-1], sd.embed(job.source), null if job.source else None)
    return (yield from edit_beside(sd, job, knobs, source, null, mutual_attention(knobs)))


METHOD = Method(
    name="masactrl",
    summary="self-attention into the source picture: its keys and values",
    paper="Cao et al. 2023",
    edit=edit,
    knobs=MasaCtrlKnobs,
    invert=invert_source,
    strength="first_step",
)
