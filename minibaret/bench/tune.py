"""One inner iteration of target-text inversion as shipped, against the way null-text inversion is published."""

import argparse
import contextlib
import gc
import itertools
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..memory import forget_peak, peak_memory
from ..pipeline import StableDiffusion
from ..sampler import Schedule, guide
from ..tuning import adam, tune
from ..weights.loading import Model
from . import common
from .diffusers_models import DiffusersUNet, import_diffusers

SHIPPED = "minibaret"
BOTH, ONE, MAPS = "diffusers, both rows", "diffusers, one row", "diffusers, one row, maps"
AGAINST = {"both": BOTH, "one": ONE, "maps": MAPS}
WAYS = {
    SHIPPED: "weights frozen; the null text's noise once a time step, the prompt's row with a gradient",
    BOTH: "weights not frozen, both guidance rows in every iteration, SDPA",
    ONE: "weights not frozen; the other row's noise once a time step, as published; SDPA",
    MAPS: "the same with attention maps in memory, as the published notebook has them",
}
NAMES = {BOTH: "nulltext", MAPS: "published"}  # in the JSON
STEPS, GUIDANCE = 50, 7.5


def bench(options: argparse.Namespace) -> None:
    """Time is that of inner iterations alone, from a call of the UNet with gradients to its next call, or to the end of
    the time step: what is done once a time step is left out on both sides. Memory is the highest resident set of a
    fresh process in its second iteration, when weights that get gradients have them, less the resident set after the
    imports; weights included. Precision is what PyTorch does by default, on both sides."""
    import_diffusers()
    ways = [SHIPPED, *(way for name, way in AGAINST.items() if name in options.against)]
    model, side, facts = common.begin(options, few=2, packages=["diffusers"], **{way: WAYS[way] for way in ways})
    fresh = (str(options.weights), str(side * model.config.latent_factor), str(options.device), facts["dtype"])
    peaks = {way: common.in_process("tune-once", way, *fresh) for way in ways}
    theirs = DiffusersUNet(model, trainable=True)
    loops = {way: iterations(way, model, theirs, side) for way in ways}
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(options.rounds + 1):  # the first does not count
        for way, loop in loops.items():
            times[way].append(next(loop))
    times = {way: values[1:] for way, values in times.items()}
    lines = []
    for way in ways:
        line = {"way": way, **common.spread(times[way]), **peaks[way]}
        line["ours_to_this"] = common.ratio(times[SHIPPED], times[way])
        line["our_memory_to_this"] = round(peaks[SHIPPED]["peak_bytes"] / line["peak_bytes"], 4)
        lines.append(line)
    ratios = {}
    for line in lines:
        if line["way"] in NAMES:
            ratios[f"ratio_time_to_{NAMES[line['way']]}"] = line["ours_to_this"]
            ratios[f"ratio_memory_to_{NAMES[line['way']]}"] = line["our_memory_to_this"]
    runs = {way: lambda loop=loop: next(loop) for way, loop in loops.items()}
    common.finish(options, facts, lines, runs, **ratios)


def iterations(way: str, model: Model, theirs: DiffusersUNet | None, side: int) -> Iterator[float]:
    """Yields the milliseconds of an inner iteration, one per time step, without end. theirs: diffusers' UNet, for its
    ways."""
    torch.manual_seed(0)
    config, device = model.config.unet, model.device
    prompt, null = torch.randn(2, 1, common.TOKENS, config.context_width, device=device)
    trajectory = list(torch.randn(STEPS + 1, 1, config.latent_channels, side, side, device=device))
    schedule, network = Schedule(STEPS), model.unet if way == SHIPPED else theirs
    while True:
        if way == SHIPPED:
            loop = tune(
                StableDiffusion(model), [], trajectory, prompt, null, schedule, GUIDANCE,
                inner_steps=1, solver=adam(lambda i: 1e-3), threshold=lambda i: 0.0,
            )  # fmt: skip
        else:
            loop = tune_null(theirs, trajectory, prompt, null, schedule, both_rows=way == BOTH)
        for _ in range(STEPS):
            if way != SHIPPED:
                theirs.materialise(way == MAPS)
            with watch_calls(network, device) as calls:
                next(loop)
            common.synchronize(device)
            calls.append((time.perf_counter(), False))
            yield next((end - begin) * 1e3 for (begin, tuned), (end, _) in itertools.pairwise(calls) if tuned)


def tune_null(
    unet: DiffusersUNet, trajectory: list[Tensor], prompt: Tensor, null: Tensor, schedule: Schedule, both_rows: bool
) -> Iterator[float]:
    """Null-text inversion's loop as it was published (google/prompt-to-prompt, null_text_w_ptp.ipynb), on a UNet whose
    weights nobody froze, so that the backward pass computes all their gradients too. Yields the loss after each time
    step's one inner iteration; between them nothing is sampled, the latents are z*.

    both_rows: predict the noise of the prompt's row again in the inner iteration, in a batch with the null text's,
    where the published loop predicts it once a time step.
    """
    for index, timestep in enumerate(schedule.timesteps):
        latents, goal, time = trajectory[-1 - index], trajectory[-2 - index], torch.tensor(timestep, device=null.device)
        null = null.detach().clone().requires_grad_()
        optimizer = torch.optim.Adam([null], lr=1e-2 * (1 - index / 100))
        if both_rows:
            uncond, cond = unet(torch.cat([latents] * 2), time, torch.cat([null, prompt])).chunk(2)
        else:
            with torch.no_grad():
                cond = unet(latents, time, prompt)
            uncond = unet(latents, time, null)
        loss = F.mse_loss(schedule.step(latents, guide(uncond, cond, GUIDANCE), timestep), goal)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield loss.item()


@contextlib.contextmanager
def watch_calls(network: nn.Module, device: torch.device) -> Iterator[list[tuple[float, bool]]]:
    """A list that grows with each call of the network: when it was, and whether with gradients on."""
    calls = []

    def note(*_) -> None:
        common.synchronize(device)
        calls.append((time.perf_counter(), torch.is_grad_enabled()))

    handle = network.register_forward_pre_hook(note)
    yield calls
    handle.remove()


def once(way: str, weights: str, size: str, device: str, dtype: str) -> dict:
    """The peak memory of one way, in this process."""
    options = argparse.Namespace(weights=weights, size=int(size), device=device, dtype=dtype)
    common.complete(options)
    import_diffusers().UNet2DConditionModel  # noqa: B018, both sides carry the same imports
    torch.optim.Adam([torch.zeros(1, requires_grad=True)])
    gc.collect()
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()  # resident set
    model, side, _ = common.begin(options)
    theirs = None if way == SHIPPED else DiffusersUNet(model, trainable=True)
    loop = iterations(way, model, theirs, side)
    next(loop)
    gc.collect()
    if options.device.type != "cuda":
        Path("/proc/self/clear_refs").write_text("5")  # the highest resident set starts afresh
    forget_peak(options.device)
    next(loop)
    return {"peak_bytes": peak_memory(options.device) - (before if options.device.type != "cuda" else 0)}
