"""The edit stage as shipped against the naive batch of six rows, with plain attention and with materialised maps."""

import argparse
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from ..errors import InputError
from ..inversion import Inversion
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


class Prepared(Inversion):
    """What an inversion would have left behind, whatever the recipe: noise for z*[T], embeddings near the prompt's
    that stand for E[i], and the latents where these lead."""

    def __init__(self, sd: StableDiffusion, side: int, knobs: BaretKnobs):
        super().__init__()
        torch.manual_seed(0)
        self.target, self.null = sd.embed(PROMPT), sd.embed("")
        self.noise = torch.randn(1, sd.config.unet.latent_channels, side, side, device=sd.device)
        self.embeddings = [self.target + 0.1 * torch.randn_like(self.target) for _ in range(knobs.steps)]
        alone = Branch("reconstruction", self.noise, self.embeddings, self.null)
        steps = sample(sd, [alone], knobs.schedule, knobs.guidance, wanted=["reconstruction"])
        tuned = [Tuned(e, step.latents, torch.zeros(1)) for e, step in zip(self.embeddings, steps)]
        self.lists = {"trajectory": [(self.noise,)] * (knobs.steps + 1), "target embeddings": tuned}

    def find(self, name: str, *_, **__) -> list:
        return self.lists[name]


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
    times: dict[tuple[str, str], list[float]] = {}
    rows: dict[tuple[str, str], int] = dict.fromkeys(((way, kind) for way in WAYS for kind in KINDS), 6)
    for _ in range(options.rounds):
        finals = run_in_turns(ways(sd, found, knobs), knobs, sd, times, rows)
    lines = tabulate(times, rows)
    edits = {line["way"]: line["median_ms"] for line in lines if line["steps"] == "edit"}
    columns = {"steps": "{steps}", "of 50": "{count}", "way": "{way}", "rows": "{rows}", **common.TIMES}
    print(common.table(lines, columns | {"of SDPA": "{ratio_to_naive:.3f}"}))
    apart = max(relative(finals[way], finals[NAIVE]) for way in (SHIPPED, MAPS))
    result = {
        "card": facts,
        "table": lines,
        "ratio_to_naive": round(edits[SHIPPED] / edits[NAIVE], 4),
        "ratio_to_maps": round(edits[SHIPPED] / edits[MAPS], 4),
        "latents_difference": apart,
    }
    print(f"\nshipped / {NAIVE}: {result['ratio_to_naive']:.3f}, shipped / {MAPS}: {result['ratio_to_maps']:.3f}")
    print(f"the edits' final latents differ by {apart:.1e} of their size at most")
    common.write_trace(options, {way: lambda way=way: list(ways(sd, found, three)[way]) for way in WAYS})
    common.finish(options, result)
    if options.dtype == torch.float32 and not apart <= EQUAL:
        raise RuntimeError(f"the edits must be equal within {EQUAL:g} of their size, but differ by {apart:.1e}")


def run_in_turns(
    works: dict[str, Iterator[Tensor]], knobs: BaretKnobs, sd: StableDiffusion, times: dict, rows: dict
) -> dict[str, Tensor]:
    """Every way's first step, every way's second step, …, another way first each time. Adds milliseconds to `times`
    and the rows of the shipped batches to `rows`, by way and kind of step; returns the final latents."""
    finals, order = {}, list(works)
    for index in range(knobs.steps):
        for way in order:
            common.synchronize(sd.device)
            before, begin = sd.counts.row_forwards, time.perf_counter()
            finals[way] = next(works[way])
            common.synchronize(sd.device)
            times.setdefault((way, kind_of(index, knobs)), []).append((time.perf_counter() - begin) * 1e3)
            if way == SHIPPED:
                rows[way, kind_of(index, knobs)] = sd.counts.row_forwards - before
        order.append(order.pop(0))
    return finals


def kind_of(step: int, knobs: BaretKnobs) -> str:
    return KINDS[(step >= knobs.first(knobs.self_steps)) + (step >= knobs.first(knobs.cross_steps))]


def tabulate(times: dict, rows: dict) -> list[dict]:
    """The time of every kind of step by every way, and of a whole edit, put together from them."""
    lines = []
    for kind in KINDS:
        count = [kind_of(index, WHOLE) for index in range(WHOLE.steps)].count(kind)
        for way in WAYS:
            many = {"count": count, "rows": rows[way, kind], "samples": len(times[way, kind])}
            lines.append({"steps": kind, "way": way, **many, **common.spread(times[way, kind])})
    for way in WAYS:
        parts = [line for line in lines if line["way"] == way]
        sums = {
            key: round(sum(line["count"] * line[key] for line in parts), 4) for key in ("rows", *common.spread([0.0]))
        }
        lines.append({"steps": "edit", "way": way, "count": WHOLE.steps, **sums})
    for line in lines:
        plain = next(other for other in lines if (other["steps"], other["way"]) == (line["steps"], NAIVE))
        line["ratio_to_naive"] = round(line["median_ms"] / plain["median_ms"], 4)
    return lines


def relative(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, over the standard deviation."""
    return ((ours - theirs).abs().max() / theirs.std()).item()
