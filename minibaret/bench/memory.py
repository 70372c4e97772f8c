"""The peak of a whole edit's memory, by the operating system's count, beside the estimate that keeps limits."""

import argparse
import tempfile
from functools import partial
from pathlib import Path

import torch

from ..errors import InputError
from ..memory import Savings, parse_limit
from ..weights import OnDemandModel, convert
from . import common
from .random_weights import RANDOM, write_folder

KNOBS = {"steps": 1, "inner_steps": 1, "self_steps": 1.0, "cross_steps": 1.0}  # every stage, and the most rows
PROMPT = "a brown dog lying down on grass"
# Of `--table`: dtype, limit, part of the model's size, whether the edit goes on from an inversion file.
TABLE = (
    ("bfloat16", "1G", 1, False),
    ("bfloat16", "800M", 1, True),
    ("float32", "1300M", 1, False),
    ("bfloat16", "1G", 2, False),
    ("bfloat16", "800M", 2, True),
    ("float32", "1300M", 2, False),
    ("float32", "5G", 2, False),
    ("bfloat16", "none", 2, False),
)
HONEST = 0.1  # what an estimate may be off by


def bench(options: argparse.Namespace) -> None:
    """One edit a line, in a process of its own."""
    for limit in options.limit:
        if limit != "none":
            parse_limit(limit)
    if options.times and options.device.type != "cpu":
        raise InputError(f"--times is of streamed weights, on a CPU: --device cpu was wanted, got {options.device}")
    dtype = str(options.dtype).removeprefix("torch.")
    facts = common.card(options, weights=options.weights, size=options.size or "the model's", knobs=str(KNOBS))
    with tempfile.TemporaryDirectory(prefix="minibaret-") as temporary:
        folders, lines = Folders(str(options.weights), options.files or Path(temporary)), []
        if options.times:
            lines.append(common.in_process("memory-once", "times", folders.of(dtype), dtype, str(options.size or 0)))
            return common.finish(options, facts, lines)
        size = options.size or 0
        cases = TABLE if options.table else [(dtype, limit, 1, False) for limit in options.limit or ["none"]]
        for dtype, limit, part, from_file in cases:
            arguments = folders.of(dtype), dtype, str(size), str(part), str(options.device)
            file = str(Path(temporary) / f"{dtype}-{part}.safetensors") if from_file else ""
            if from_file:
                common.in_process("memory-once", "invert", *arguments, limit, file)
            lines.append(common.in_process("memory-once", "edit", *arguments, limit, file))
    keys = ("dtype", "size", "file", "limit", "peak_memory", "memory_estimate", "off", "seconds", "savings")
    common.finish(options, facts, lines, keys=keys, peak_memory=lines[-1]["peak_memory"])
    wrong = [line for line in lines if options.table and abs(line["off"]) > HONEST]
    if wrong:
        raise InputError(f"the estimate must be within {HONEST:.0%} of the peak, got {[line['off'] for line in wrong]}")


class Folders:
    """Of the weights, by dtype: converted where they are random."""

    def __init__(self, weights: str, place: Path) -> None:
        self.weights, self.place = weights, place

    def of(self, dtype: str) -> str:
        if self.weights not in RANDOM:
            return self.weights
        plain, folder = write_folder(self.place, RANDOM[self.weights]), self.place / dtype
        if dtype == "float32":
            return str(plain)
        if not (folder / "config.json").exists():
            convert(plain, folder, dtype)
        return str(folder)


def once(what: str, weights: str, dtype: str, size: str, *more: str) -> dict:
    """In this process: an edit of a drawn picture, or its slow part; its summary."""
    if what == "times":
        return times(Path(weights), getattr(torch, dtype), int(size))
    from ..inversion import load_inversion
    from ..loading import load
    from ..weights.miniature.world.drawing import render
    from ..weights.miniature.world.scene import Scene

    part, device, limit, file = more
    limit = None if limit == "none" else parse_limit(limit)
    editor = load(None if weights == "miniature" else weights, device, dtype, memory_limit=limit)
    picture = render(Scene(1, "dog", "standing", "brown", "grass"))
    side = (int(size) or editor.config.image_size) // int(part)
    if what == "invert":
        editor.invert(picture, PROMPT, size=(side, side), file=Path(file), **KNOBS)
        return {}
    inversion = load_inversion(file) if file else None
    result = editor.edit(picture, PROMPT, size=(side, side), pictures=("transition",), inversion=inversion, **KNOBS)
    summary = result.summary()
    off = summary["memory_estimate"] / summary["peak_memory"] - 1
    return {"dtype": dtype, "size": side, "file": bool(file), "limit": limit, **summary, "off": round(off, 3)}


def times(weights: Path, dtype: torch.dtype, size: int) -> dict:
    """Seconds of a forward of two rows, and of a forward and backward of one, with checkpointing, each streamed and
    not, in turns; the file's pages are in the system's cache."""
    from ..pipeline import StableDiffusion

    model = OnDemandModel(weights, dtype=dtype)
    side = (size or model.config.image_size) // model.config.latent_factor
    latents, context = torch.randn(1, 4, side, side), torch.randn(1, common.TOKENS, model.config.unet.context_width)

    def forward(sd: StableDiffusion) -> torch.Tensor:
        with torch.no_grad():
            return sd.eps(torch.cat([latents] * 2), 481, torch.cat([context] * 2))

    def tuning(sd: StableDiffusion) -> torch.Tensor:
        embedding = context.clone().requires_grad_()
        return torch.autograd.grad(sd.eps(latents, 481, embedding).square().sum(), embedding)[0]

    whole, streamed = (StableDiffusion(model, Savings(checkpointing=True, streamed=on)) for on in (False, True))
    found = {}
    for run in (forward, tuning):
        ways = {"whole": partial(run, whole), "streamed": partial(run, streamed)}
        found[f"{run.__name__}_same_bits"] = torch.equal(*(way() for way in ways.values()))
        measured = common.in_turns(ways, 2, torch.device("cpu"))
        found[f"{run.__name__}_ratio"] = common.ratio(measured["streamed"], measured["whole"])
        found |= {f"{run.__name__}_{way}_ms": round(min(values)) for way, values in measured.items()}
    return found
