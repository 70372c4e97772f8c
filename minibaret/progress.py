"""Following the steps of the work: to its end, by the clock, and as progress bars on a terminal."""

import sys
import time
from collections.abc import Callable, Generator
from contextlib import closing
from typing import TextIO, TypeVar

from .baret import Step

WIDTH = 28  # characters of the bar

Found = TypeVar("Found")


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


class Clock:
    """Wall time by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.start()

    def start(self) -> None:
        self._since = time.perf_counter()

    def lap(self, name: str) -> None:
        """Counts the time since the last lap or start under `name`."""
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
        self._since = now


class ProgressBars:
    """Called with each `Step`, draws its stage's bar on stderr, with the time left; where that is no terminal, a line
    when the stage is done."""

    def __init__(self, stream: TextIO | None = None):
        self.stream = stream or sys.stderr
        self.live = self.stream.isatty()
        self.name, self.iterations, self.begin, self.before = "", 0, 0.0, 0
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
        self.count(step.stage, step.index + 1, step.total, note)

    def count(self, name: str, done: int, total: int, note: str = "") -> None:
        """Draws the bar `name` at `done` of `total`."""
        if name != self.name:
            self._end_line()
            self.name = name
            self.begin = time.monotonic() if done == 0 else self.begin
            self.before = max(done - 1, 0)  # steps of an earlier run
        seconds = time.monotonic() - self.begin
        left = seconds / max(done - self.before, 1) * (total - done)
        bar = "━" * round(WIDTH * done / total)
        when = f"{left:.0f} s left" if done < total else f"{seconds:.1f} s"
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
