"""The clock, by a time that the test sets, and the bars."""

import contextlib
import io

import pytest
import torch

from minibaret import progress
from minibaret.progress import Clock, ProgressBars, outside_inference_mode, run_to_end
from minibaret.sampler import Step


@pytest.fixture
def now(monkeypatch) -> list[float]:
    """The time in seconds; a test sets its only entry."""
    found = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: found[0])
    return found


def step(stage: str, index: int, total: int = 4, **more) -> Step:
    return Step(stage, index, total, torch.zeros(1), **more)


class Work:
    """Steps of three stages, two seconds each; remembers that it was ended."""

    def __init__(self, now: list[float]):
        self.now, self.ended = now, 0

    def run(self):
        try:
            for stage in ("inversion", "inversion", "edit"):
                self.now[0] += 2
                yield step(stage, 0)
            self.now[0] += 1
            return "found"
        finally:
            self.ended += 1


def test_the_clock_counts_each_stage_and_not_its_caller(now):
    work, clock, seen = Work(now), Clock(), []

    def whole():
        seen.append((yield from clock.timed(work.run())))

    for _ in whole():
        now[0] += 100  # the caller's own
    assert clock.seconds == {"inversion": 4, "edit": 3} and seen == ["found"] and work.ended == 1
    stopped = clock.timed(work.run())
    next(stopped)
    stopped.close()
    assert work.ended == 2
    clock.start()
    now[0] += 7
    clock.lap("decode")
    assert clock.seconds["decode"] == 7


def test_work_is_run_to_its_end_and_ended_where_the_watcher_raises(now):
    work, seen = Work(now), []
    assert run_to_end(work.run(), seen.append) == "found" and len(seen) == 3 and work.ended == 1
    with pytest.raises(LookupError):
        run_to_end(work.run(), lambda step: [][0])
    assert work.ended == 2


def test_a_gradient_can_be_had_in_a_callers_inference_mode():
    @outside_inference_mode
    def work():
        x = torch.ones(1, requires_grad=True)
        yield torch.autograd.grad((2 * x).sum(), x)[0]
        return torch.is_inference_mode_enabled()

    with torch.inference_mode():
        steps = work()
        assert next(steps) == 2 and torch.is_inference_mode_enabled()
        with pytest.raises(StopIteration) as end:
            next(steps)
    assert end.value.value is False


# The bars


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(params=[Terminal, io.StringIO], ids=["terminal", "file"])
def stream(request) -> io.StringIO:
    """Where stderr is to go."""
    return request.param()


def drawn(stream: io.StringIO) -> list[str]:
    """What is read on each line at the end."""
    return [line.split("\r")[-1].rstrip() for line in stream.getvalue().split("\n") if line.strip()]


def test_each_stage_has_a_line_that_stays(stream):
    with contextlib.redirect_stderr(stream), ProgressBars() as bars:
        for index in range(4):
            bars(step("inversion", index))
        for index in range(4):
            bars(step("target-text inversion", index, loss=2e-5, iterations=3))
        bars.count("edits", 2, 3)
        bars.count("edits", 3, 3)
    first, second, third = drawn(stream)
    assert first.startswith("inversion ") and "4/4" in first
    assert "4/4" in second and "loss 2.0e-05, 12 inner iterations" in second
    assert third.startswith("edits ") and "3/3" in third
    assert (
        "\r" in stream.getvalue().split("\n")[1].strip("\r")
    ) == stream.isatty()  # elsewhere one line when it is done


def test_a_stage_that_begins_again_has_a_line_of_its_own(stream):
    with contextlib.redirect_stderr(stream), ProgressBars() as bars:
        for index in (2, 3, 0, 1, 2, 3):  # the first goes on where an earlier run was
            bars(step("edit", index))
    assert [line.split()[0] for line in drawn(stream)] == ["edit", "edit"]
    assert all("4/4" in line for line in drawn(stream))


def test_a_bar_that_is_left_is_closed(stream):
    with pytest.raises(KeyboardInterrupt), contextlib.redirect_stderr(stream), ProgressBars() as bars:
        bars(step("edit", 0))
        raise KeyboardInterrupt
    assert bars.bar is None and (stream.getvalue().endswith("\n") or not stream.isatty())
