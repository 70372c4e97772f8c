"""One forward of the UNet against diffusers' on the same weights."""

import argparse
import copy

import torch

from . import common
from .diffusers_models import DiffusersUNet, import_diffusers
from .unet import inputs

OURS, THEIRS, CHANNELS_LAST = "minibaret", "diffusers", "diffusers, channels_last"


@torch.no_grad()
def bench(options: argparse.Namespace) -> None:
    import_diffusers()
    model, side, facts = common.begin(options, packages=["diffusers"], rows=options.batch)
    unet = model.unet
    theirs = DiffusersUNet(model)
    networks = {
        OURS: unet,
        THEIRS: theirs,  # as it comes
        CHANNELS_LAST: copy.deepcopy(theirs).to(memory_format=torch.channels_last),
    }
    given = inputs(unet, side, options.batch)
    runs = {who: lambda network=network: network(*given) for who, network in networks.items()}
    ours, reference = runs[OURS]().float(), runs[THEIRS]().float()
    apart = ((ours - reference).abs().max() / reference.std()).item()
    times = common.in_turns(runs, options.rounds, options.device)
    lines = common.timed(times, THEIRS)
    print(f"the predicted noise differs by {apart:.1e} of its size at most\n")
    figures = {
        "ratio_to_diffusers": lines[OURS]["ratio_to_diffusers"],
        "ratio_to_channels_last": common.ratio(times[OURS], times[CHANNELS_LAST]),
        "difference": apart,
    }
    common.finish(options, facts, [{"by": who, **line} for who, line in lines.items()], runs, **figures)
