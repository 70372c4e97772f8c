"""Timing in turns, memory, processes of their own, tables: what every measurement uses."""

import argparse
import contextlib
import importlib
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler would chat on stderr

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from ..errors import InputError
from ..files import check_place
from ..inversion import Inversion
from ..loading import parse_device
from ..weights import MINIATURE_FOLDER, load_model
from ..weights.loading import Model
from .random_weights import RANDOM, random_model

TOKENS = 77  # of a prompt


class Given(Inversion):
    """What an inversion would have found, by name, whatever the recipe."""

    def __init__(self, **lists: list):
        super().__init__()
        self.lists = lists

    def find(self, name: str, *_, **__) -> list:
        return self.lists[name.replace(" ", "_")]


def complete(options: argparse.Namespace) -> None:
    """The device and dtype that were not given; the dtype None where `load`'s automatic one is wanted. Raises
    InputError where a file that is wanted could not be written."""
    if getattr(options, "trace", None):
        check_place(options.trace, force=True)
    options.device = parse_device(options.device or "auto")
    if options.dtype == "auto":
        options.dtype = None
    else:
        options.dtype = getattr(torch, options.dtype or ("float16" if options.device.type == "cuda" else "float32"))


def begin(
    options: argparse.Namespace, many: int = 15, few: int = 3, packages: Sequence[str] = ("triton",), **more
) -> tuple[Model, int, dict]:
    """The weights at a path, the miniature, or random ones of a size: a name of RANDOM; the side of the latents of a
    picture of the size asked for; and the card. many, few: rounds where none were asked for, few for a network whose
    forward takes seconds. Raises InputError for a size that does not halve evenly."""
    weights = str(options.weights)
    if weights in RANDOM:
        model = random_model(RANDOM[weights], options.device, options.dtype)
    else:
        model = load_model(MINIATURE_FOLDER if weights == "miniature" else Path(weights), options.device, options.dtype)
    size, multiple = options.size or model.config.image_size, model.config.size_multiple
    if size < multiple or size % multiple:
        raise InputError(f"size must be a multiple of {multiple} pixels, got {size}")
    side, parameters = size // model.config.latent_factor, model.parameter_counts()["unet"]
    options.slow = parameters > 100_000_000 and options.device.type == "cpu"
    options.rounds = getattr(options, "rounds", 1) or (few if options.slow else many)
    more = {"parameters": parameters, "latents": f"{side}×{side}", "rounds": options.rounds, **more}
    return model, side, card(options, packages, weights=weights, **more)


def card(options: argparse.Namespace, packages: Sequence[str] = ("triton",), **more) -> dict:
    """Prints and returns what the figures were measured on. packages: whose versions matter, beside PyTorch's."""
    facts = {
        "device": device_name(options.device),
        "dtype": str(options.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    for package in packages:
        here = importlib.util.find_spec(package)
        facts[package] = importlib.import_module(package).__version__ if here else "not installed"
    if options.device.type == "cuda":  # PyTorch's defaults, left alone
        facts["TF32"] = f"products {torch.backends.cuda.matmul.allow_tf32}, cuDNN {torch.backends.cudnn.allow_tf32}"
    facts |= more
    for name, value in facts.items():
        print(f"{name:>{max(map(len, facts))}}  {value}")
    print()
    return facts


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return device.type


def synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def milliseconds(run: Callable[[], object], calls: int, device: torch.device) -> float:
    """Wall time of one call, of several in a row."""
    synchronize(device)
    begin = time.perf_counter()
    for _ in range(calls):
        run()
    synchronize(device)
    return (time.perf_counter() - begin) / calls * 1e3


def in_turns(ways: dict[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Milliseconds per call: every way once or more a round, in turn, so that a busy moment hits all of them. What is
    allocated and compiled at the first call is not counted."""
    calls = {}
    for name, run in ways.items():
        took = milliseconds(run, 1, device)
        took = took if took > 1000 else milliseconds(run, 1, device)
        calls[name] = max(1, min(100, int(5 / max(took, 1e-3))))  # 5 ms at least
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, run in ways.items():
            times[name].append(milliseconds(run, calls[name], device))
    return times


def spread(times: list[float]) -> dict:
    """The median, and half of the measurements lie between the other two."""
    low, middle, high = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else times * 3
    return {"median_ms": round(middle, 4), "low_ms": round(low, 4), "high_ms": round(high, 4)}


def ratio(times: list[float], plain: list[float]) -> float:
    return round(statistics.median(times) / statistics.median(plain), 4)


def peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """Memory allocated at most while it runs, above what there was before."""
    if device.type == "cuda":
        synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def in_process(*arguments: str) -> dict:
    """Runs a sub-command of bench.py in a process of its own; the last line it prints is its result. Raises InputError
    with what that process said where it failed."""
    done = subprocess.run([sys.executable, sys.argv[0], *arguments], capture_output=True, text=True)
    if done.returncode:
        *_, said = ["", *done.stderr.splitlines()]
        raise InputError(f"{arguments[0]} failed with exit code {done.returncode}: {said.removeprefix('bench.py: ')}")
    return json.loads(done.stdout.splitlines()[-1])


def timed(times: dict[str, list[float]], first: str, name: str | None = None) -> dict[str, dict]:
    """By way: the spread of its times, and the ratio to those of the first way, where that was measured. name: of the
    first in the ratio's key, its own if None."""
    return {
        way: spread(values) | ({f"ratio_to_{name or first}": ratio(values, times[first])} if first in times else {})
        for way, values in times.items()
    }


def table(lines: Sequence[dict], keys: Sequence[str] = ()) -> str:
    """Markdown, aligned: a column for each of the keys, or for all that a line has; what a line lacks stays blank."""
    keys = keys or list(dict.fromkeys(key for line in lines for key in line))
    rows = [[key.replace("_", " ") for key in keys], ["---"] * len(keys)]
    rows += [[cell(line.get(key)) for key in keys] for line in lines]
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("| " + " | ".join(text.rjust(width) for text, width in zip(row, widths)) + " |" for row in rows)


def cell(value: object) -> str:
    """As it stands in a table: four digits of a number, bytes and FLOP with an exponent."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {cell(part)}" for key, part in value.items())
    if isinstance(value, list):
        return " – ".join(map(cell, value))
    if isinstance(value, float) or (isinstance(value, int) and value >= 100_000):
        return f"{value:.4g}"
    return "" if value is None else str(value)


def finish(
    options: argparse.Namespace, facts: dict, lines: list[dict], runs: dict | None = None, keys: Sequence[str] = (),
    **figures,
) -> None:  # fmt: skip
    """Prints the table of these keys, or of all; writes the trace of the runs and prints the JSON where they are
    wanted. figures: further ones, for the JSON."""
    print(table(lines, keys))
    if runs and options.trace:
        write_trace(options, runs)
    if options.json:
        print(json.dumps({"card": facts, "table": lines, **figures}))


def write_trace(options: argparse.Namespace, runs: dict[str, Callable[[], object]]) -> None:
    """Runs everything once more under PyTorch's profiler: prints the operators that took longest themselves, and writes
    a Chrome trace with a named range for each."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (options.device.type == "cuda")
    with profile(activities=activities) as profiled:
        for name, run in runs.items():
            with record_function(name):
                run()
    spent = "self_device_time_total" if options.device.type == "cuda" else "self_cpu_time_total"
    print(profiled.key_averages().table(sort_by=spent, row_limit=15, max_name_column_width=40))
    profiled.export_chrome_trace(str(options.trace))
    print(f"{options.trace}: Chrome trace; open it at ui.perfetto.dev")
