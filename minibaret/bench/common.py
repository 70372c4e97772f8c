"""Timing in turns, memory, processes of their own, traces: what every sub-command uses."""

import argparse
import contextlib
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
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from ..files import check_place


def complete(options: argparse.Namespace) -> None:
    """The device and dtype that were not given. Raises InputError where a file that is wanted could not be written."""
    for path in filter(None, (getattr(options, name, None) for name in ("trace", "plot"))):
        check_place(path, force=True)
    options.device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    options.dtype = getattr(torch, options.dtype or ("float16" if options.device.type == "cuda" else "float32"))


def card(options: argparse.Namespace, packages: Sequence[str] = ("triton",), **more) -> dict:
    """Prints and returns what the figures were measured on. packages: whose versions matter, beside PyTorch's."""
    facts = {
        "device": torch.cuda.get_device_name(options.device) if options.device.type == "cuda" else _processor(),
        "dtype": str(options.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{package: _version(package) for package in packages},
        **more,
    }
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:>{width}}  {value}")
    return facts


def in_turns(ways: dict[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Milliseconds per call: every way once or more a round, in turn, so that a busy moment hits all of them."""
    calls = {}
    for name, run in ways.items():
        took = milliseconds(run, 1, device)  # allocates, compiles
        took = took if took > 1000 else milliseconds(run, 1, device)
        calls[name] = max(1, min(100, int(5 / max(took, 1e-3))))  # 5 ms at least
    times = {name: [] for name in ways}
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
        torch.cuda.synchronize(device)
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
    """Runs a sub-command of bench.py in a process of its own; the last line it prints is its result."""
    done = subprocess.run([sys.executable, sys.argv[0], *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def resident(what: str) -> int:
    """Bytes of a line of /proc/self/status: VmRSS, the resident set now; VmHWM, its peak."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{what}:")[2].split()[0]) * 1024


def forget_peak() -> None:
    """VmHWM starts afresh."""
    Path("/proc/self/clear_refs").write_text("5")


def trace(runs: dict[str, Callable[[], object]], path: Path) -> None:
    """Runs everything once more, under the profiler, and writes a Chrome trace with a named range for each."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
    with profile(activities=activities) as profiled:
        for name, run in runs.items():
            with record_function(name):
                run()
    profiled.export_chrome_trace(str(path))
    print(f"{path}: Chrome trace; open it at chrome://tracing or ui.perfetto.dev")


def operators(run: Callable[[], object], most: int = 10) -> dict[str, float]:
    """The seconds that PyTorch's operators took themselves, those they call left out: the longest, and "other". On a
    GPU, the seconds of the kernels that they launch."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
    with profile(activities=activities) as profiled:
        run()
    found: dict[str, float] = {}
    events = [
        event for event in profiled.key_averages() if event.device_type == DeviceType.CPU
    ]  # the others launch none
    on_gpu = any(event.self_device_time_total for event in events)
    for event in events:
        found[event.key] = (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e6
    ranked = sorted(found, key=found.__getitem__, reverse=True)
    kept = {name: round(found[name], 6) for name in ranked[:most]}
    return kept | {"other": round(sum(found[name] for name in ranked[most:]), 6)}


def print_operators(what: str, columns: dict[str, dict[str, float]]) -> None:
    """A table of what `operators` found, one column per way."""
    names = list(dict.fromkeys(name for column in columns.values() for name in column if name != "other"))
    print(f"\n{f'milliseconds by operator, {what}':>52}" + "".join(f"{way:>26}" for way in columns))
    for name in [*names, "other"]:
        cells = (f"{column[name] * 1e3:.1f}" if name in column else "in other" for column in columns.values())
        print(f"{name[:52]:>52}" + "".join(f"{cell:>26}" for cell in cells))
    print(f"{'all':>52}" + "".join(f"{sum(column.values()) * 1e3:>26.1f}" for column in columns.values()))


def finish(options: argparse.Namespace, result: dict) -> None:
    if options.json:
        print(json.dumps(result))


def milliseconds(run: Callable[[], object], calls: int, device: torch.device) -> float:
    synchronize(device)
    begin = time.perf_counter()
    for _ in range(calls):
        run()
    synchronize(device)
    return (time.perf_counter() - begin) / calls * 1e3


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return "CPU"


def _version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
