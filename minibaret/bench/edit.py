"""The edit stage as shipped against the naive batch of six rows, with plain attention and with materialised maps."""

import argparse
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from .. import balanced_attention as bam
from .. import baret
from ..errors import InputError
from ..inversion import TunedStep
from ..models.unet import UNet
from ..prediction import guide, predict
from ..schedule import Schedule
from ..settings import Settings
from . import naive
from .common import card, finish, operators, print_operators, spread, synchronize, trace
from .unet import TEXT, build_unet, count_parameters, is_slow, latents_side

SHIPPED, NAIVE, MAPS = WAYS = ("shipped", "six rows, SDPA", "six rows, maps")
KINDS = ("self and cross injected", "cross injected", "nothing injected")
EQUAL = 1e-4  # of the latents' size, in float32


@torch.no_grad()
def bench(options: argparse.Namespace) -> None:
    """The time of an edit of 50 steps is put together from the medians of its three kinds of steps, so that a network
    of Stable Diffusion 1.5's size needs one step of each."""
    unet, config = build_unet(options)
    side = latents_side(options, config)
    steps = options.steps or (3 if is_slow(unet) else 50)
    if steps < 3:
        raise InputError(f"steps must be at least 3, so that there is one of every kind, got {steps}")
    settings, whole = Settings(steps=steps), Settings()
    planned, naively = (sum(len(plan(i, whole)) for i in range(whole.steps)) for plan in (bam.rows_at, bam.all_rows))
    facts = card(
        options,
        weights=str(options.weights),
        parameters=count_parameters(unet),
        latents=f"{side}×{side}",
        steps=f"{steps}, in turn",
        rounds=options.rounds,
        shipped=f"{planned} row-forwards of the naive {naively} in {whole.steps} steps",
    )
    found = invent(unet, side, settings, options)
    times: dict[str, dict[str, list[float]]] = {way: {kind: [] for kind in KINDS} for way in WAYS}
    if not is_slow(unet):
        for work in make_ways(unet, *found, Settings(steps=3)).values():  # compiles, allocates; does not count
            list(work)
    for _ in range(options.rounds):
        finals = run_in_turns(make_ways(unet, *found, settings), times, settings, options.device)
    table = tabulate(times, whole)
    edits = {line["way"]: line["median_ms"] for line in table if line["steps"] == "edit"}
    apart = max(relative(finals[way], finals[NAIVE]) for way in (SHIPPED, MAPS))
    result = {
        "card": facts,
        "table": table,
        "ratio_to_naive": round(edits[SHIPPED] / edits[NAIVE], 4),
        "ratio_to_maps": round(edits[SHIPPED] / edits[MAPS], 4),
        "latents_difference": apart,
    }
    print(f"\nshipped / {NAIVE}: {result['ratio_to_naive']:.3f}, shipped / {MAPS}: {result['ratio_to_maps']:.3f}")
    print(f"the edits' final latents differ by {apart:.1e} of their size at most")
    short = Settings(steps=3)  # a step of each kind
    if options.profile:
        ways = make_ways(unet, *found, short)
        result["operators"] = {way: operators(lambda work=work: list(work)) for way, work in ways.items()}
        print_operators("one step of each kind", result["operators"])
    if options.trace:
        ways = make_ways(unet, *found, short).items()
        trace({f"{way}: {kind}": lambda work=work: next(work) for way, work in ways for kind in KINDS}, options.trace)
    finish(options, result)
    if options.dtype == torch.float32 and not apart <= EQUAL:
        raise RuntimeError(f"the edits must be equal within {EQUAL:g} of their size, but differ by {apart:.1e}")


def make_ways(
    unet: UNet, record: baret.Record, target: Tensor, null: Tensor, settings: Settings
) -> dict[str, Iterator[Tensor]]:
    """The edit's latents after every step, by each way."""
    shipped = baret.edit(unet, record, target, null, settings)
    return {
        SHIPPED: (latents[bam.EDIT] for latents in shipped),
        NAIVE: naive.edit(unet, record, target, null, settings, naive.gathered),
        MAPS: naive.edit(unet, record, target, null, settings, naive.materialised),
    }


def invent(
    unet: UNet, side: int, settings: Settings, options: argparse.Namespace
) -> tuple[baret.Record, Tensor, Tensor]:
    """What inversion would have left behind, without running it: noise for z*[T], a text and embeddings near it that
    stand for E[i], and where these lead. → record, target, null"""
    torch.manual_seed(0)
    make = {"device": options.device, "dtype": options.dtype}
    target, null = torch.randn(2, 1, TEXT, unet.config.context_width, **make)
    latents = torch.randn(1, unet.config.latent_channels, side, side, device=options.device)
    record, schedule = baret.Record([latents]), Schedule(settings.steps)
    for timestep in schedule.timesteps:
        tuned = target + 0.1 * torch.randn_like(target)
        noise = predict(unet, torch.cat([latents] * 2), timestep, torch.cat([null, tuned]))
        latents = schedule.step(latents, guide(*noise.chunk(2), settings.guidance), timestep)
        record.tuned.append(TunedStep(tuned, latents, ()))
    return record, target, null


def run_in_turns(
    ways: dict[str, Iterator[Tensor]], times: dict[str, dict[str, list[float]]], settings: Settings, device
) -> dict[str, Tensor]:
    """Every way's first step, every way's second step, …; adds milliseconds to `times`. → the final latents"""
    finals, order = {}, list(ways)
    for index in range(settings.steps):
        for way in order:
            synchronize(device)
            begin = time.perf_counter()
            finals[way] = next(ways[way])
            synchronize(device)
            times[way][kind_of(index, settings)].append((time.perf_counter() - begin) * 1e3)
        order.append(order.pop(0))
    return finals


def kind_of(step: int, settings: Settings) -> str:
    return KINDS[(step >= settings.self_injections) + (step >= settings.cross_injections)]


def tabulate(times: dict[str, dict[str, list[float]]], whole: Settings) -> list[dict]:
    """Prints and returns the time of every kind of step by every way, and of a whole edit, put together from them."""
    print(f"\n{'steps':>24} {'of 50':>5} {'way':>15} {'rows':>4} {'median':>13} {'half within':>23} {'of SDPA':>8}")
    steps = {kind: [i for i in range(whole.steps) if kind_of(i, whole) == kind] for kind in KINDS}
    rows = {SHIPPED: bam.rows_at, NAIVE: bam.all_rows, MAPS: bam.all_rows}
    table = []
    for kind, those in steps.items():
        for way in WAYS:
            many = {"count": len(those), "rows": len(rows[way](those[0], whole)), "samples": len(times[way][kind])}
            table.append({"steps": kind, "way": way, **many, **spread(times[way][kind])})
    for way in WAYS:
        parts = [line for line in table if line["way"] == way]
        many = {key: round(sum(line["count"] * line[key] for line in parts), 4) for key in ("rows", *spread([0.0]))}
        table.append({"steps": "edit", "way": way, "count": whole.steps, **many})
    for line in table:
        against = next(other for other in table if (other["steps"], other["way"]) == (line["steps"], NAIVE))
        line["ratio_to_naive"] = round(line["median_ms"] / against["median_ms"], 4)
        print(
            f"{line['steps']:>24} {line['count']:>5} {line['way']:>15} {line['rows']:>4} {line['median_ms']:>10.1f} ms "
            f"{line['low_ms']:>11.1f} –{line['high_ms']:>10.1f} {line['ratio_to_naive']:>8.3f}"
        )
    return table


def relative(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, over the standard deviation."""
    return ((ours - theirs).abs().max() / theirs.std()).item()
