"""The clock and the bars, by a clock that the test sets."""

import io

import pytest
import torch

from minibaret import progress
from minibaret.baret import Step
from minibaret.progress import Clock, ProgressBars, relay


@pytest.fixture
def now(monkeypatch) -> list[float]:
    """The time in seconds; a test sets its only entry."""
    found = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: found[0])
    monkeypatch.setattr(progress.time, "perf_counter", lambda: found[0])
    return found


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def step(stage: str, index: int, total: int = 4) -> Step:
    return Step(stage, index, total, torch.zeros(1))


def test_the_clock_counts_each_stage_and_not_its_caller(now):
    def work():
        try:
            for stage in ("inversion", "inversion", "edit"):
                now[0] += 2
                yield step(stage, 0)
            return "found"
        finally:
            ended.append(True)

    ended: list[bool] = []
    clock, seen = Clock(), []

    def whole():
        seen.append((yield from clock.timed(work())))

    for _ in whole():
        now[0] += 100  # the caller's own
    assert clock.seconds == {"inversion": 4, "edit": 2} and seen == ["found"] and ended == [True]
    stopped = clock.timed(work())
    next(stopped)
    stopped.close()
    assert ended == [True, True]


def test_relay_tells_what_passes_and_returns_what_the_work_returns():
    told = []

    def work():
        yield step("edit", 0)
        told.append("resumed work")
        yield step("edit", 1)
        return "found"

    def whole():
        told.append((yield from relay(work(), lambda step: told.append(step.index), lambda: told.append("resumed"))))

    for passed in whole():
        told.append(f"passed {passed.index}")
    assert told == [0, "passed 0", "resumed", "resumed work", 1, "passed 1", "resumed", "found"]


def said(bars: ProgressBars, *call) -> str:
    """What a call of `count` draws."""
    bars.stream.seek(0)
    bars.stream.truncate()
    bars.count(*call)
    return bars.stream.getvalue()


def test_the_time_left_follows_the_pace_of_this_run(now):
    with ProgressBars(Terminal()) as bars:
        now[0] = 60
        assert "left" not in said(bars, "edits", 36, 108)  # a group at once, or an earlier run's
        now[0] = 120
        assert " 60 s left" in said(bars, "edits", 72, 108)
        now[0] = 180
        assert "180.0 s" in said(bars, "edits", 108, 108)
    with ProgressBars(Terminal()) as bars:
        assert "left" not in said(bars, "edits", 36, 108)  # kept from an earlier run, said at once
        now[0] += 60
        assert " 60 s left" in said(bars, "edits", 72, 108)


def test_steps_of_an_earlier_run_do_not_count_in_the_pace(now):
    with ProgressBars(Terminal()) as bars:
        now[0] = 10
        bars(step("edit", 2))
        assert " 10 s left" in bars.stream.getvalue()
