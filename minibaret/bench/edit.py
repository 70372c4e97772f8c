"""The edit stage as shipped against the naive batch of six rows, with plain attention and with materialised maps."""

import argparse
from collections.abc import Iterator

import torch
from torch import Tensor

from ..errors import InputError
from ..methods.baret import METHOD, BaretKnobs
from ..methods.common import Job
from ..pipeline import StableDiffusion
from ..sampler import Branch, sample
from ..tuning import Tuned
from . import common, naive

SHIPPED, NAIVE, MAPS = WAYS = ("shipped", "six rows, SDPA", "six rows, maps")
KINDS = ("self and cross injected", "cross injected", "nothing injected")
PROMPT = "a brown dog lying down on grass"
WHOLE = BaretKnobs()  # the paper's 50 steps
EQUAL = 1e-4  # of the latents' size, in float32


class Prepared(common.Given):
    """Noise for z*[T], embeddings near the prompt's
    that stand for E[i], and the latents where these lead."""

    def __init__(self, sd: StableDiffusion, side: int, knobs: BaretKnobs):
        torch.manual_seed(0)
        self.target, self.null = sd.embed(PROMPT), sd.embed("")
        self.noise = torch.randn(1, sd.config.unet.latent_channels, side, side, device=sd.device)
        self.embeddings = [self.target + 0.1 * torch.randn_like(self.target) for _ in range(knobs.steps)]
        alone = Branch("reconstruction", self.noise, self.embeddings, self.null)
        steps = sample(sd, [alone], knobs.schedule, knobs.guidance, wanted=["reconstruction"])
        tuned = [Tuned(e, step.latents, torch.zeros(1)) for e, step in zip(self.embeddings, steps)]
        super().__init__(trajectory=[(self.noise,)] * (knobs.steps + 1), target_embeddings=tuned)


def ways(sd: StableDiffusion, found: Prepared, knobs: BaretKnobs) -> dict[str, Iterator[Tensor]]:
    """The edit's latents after every step, by each way."""
    job = Job(found.noise, PROMPT, kept=found)
    naively = (sd.unet, found.noise, found.embeddings, found.target, found.null, knobs)
    return {
        SHIPPED: (step.latents for step in METHOD.edit(sd, job, knobs)),
        NAIVE: naive.edit(*naively, naive.gathered),
        MAPS: naive.edit(*naively, naive.materialised),
    }


@torch.no_grad()
def bench(options: argparse.Namespace) -> None:
    """The time of an edit of 50 steps is put together from the medians of its three kinds of steps, so that a network
    of Stable Diffusion 1.5's size needs one step of each."""
    model, side, facts = common.begin(options, many=1, few=1)
    sd, three = StableDiffusion(model), BaretKnobs(steps=3)
    knobs = BaretKnobs(steps=options.steps or (3 if options.slow else 50))
    if knobs.steps < 3:
        raise InputError(f"steps must be at least 3, so that there is one of every kind, got {knobs.steps}")
    found = Prepared(sd, side, knobs)
    if not options.slow:
        for work in ways(sd, found, three).values():  # compiles, allocates; does not count
            list(work)
    samples: list[tuple[str, str, int, float]] = []  # way, kind of step, rows, milliseconds
    for _ in range(options.rounds):
        finals = run_in_turns(ways(sd, found, knobs), knobs, sd, samples)
    lines = tabulate(samples)
    edits = {line["way"]: line["median_ms"] for line in lines if line["steps"] == "edit"}
    apart = max(((finals[way] - finals[NAIVE]).abs().max() / finals[NAIVE].std()).item() for way in (SHIPPED, MAPS))
    print(f"the edits' final latents differ by {apart:.1e} of their size at most\n")
    runs = {way: lambda way=way: list(ways(sd, found, three)[way]) for way in WAYS}
    ratios = {
        f"ratio_to_{name}": round(edits[SHIPPED] / edits[way], 4) for name, way in (("naive", NAIVE), ("maps", MAPS))
    }
    common.finish(options, facts, lines, runs, **ratios, latents_difference=apart)
    if options.dtype == torch.float32 and not apart <= EQUAL:
        raise RuntimeError(f"the edits must be equal within {EQUAL:g} of their size, but differ by {apart:.1e}")


def run_in_turns(
    works: dict[str, Iterator[Tensor]], knobs: BaretKnobs, sd: StableDiffusion, samples: list
) -> dict[str, Tensor]:
    """Every way's first step, every way's second step, …, another way first each time; returns the final latents."""
    finals, order = {}, list(works)
    for index in range(knobs.steps):
        for way in order:
            before = sd.counts.row_forwards
            took = common.milliseconds(lambda way=way: finals.update({way: next(works[way])}), 1, sd.device)
            rows = sd.counts.row_forwards - before if way == SHIPPED else len(naive.SELF)
            samples.append((way, kind_of(index, knobs), rows, took))
        order.append(order.pop(0))
    return finals


def kind_of(step: int, knobs: BaretKnobs) -> str:
    return KINDS[(step >= knobs.first(knobs.self_steps)) + (step >= knobs.first(knobs.cross_steps))]


def tabulate(samples: list[tuple[str, str, int, float]]) -> list[dict]:
    """The time of every kind of step by every way, and of a whole edit, put together from them."""
    kinds = [kind_of(index, WHOLE) for index in range(WHOLE.steps)]
    lines, edits = [], {way: {"steps": "edit", "way": way, "count": WHOLE.steps} for way in WAYS}
    for kind in KINDS:
        for way in WAYS:
            rows, times = zip(*((rows, took) for *which, rows, took in samples if which == [way, kind]))
            line = {"steps": kind, "way": way, "count": kinds.count(kind), "rows": rows[0], "samples": len(times)}
            lines.append(line | common.spread(list(times)))
            for key in ("rows", "median_ms", "low_ms", "high_ms"):
                edits[way][key] = round(edits[way].get(key, 0) + line["count"] * lines[-1][key], 4)
    lines += edits.values()
    plain = {line["steps"]: line["median_ms"] for line in lines if line["way"] == NAIVE}
    return [line | {"ratio_to_naive": round(line["median_ms"] / plain[line["steps"]], 4)} for line in lines]
