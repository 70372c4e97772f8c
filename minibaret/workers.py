"""Worker processes of one thread each: two threads that share a small step wait longer than they work."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
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


def in_workers(function: Callable, jobs: Sequence, workers: int) -> Iterator[tuple[int, object]]:
    """The place of each job and the function's result, as they are done. Where nobody waits for more, or one fails, the
    workers are ended."""
    start = multiprocessing.get_context("spawn")
    with environment(), ProcessPoolExecutor(workers, start, _begin, (os.getpid(),)) as pool:
        places = {pool.submit(function, job): place for place, job in enumerate(jobs)}
        try:
            for done in as_completed(places):
                yield places[done], done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in multiprocessing.active_children():
                worker.terminate()
                worker.join()
            raise


def _begin(parent: int) -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends a worker without a word: its parent says it all
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """Ends this worker once its parent was killed, who could not do it."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
