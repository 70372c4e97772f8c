"""Direct inversion (PnP Inversion, Ju et al. 2023): after every step the source branch is put back on the trajectory of
its own DDIM inversion; then prompt-to-prompt or MasaCtrl. It is replayed: adding the difference would give the same."""

from collections.abc import Generator
from dataclasses import dataclass, fields

from ..pipeline import StableDiffusion
from ..sampler import Branch, Step
from .common import Found, Job, Knobs, Method, edit_beside, invert_source, knob
from .masactrl import MasaCtrlKnobs, mutual_attention
from .prompt_to_prompt import WordKnobs, controllers


@dataclass(frozen=True)
class DirectKnobs(MasaCtrlKnobs, WordKnobs):
    editor: str = knob("p2p", ("p2p", "masactrl"), "what edits: prompt-to-prompt or MasaCtrl, each with its own knobs")

    def idle(self) -> dict[str, str]:
        others = MasaCtrlKnobs if self.editor == "p2p" else WordKnobs
        own = {entry.name for entry in fields(others)} - {entry.name for entry in fields(Knobs)}
        return dict.fromkeys(own, f"editor {self.editor}")


def edit(sd: StableDiffusion, job: Job, knobs: DirectKnobs) -> Generator[Step, None, Found]:
    controls = controllers(sd, job, knobs) if knobs.editor == "p2p" else (mutual_attention(knobs),)
    latents = yield from invert_source(sd, job, knobs)
    null = sd.embed("")
    source = Branch("source", latents[-1], sd.embed(job.source), null, replay=latents[-2::-1])
    return (yield from edit_beside(sd, job, knobs, source, null, *controls))


METHOD = Method(
    name="direct",
    summary="the source held on its own inversion, then prompt-to-prompt or MasaCtrl",
    paper="Ju et al. 2023",
    edit=edit,
    knobs=DirectKnobs,
    invert=invert_source,
    needs_source=True,
    strength="cross_steps",
)
