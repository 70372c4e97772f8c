"""One forward of the UNet with and without injection, and each attention layer's share of it."""

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from ..control import Row, RowControl, Take
from ..models.unet import Attention, UNet
from . import common

SIX = [Row(branch, text) for text in (False, True) for branch in ("reconstruction", "transition", "edit")]
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
        "retired plan, injection": (FIVE, RowControl(0, FIVE, takes)),
    }
    given = {name: inputs(unet, side, len(rows)) for name, (rows, _) in batches.items()}
    runs = {name: lambda name=name: unet(*given[name], batches[name][1]) for name in batches}
    times = common.in_turns(runs, options.rounds, options.device)
    lines, shares = [], {}
    for name, values in times.items():
        line = {"forward": name, "rows": len(batches[name][0]), **common.spread(values)}
        line["ratio_to_plain"] = common.ratio(values, times[PLAIN])
        line["peak_bytes"] = common.peak_bytes(runs[name], options.device)
        line["peak_mb"] = line["peak_bytes"] / 1e6
        shares[name] = layer_shares(unet, runs[name], options.device)
        lines.append(line)
    columns = {"forward": "{forward}", "rows": "{rows}", **common.TIMES, "of the first": "{ratio_to_plain:.3f}"}
    print(common.table(lines, columns | {"peak, MB": "{peak_mb:.0f}"}))
    layers = [{"layer": layer, **{name: shares[name][layer] for name in runs}} for layer in shares[PLAIN]]
    print("\nShare of the forward, projections included")
    print(common.table(layers, {"layer": "{layer}", **{name: f"{{{name}:.1%}}" for name in runs}}))
    common.write_trace(options, runs)
    common.finish(options, {"card": facts, "table": lines, "shares": shares})


def inputs(unet: UNet, side: int, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random latents, a time step and random contexts."""
    torch.manual_seed(0)
    make = {"device": unet.conv_in.weight.device, "dtype": unet.dtype}
    latents = torch.randn(rows, unet.config.latent_channels, side, side, **make)
    context = torch.randn(rows, common.TEXT, unet.config.context_width, **make)
    return latents, torch.tensor(501, device=make["device"]), context


def layer_shares(unet: UNet, run: Callable[[], object], device: torch.device) -> dict[str, float]:
    """The part of one forward's time that attention layers take, by kind and number of tokens; projections included."""
    begun, spent, handles = [], {}, []

    def enter(*_) -> None:
        common.synchronize(device)
        begun.append(time.perf_counter())

    def leave(site: Attention, inputs: tuple, _) -> None:
        common.synchronize(device)
        x, context = inputs[:2]
        name = f"{'self' if context is x else 'cross'}-{x.shape[1]}"
        spent[name] = spent.get(name, 0.0) + time.perf_counter() - begun.pop()

    for layer in (module for module in unet.modules() if isinstance(module, Attention)):
        handles += [layer.register_forward_pre_hook(enter), layer.register_forward_hook(leave)]
    whole = common.milliseconds(run, 1, device) / 1e3
    for handle in handles:
        handle.remove()
    return {name: round(seconds / whole, 4) for name, seconds in sorted(spent.items(), key=lambda item: -item[1])}
