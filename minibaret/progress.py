"""Following the steps of the work: to its end, by the clock, and as progress bars on a terminal."""

import sys
import time
from collections.abc import Callable, Generator
from contextlib import closing
from typing import TextIO, TypeVar

import torch

from .baret import Step

WIDTH = 28  # characters of the bar

Found = TypeVar("Found")
Count = Callable[[str, int, int], object]  # what is counted, how many are done, of how many


def nobody(*_) -> None:
    """Watches nothing."""


def run_to_end(work: Generator[Step, None, Found], watch: Callable[[Step], None] | None) -> Found:
    """Runs a generator of steps to its end, for what it returns."""
    with closing(work):
        while True:
            try:
                step = next(work)
            except StopIteration as end:
                return end.value
            if watch:
                watch(step)


def relay(
    work: Generator[Step, None, Found], stepped: Callable[[Step], None] | None, resumed: Callable[[], None] | None
) -> Generator[Step, None, Found]:
    """Passes on the steps of `work`, and what it returns. stepped: called with a step before it is passed on; resumed:
    called when the next one is asked for."""
    with closing(work):
        while True:
            try:
                step = next(work)
            except StopIteration as end:
                return end.value
            if stepped:
                stepped(step)
            yield step
            if resumed:
                resumed()


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

    def _wait(self) -> None:
        if self.device is not None and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _count(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
        self._since = now

    def timed(self, work: Generator[Step, None, Found]) -> Generator[Step, None, Found]:
        """Passes on the steps of `work`, and what it returns; each step counts under its stage, the caller's own time
        between steps under nothing. The device is waited for where a stage ends, so that its steps may overlap."""

        def stepped(step: Step) -> None:
            if step.index + 1 == step.total:
                self._wait()
            self._count(step.stage)

        return (yield from relay(work, stepped, self.start))


class ProgressBars:
    """Called with each `Step`, draws its stage's bar on stderr, with the time left; where that is no terminal, a line
    when the stage is done."""

    def __init__(self, stream: TextIO | None = None):
        self.stream = stream or sys.stderr
        self.live = self.stream.isatty()
        self.name, self.iterations, self.begin = "", 0, 0.0
        self.before, self.since = 0, 0.0  # how many were done at what time, from where on the pace is reckoned
        self.open = False

    def __enter__(self) -> "ProgressBars":
        self.begin = time.monotonic()
        return self

    def __exit__(self, *_) -> None:
        self._end_line()

    def __call__(self, step: Step) -> None:
        note = ""
        if step.loss is not None:
            self.iterations = (self.iterations if step.index else 0) + step.iterations
            note = f"loss {step.loss:.1e}, {self.iterations} inner iterations"
        self.count(step.stage, step.index + 1, step.total, note, before=step.index)

    def count(self, name: str, done: int, total: int, note: str = "", before: int | None = None) -> None:
        """Draws the bar `name` at `done` of `total`.

        before: at a bar's first call, how many were done when its work began. Where that is None, those done by the
        first call may be an earlier run's, and the time left is known from the second call on.
        """
        now = time.monotonic()
        if name != self.name:
            self._end_line()
            self.name = name
            self.begin = now if done == 0 else self.begin
            self.before, self.since = (done, now) if before is None else (before, self.begin)
        bar = "━" * round(WIDTH * done / total)
        when = f"{now - self.begin:.1f} s"
        if done < total:
            new = done - self.before
            when = f"{(now - self.since) / new * (total - done):.0f} s left" if new else ""
        line = f"{name:<22}{bar:<{WIDTH}} {done:>3}/{total}  {when}  {note}"
        if self.live:
            self.stream.write(f"\r\x1b[2K{line}")
            self.open = True
        elif done == total:
            self.stream.write(line.rstrip() + "\n")
        self.stream.flush()
        if done == total:
            self._end_line()
            self.begin = time.monotonic()

    def _end_line(self) -> None:
        if self.open:
            self.stream.write("\n")
        self.open = False
