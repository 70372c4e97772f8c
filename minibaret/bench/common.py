"""Timing in turns, memory, processes of their own, tables: what every measurement uses."""

import argparse
import contextlib
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler would chat on stderr

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from ..errors import InputError
from ..files import check_place
from ..loading import parse_device
from ..weights import MINIATURE_FOLDER, load_model
from ..weights.loading import Model
from .random_weights import RANDOM, random_model

TEXT = 77  # tokens
TIMES = {"median, ms": "{median_ms:.2f}", "half within": "{low_ms:.2f} – {high_ms:.2f}"}  # columns of a table


def complete(options: argparse.Namespace) -> None:
    """The device and dtype that were not given. Raises InputError where a file that is wanted could not be written."""
    if getattr(options, "trace", None):
        check_place(options.trace, force=True)
    options.device = parse_device(options.device or "auto")
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
    side, parameters = size // model.config.latent_factor, count_parameters(model.unet)
    options.slow = parameters > 100_000_000 and options.device.type == "cpu"
    options.rounds = getattr(options, "rounds", 1) or (few if options.slow else many)
    more = {"parameters": parameters, "latents": f"{side}×{side}", "rounds": options.rounds, **more}
    return model, side, card(options, packages, weights=weights, **more)


def count_parameters(network: nn.Module) -> int:
    return sum(weight.numel() for weight in network.parameters())


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
        facts[package] = version(package) if importlib.util.find_spec(package) else "not installed"
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


def resident(what: str) -> int:
    """Bytes of a line of /proc/self/status: VmRSS, the resident set now; VmHWM, its peak."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{what}:")[2].split()[0]) * 1024


def forget_peak() -> None:
    """VmHWM starts afresh."""
    Path("/proc/self/clear_refs").write_text("5")


def in_process(*arguments: str) -> dict:
    """Runs a sub-command of bench.py in a process of its own; the last line it prints is its result. Raises InputError
    with what that process said where it failed."""
    done = subprocess.run([sys.executable, sys.argv[0], *arguments], capture_output=True, text=True)
    if done.returncode:
        *_, said = ["", *done.stderr.splitlines()]
        raise InputError(f"{arguments[0]} failed with exit code {done.returncode}: {said.removeprefix('bench.py: ')}")
    return json.loads(done.stdout.splitlines()[-1])


def write_trace(options: argparse.Namespace, ways: dict[str, Callable[[], object]]) -> None:
    """Runs everything once more under PyTorch's profiler, where --trace asks for it: prints the operators that took
    longest themselves, and writes a Chrome trace with a named range for each way."""
    if not options.trace:
        return
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (options.device.type == "cuda")
    with profile(activities=activities) as profiled:
        for name, run in ways.items():
            with record_function(name):
                run()
    spent = "self_device_time_total" if options.device.type == "cuda" else "self_cpu_time_total"
    print(profiled.key_averages().table(sort_by=spent, row_limit=15, max_name_column_width=40))
    profiled.export_chrome_trace(str(options.trace))
    print(f"{options.trace}: Chrome trace; open it at ui.perfetto.dev")


def table(lines: Sequence[dict], columns: dict[str, str]) -> str:
    """Aligned, and Markdown. columns: heading, and the format of a line's figures; what a line lacks stays blank."""
    rows = [list(columns), ["-" * 3] * len(columns)]
    for line in lines:
        rows.append([])
        for form in columns.values():
            try:
                rows[-1].append(form.format(**line))
            except (KeyError, TypeError):  # not there, or None
                rows[-1].append("")
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("| " + " | ".join(cell.rjust(width) for cell, width in zip(row, widths)) + " |" for row in rows)


def finish(options: argparse.Namespace, result: dict) -> None:
    """One line of JSON, where it is wanted."""
    if options.json:
        print(json.dumps(result))
