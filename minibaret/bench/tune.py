"""One inner iteration of target-text inversion as shipped, against the way null-text inversion is published."""

import argparse
import contextlib
import gc
import itertools
import time
from collections.abc import Iterator

import torch
from torch import nn

from ..inversion import tune_text
from ..models.configs import UNetConfig
from ..schedule import Schedule
from ..settings import Settings
from .common import (
    card,
    complete,
    finish,
    forget_peak,
    in_process,
    operators,
    print_operators,
    ratio,
    resident,
    spread,
    synchronize,
    trace,
)
from .diffusers_unet import DiffusersUNet, import_diffusers
from .null_text import tune_null
from .unet import TEXT, build_unet, count_parameters, is_slow, latents_side

SHIPPED = "minibaret"
BOTH, ONE, MAPS = "diffusers, both rows", "diffusers, one row", "diffusers, one row, maps"
AGAINST = {"both": BOTH, "one": ONE, "maps": MAPS}
WAYS = {
    SHIPPED: "weights frozen; the null text's noise once a time step, the text's row with a gradient",
    BOTH: "weights not frozen, both guidance rows in every iteration, SDPA",
    ONE: "weights not frozen; the other row's noise once a time step, as published; SDPA",
    MAPS: "the same with attention maps in memory, as the published notebook has them",
}

NAMES = {BOTH: "nulltext", MAPS: "published"}  # in the JSON


def bench(options: argparse.Namespace) -> None:
    """Time is that of inner iterations alone, from a call of the UNet with gradients to its next call, or to the end of
    the time step: what is done once a time step is left out on both sides. Memory is the highest resident set of a
    fresh process in its second iteration, when weights that get gradients have them, less the resident set after the
    imports; weights included."""
    import_diffusers()
    unet, config = build_unet(options)
    side = latents_side(options, config)
    ways = [SHIPPED, *(way for name, way in AGAINST.items() if name in options.against)]
    rounds = options.rounds or (2 if is_slow(unet) else 15)
    facts = card(
        options,
        ("diffusers",),
        weights=str(options.weights),
        parameters=count_parameters(unet),
        latents=f"{side}×{side}",
        rounds=f"{rounds}, in turn, after one that does not count",
        **{way: WAYS[way] for way in ways},
    )
    size, device, dtype = str(side * config.latent_factor), str(options.device), options.dtype
    peaks = {
        way: in_process("tune-once", way, str(options.weights), size, device, str(dtype).removeprefix("torch."))
        for way in ways
    }
    theirs = DiffusersUNet(unet, trainable=True)
    networks = {way: unet if way == SHIPPED else theirs for way in ways}
    loops = {way: iterations(way, networks[way], config.unet, side, options) for way in ways}
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds + 1):
        for way, loop in loops.items():
            times[way].append(next(loop))
    times = {way: values[1:] for way, values in times.items()}
    result = {"card": facts}
    if options.profile:
        runs = {way: lambda loop=loop: next(loop) for way, loop in loops.items()}
        result["operators"] = {way: operators(run) for way, run in runs.items()}
        print_operators("a time step with one inner iteration", result["operators"])
    if options.trace:
        trace({way: lambda loop=loop: next(loop) for way, loop in loops.items()}, options.trace)
    print(f"\n{'inner iteration':>26} {'median':>13} {'half within':>23} {'ratio':>6} {'peak MB':>8} {'ratio':>6}")
    table = []
    for way in ways:
        line = {"way": way, "what": WAYS[way], **spread(times[way]), **peaks[way]}
        line["ours_to_this"] = ratio(times[SHIPPED], times[way])
        line["our_memory_to_this"] = round(peaks[SHIPPED]["peak_bytes"] / line["peak_bytes"], 4)
        table.append(line)
        print(
            f"{way:>26} {line['median_ms']:>10.1f} ms {line['low_ms']:>11.1f} –{line['high_ms']:>10.1f} "
            f"{line['ours_to_this']:>6.3f} {line['peak_bytes'] / 1e6:>8.0f} {line['our_memory_to_this']:>6.3f}"
        )
    print("ratio: minibaret's over this line's")
    result["table"] = table
    for line in table:
        if line["way"] in NAMES:
            result[f"ratio_time_to_{NAMES[line['way']]}"] = line["ours_to_this"]
            result[f"ratio_memory_to_{NAMES[line['way']]}"] = line["our_memory_to_this"]
    finish(options, result)


def iterations(way: str, network: nn.Module, config: UNetConfig, side: int, options) -> Iterator[float]:
    """Yields the milliseconds of an inner iteration, one per time step, without end."""
    torch.manual_seed(0)
    settings = Settings(inner_steps=1, tolerance=(0.0, 0.0))
    target, null = torch.randn(2, 1, TEXT, config.context_width, device=options.device, dtype=options.dtype)
    trajectory = list(torch.randn(settings.steps + 1, 1, config.latent_channels, side, side, device=options.device))
    while True:
        if way == SHIPPED:
            loop = tune_text(network, trajectory, target, null, Schedule(settings.steps), settings)
        else:
            loop = tune_null(network, trajectory, target, null, settings, both_rows=way == BOTH)
        for _ in range(settings.steps):
            if way != SHIPPED:
                network.materialise(way == MAPS)
            calls = []
            with watch_calls(network, calls, options.device):
                next(loop)
            synchronize(options.device)
            calls.append((time.perf_counter(), False))
            yield next((end - begin) * 1e3 for (begin, tuned), (end, _) in itertools.pairwise(calls) if tuned)


@contextlib.contextmanager
def watch_calls(network: nn.Module, calls: list[tuple[float, bool]], device: torch.device):
    """Notes when the network is called, and whether with gradients on."""

    def note(*_) -> None:
        synchronize(device)
        calls.append((time.perf_counter(), torch.is_grad_enabled()))

    handle = network.register_forward_pre_hook(note)
    yield
    handle.remove()


def once(way: str, weights: str, size: str, device: str, dtype: str) -> dict:
    """The peak memory of one way, in this process."""
    options = argparse.Namespace(weights=weights, size=int(size), device=device, dtype=dtype)
    complete(options)
    import_diffusers()  # both sides carry the same imports, those that come with Adam included
    torch.optim.Adam([torch.zeros(1, requires_grad=True)])
    gc.collect()
    before = resident("VmRSS")
    network, config = build_unet(options)
    side = latents_side(options, config)
    if way != SHIPPED:
        network = DiffusersUNet(network, trainable=True)
    loop = iterations(way, network, config.unet, side, options)
    next(loop)
    gc.collect()
    if options.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(options.device)
        next(loop)
        return {"peak_bytes": torch.cuda.max_memory_allocated(options.device)}
    forget_peak()
    next(loop)
    return {"peak_bytes": resident("VmHWM") - before}
