"""Worker processes of one thread each: two threads that share a small step wait longer than they work."""

import contextlib
import multiprocessing as mp
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor

import torch

# glibc hands large blocks back to the system at every free; keeping them makes a step about a quarter faster.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
    "MALLOC_TOP_PAD_": str(2**28),
}


@contextlib.contextmanager
def environment() -> Iterator[None]:
    """What processes that are started meanwhile begin with; afterwards everything is as it was."""
    before = {name: os.environ.get(name) for name in ENVIRONMENT}
    os.environ.update(ENVIRONMENT)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def in_workers(function: Callable, arguments: Sequence[tuple], workers: int) -> Iterator:
    """The function's results in the arguments' order."""
    if not arguments:
        return
    pool = ProcessPoolExecutor(workers, mp.get_context("spawn"), _begin_work)
    try:
        with environment():
            results = pool.map(function, *zip(*arguments))  # starts the processes
        yield from results
    finally:
        pool.shutdown(cancel_futures=True)


def _begin_work() -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends a worker without a word: its parent says it all
