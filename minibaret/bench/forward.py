"""One forward of the UNet against diffusers' on the same weights."""

import argparse
import copy

import torch

from .common import card, finish, in_turns, operators, print_operators, ratio, spread, trace
from .diffusers_unet import DiffusersUNet, import_diffusers
from .unet import TEXT, build_unet, count_parameters, is_slow, latents_side

OURS, THEIRS, CHANNELS_LAST = "minibaret", "diffusers", "diffusers, channels_last"


@torch.no_grad()
def bench(options: argparse.Namespace) -> None:
    import_diffusers()
    unet, config = build_unet(options)
    side = latents_side(options, config)
    theirs = DiffusersUNet(unet)
    networks = {
        OURS: unet,
        THEIRS: theirs,  # as it comes
        CHANNELS_LAST: copy.deepcopy(theirs).to(memory_format=torch.channels_last),
    }
    rounds = options.rounds or (3 if is_slow(unet) else 15)
    facts = card(
        options,
        ("diffusers",),
        weights=str(options.weights),
        parameters=count_parameters(unet),
        latents=f"{options.batch} of {side}×{side}",
        rounds=rounds,
    )
    torch.manual_seed(0)
    make = {"device": options.device, "dtype": options.dtype}
    latents = torch.randn(options.batch, config.unet.latent_channels, side, side, **make)
    context = torch.randn(options.batch, TEXT, config.unet.context_width, **make)
    timestep = torch.tensor(501, device=options.device)
    runs = {who: lambda network=network: network(latents, timestep, context) for who, network in networks.items()}
    ours, reference = runs[OURS]().float(), runs[THEIRS]().float()
    apart = ((ours - reference).abs().max() / reference.std()).item()
    del ours, reference
    times = in_turns(runs, rounds, options.device)
    print(f"\n{'forward':>24} {'median':>13} {'half within':>23} {'of diffusers':>12}")
    table = []
    for who, values in times.items():
        table.append({"by": who, **spread(values), "ratio_to_diffusers": ratio(values, times[THEIRS])})
        line = table[-1]
        print(
            f"{who:>24} {line['median_ms']:>10.1f} ms {line['low_ms']:>11.1f} –{line['high_ms']:>10.1f} "
            f"{line['ratio_to_diffusers']:>12.3f}"
        )
    print(f"\nthe predicted noise differs by {apart:.1e} of its size at most")
    result = {
        "card": facts,
        "table": table,
        "ratio_to_diffusers": ratio(times[OURS], times[THEIRS]),
        "ratio_to_channels_last": ratio(times[OURS], times[CHANNELS_LAST]),
        "difference": apart,
    }
    if options.profile:
        result["operators"] = {who: operators(run) for who, run in runs.items()}
        print_operators("one forward", result["operators"])
    if options.trace:
        trace(runs, options.trace)
    finish(options, result)
