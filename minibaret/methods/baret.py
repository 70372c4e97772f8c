"""BARET: Balanced Attention based Real image Editing driven by Target-text Inversion (Wang et al. 2023), in the order
of the paper's equations.

    1. DDIM inversion            z*[0] … z*[T]: the picture becomes noise
    2. target-text inversion     E[i]: the embedding that leads back to the picture          Eq. 1, 2, Algorithm 1
    3. progressive transition    e_tr[i], from E[i] towards the target's embedding           Eq. 3
    4. balanced attention        whose attention maps the edit takes                         Eq. 4, 5

Reconstruction, transition and edit start from the same noise and are sampled together. The reconstruction has been
sampled already, by target-text inversion, so it is replayed: its rows only supply attention maps.
"""

from collections.abc import Generator
from dataclasses import dataclass

from torch import Tensor

from ..control import Layer, Take
from ..pipeline import StableDiffusion
from ..sampler import Branch, Step, sample
from ..tuning import Tuned, tune
from .common import TOLERANCE, Found, Job, Method, TuningKnobs, interpolate, knob, said, trajectory


@dataclass(frozen=True)
class BaretKnobs(TuningKnobs):
    tolerance: tuple[float, float] = knob((1e-5, 2e-5), "pair", TOLERANCE, "ours, as null-text inversion's")
    transition: tuple[float, float] = knob((0.8, 0.1), "fractions", "η, the weight of the tuned embedding: first:last")
    rigid: bool = knob(False, "flag", "η = 1, for edits of style, background or object")
    self_steps: float = knob(0.3, "fraction", "τ_s: part of the steps, the first, with the reconstruction's self maps")
    cross_steps: float = knob(0.6, "fraction", "τ_c: part of the steps, the first, with the transition's cross maps")
    rows: str = knob("cond", ("cond", "both"), "guidance rows that take maps", "ours")
    inversion_prompt: str = knob("target", ("target", "null"), "prompt of the DDIM inversion", "ours")

    def idle(self) -> dict[str, str]:
        return super().idle() | ({"transition": "rigid"} if self.rigid else {})


def invert(
    sd: StableDiffusion, job: Job, knobs: BaretKnobs, decay: float = 0.0
) -> Generator[Step, None, tuple[Tensor, list[Tuned]]]:
    """DDIM inversion, then target-text inversion: z*[T]; E[i] and the latents Z_rec[i + 1] where it leads, noisiest
    first. decay: of Adam's learning rate, per time step."""
    target, null = sd.embed(job.prompt), sd.embed("")
    prompt = job.prompt if knobs.inversion_prompt == "target" else ""
    latents = yield from trajectory(sd, job, prompt, knobs)
    recipe = {"prompt": said(sd, job.prompt), "inversion_prompt": knobs.inversion_prompt}
    recipe |= {**knobs.recipe(), "rate_decay": decay}
    tuned = job.kept.find("target embeddings", recipe, Tuned, (target.shape, job.latents.shape))
    yield from tune(sd, tuned, latents, target, null, **knobs.tuning(decay), stage="target-text inversion")
    return latents[-1], tuned


def etas(knobs: BaretKnobs) -> list[float]:
    """η for each step, noisiest first, linear with both ends included; 1 throughout where the edit is rigid."""
    first, last = (1.0, 1.0) if knobs.rigid else knobs.transition
    return [first + (last - first) * index / max(knobs.steps - 1, 1) for index in range(knobs.steps)]


def edit(sd: StableDiffusion, job: Job, knobs: BaretKnobs) -> Generator[Step, None, Found]:
    noise, tuned = yield from invert(sd, job, knobs)  # Eq. 1, 2
    target, null = sd.embed(job.prompt), sd.embed("")
    e_tr = [interpolate(step.embedding, target, eta) for step, eta in zip(tuned, etas(knobs))]  # Eq. 3
    reconstruction = Branch("reconstruction", noise, [e for e, *_ in tuned], null, replay=[z for _, z, _ in tuned])
    transition, edited = Branch("transition", noise, e_tr, null), Branch("edit", noise, target, null)
    branches = [reconstruction, edited] if knobs.rigid else [reconstruction, transition, edited]
    tau_self, tau_cross = knobs.first(knobs.self_steps), knobs.first(knobs.cross_steps)
    middle = "reconstruction" if knobs.rigid else "transition"

    def control(step: int, layer: Layer) -> dict[str, Take]:
        if layer.kind == "self" and step < tau_self:  # Eq. 4: softmax(Q_rec K_recᵀ / √d) V_edit
            return {"edit": Take(q="reconstruction", k="reconstruction", rows=knobs.rows)}
        if layer.kind == "cross" and step < tau_cross:  # Eq. 5: softmax(Q_tr K_trᵀ / √d) V_edit
            return {"edit": Take(q=middle, k=middle, rows=knobs.rows)}
        return {}

    wanted, recorders = job.wanted(branches), job.recorders
    found = yield from sample(sd, branches, knobs.schedule, knobs.guidance, control, wanted, recorders=recorders)
    return {"transition": found["reconstruction"], **found} if knobs.rigid else found


METHOD = Method(
    name="baret",
    summary="target-text inversion, then attention maps of a reconstruction and of a transition to the target",
    paper="Wang et al. 2023",
    edit=edit,
    knobs=BaretKnobs,
    invert=invert,
    strength="self_steps",
    tunes="target embedding",
    keeps="target embeddings",
    batch=6,
    paper_values={"solver": "adam", "inner_steps": 5},
)
