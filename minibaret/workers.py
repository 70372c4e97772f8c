"""Worker processes of one thread each: two threads that share a small step wait longer than they work."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

import torch

# glibc hands large blocks back to the system at every free; keeping them makes a step about a quarter faster.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
    "MALLOC_TOP_PAD_": str(2**28),
}


@contextmanager
def environment() -> Iterator[None]:
    """What processes that are started meanwhile begin with; afterwards everything is as it was."""
    before = dict(os.environ)
    os.environ.update(ENVIRONMENT)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def in_workers(function: Callable, jobs: Sequence, workers: int) -> Iterator:
    """The function's results in the jobs' order; those that nobody waits for any more are not begun."""
    with environment(), ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin) as pool:
        yield from pool.map(function, jobs)


def _begin() -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends a worker without a word: its parent says it all
