"""One forward of the UNet with and without injection, and each attention layer's share of it."""

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from ..control import Row, RowControl, Take
from ..models.unet import Attention, UNet
from . import common

SIX = [Row(branch, conditional) for conditional in (False, True) for branch in ("reconstruction", "transition", "edit")]
FIVE = [row for row in SIX if row != Row("reconstruction", False)]  # that one is replayed, and nothing takes from it
FIRST_STEP = {  # of BARET, by kind of layer: Eq. 4, Eq. 5
    "self": {"edit": Take(q="reconstruction", k="reconstruction")},
    "cross": {"edit": Take(q="transition", k="transition")},
}
PLAIN = "six rows, no injection"


@torch.no_grad()
def bench(options: argparse.Namespace) -> None:
    model, side, facts = common.begin(options)
    unet = model.unet
    takes = {layer: FIRST_STEP[layer.kind] for layer in unet.layers(side, side) if layer.kind in FIRST_STEP}
    batches = {
        PLAIN: (SIX, None),
        "six rows, injection": (SIX, RowControl(0, SIX, takes)),
        "five rows, injection": (FIVE, RowControl(0, FIVE, takes)),
    }
    given = {name: inputs(unet, side, len(rows)) for name, (rows, _) in batches.items()}
    runs = {name: lambda name=name: unet(*given[name], batches[name][1]) for name in batches}
    lines = common.timed(common.in_turns(runs, options.rounds, options.device), PLAIN, "plain")
    for name, line in lines.items():
        line["peak_bytes"] = common.peak_bytes(runs[name], options.device)
    lines = [{"forward": name, "rows": len(batches[name][0]), **line} for name, line in lines.items()]
    shares = {name: layer_shares(unet, run, options.device) for name, run in runs.items()}
    print("Each layer's share of the forward, projections included")
    print(common.table([{"forward": name, **share} for name, share in shares.items()]) + "\n")
    common.finish(options, facts, lines, runs, shares=shares)


def inputs(unet: UNet, side: int, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random latents, a time step and random contexts."""
    torch.manual_seed(0)
    make = {"device": unet.conv_in.weight.device, "dtype": unet.dtype}
    latents = torch.randn(rows, unet.config.latent_channels, side, side, **make)
    context = torch.randn(rows, common.TOKENS, unet.config.context_width, **make)
    return latents, torch.tensor(501, device=make["device"]), context


def layer_shares(unet: UNet, run: Callable[[], object], device: torch.device) -> dict[str, float]:
    """The part of one forward's time that attention layers take, by kind and number of tokens; projections included."""
    begun, spans, handles = [], [], []

    def leave(layer: Attention, inputs: tuple, _) -> None:
        x, context = inputs[:2]
        spans.append((f"{'self' if context is x else 'cross'}-{x.shape[1]}", begun.pop(), _mark(device)))

    for layer in (module for module in unet.modules() if isinstance(module, Attention)):
        handles.append(layer.register_forward_pre_hook(lambda *_: begun.append(_mark(device))))
        handles.append(layer.register_forward_hook(leave))
    begin = _mark(device)
    run()
    whole = _seconds(begin, _mark(device))
    for handle in handles:
        handle.remove()
    spent: dict[str, float] = {}
    for name, *marks in spans:
        spent[name] = spent.get(name, 0.0) + _seconds(*marks)
    return {name: round(seconds / whole, 4) for name, seconds in sorted(spent.items(), key=lambda item: -item[1])}


def _mark(device: torch.device) -> float | torch.cuda.Event:
    """A moment, on a GPU in its own stream, so that nothing waits for it."""
    if device.type != "cuda":
        common.synchronize(device)
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _seconds(begin: float | torch.cuda.Event, end: float | torch.cuda.Event) -> float:
    if isinstance(end, float):
        return end - begin
    end.synchronize()
    return begin.elapsed_time(end) / 1e3
