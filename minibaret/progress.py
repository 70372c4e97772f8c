"""Following the steps of the work: to its end, by the clock, and as progress bars."""

import functools
import sys
import time
from collections.abc import Callable, Generator
from contextlib import closing
from typing import TypeVar

import torch
from tqdm import tqdm

from .errors import InputError
from .sampler import Step

Found = TypeVar("Found")
Count = Callable[[str, int, int], object]  # what is counted, how many are done, of how many


def nobody(*_) -> None:
    """Watches nothing."""


def run_to_end(work: Generator[Step, None, Found], watch: Callable[[Step], object] | None = None) -> Found:
    """Runs a generator of steps to its end, for what it returns."""
    with closing(work):
        while True:
            try:
                step = next(work)
            except StopIteration as end:
                return end.value
            if watch:
                watch(step)


def outside_inference_mode(work: Callable[..., Generator]) -> Callable[..., Generator]:
    """A generator function whose steps run outside of a caller's torch.inference_mode: there no gradient can be had."""

    @functools.wraps(work)
    def wrapped(*arguments, **options):
        with closing(work(*arguments, **options)) as steps:
            while True:
                try:
                    with torch.inference_mode(False):
                        step = next(steps)
                except StopIteration as end:
                    return end.value
                yield step

    return wrapped


class Clock:
    """Wall time by name, of a device that may be busy after its caller went on."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.seconds: dict[str, float] = {}
        self.device = device
        self.start()

    def start(self) -> None:
        self._since = time.perf_counter()

    def lap(self, name: str) -> None:
        """Counts the time since the last lap or start under `name`, when the device has done what it was given."""
        self._wait()
        self._count(name)

    def timed(self, work: Generator[Step, None, Found]) -> Generator[Step, None, Found]:
        """Passes on the steps of `work`, and what it returns; each step counts under its stage, the caller's own time
        between steps under nothing. The device is waited for where a stage ends, so that its steps may overlap."""
        with closing(work):
            while True:
                try:
                    step = next(work)
                except StopIteration as end:
                    self.lap("edit")
                    return end.value
                if not isinstance(step, Step):
                    raise InputError(f"a method must yield a Step each time, got {type(step).__name__}")
                if step.index + 1 == step.total:
                    self._wait()
                self._count(step.stage)
                yield step
                self.start()

    def _wait(self) -> None:
        if self.device is not None and self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)

    def _count(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
        self._since = now


class ProgressBars:
    """Called with each `Step`, draws its stage's bar on stderr."""

    def __init__(self) -> None:
        self.bar: tqdm | None = None
        self.name, self.iterations = "", 0

    def __enter__(self) -> "ProgressBars":
        return self

    def __exit__(self, *_) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def __call__(self, step: Step) -> None:
        bar = self._bar(step.stage, step.index, step.total)
        if step.loss is not None:
            self.iterations = (self.iterations if step.index else 0) + step.iterations
            bar.set_postfix_str(f"loss {step.loss:.1e}, {self.iterations} inner iterations", refresh=False)
        self._advance(bar, step.index + 1)

    def count(self, name: str, done: int, total: int) -> None:
        """Brings the bar `name` to `done` of `total`."""
        self._advance(self._bar(name, max(done - 1, 0), total), done)

    def _advance(self, bar: tqdm, done: int) -> None:
        bar.update(done - bar.n)
        if done == bar.total:
            self.__exit__()

    def _bar(self, name: str, done: int, total: int) -> tqdm:
        if self.bar is None or (self.name, self.bar.total) != (f"{name:<22}", total) or done < self.bar.n:
            self.__exit__()
            self.name = f"{name:<22}"
            seldom = {} if sys.stderr.isatty() else {"mininterval": 1e9, "delay": 1e-9}  # one line when a stage is done
            self.bar = tqdm(desc=self.name, total=total, initial=done, file=sys.stderr, ncols=100, **seldom)
        return self.bar
