"""The process around a command: streams that may be closed or cannot hold a name, and signals that stop it."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

STOPPED = 130  # exit code of a command that was stopped, as a shell has it for Ctrl-C
NOT_READ = 141  # and of one whose output nobody wants to read any more
NOTHING_DONE = "minibaret: stopped; nothing was written"
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Forgiving:
    """A stream for messages: what cannot be written to it, since its reader went away or a disk is full, is dropped."""

    def __init__(self, stream):
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str):
        return getattr(self._stream, name)


@contextlib.contextmanager
def steady_streams() -> Iterator[None]:
    """stdout and stderr that are always there, and spell out (\\xff) what their encoding does not have."""
    before = sys.stdout, sys.stderr
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed; the descriptor is taken, so that no other file gets it
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif hasattr(getattr(sys, name), "reconfigure"):
            getattr(sys, name).reconfigure(errors="backslashreplace")
    sys.stderr = Forgiving(sys.stderr)
    try:
        yield
    finally:
        try:
            sys.stdout.flush()
        except (OSError, ValueError):  # what is left goes nowhere, or Python would try again, and complain, at its end
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), sys.stdout.fileno())
        sys.stdout, sys.stderr = before


@contextlib.contextmanager
def stopped_by_signals(at_once: str = "") -> Iterator[None]:
    """Ctrl-C, SIGTERM and a terminal that is closed raise KeyboardInterrupt, unless the process was started to ignore
    them. at_once: say this and end the process instead, while nothing is there to clean up: not everywhere do libraries
    that are being imported bear an exception."""

    def stop(*_) -> None:
        if not at_once:
            raise KeyboardInterrupt
        with contextlib.suppress(OSError):
            os.write(2, f"{at_once}\n".encode())
        os._exit(STOPPED)

    before = {}
    if threading.current_thread() is threading.main_thread():  # others may set none
        before = {number: signal.getsignal(number) for number in SIGNALS}
    mine = [number for number, handler in before.items() if handler not in (signal.SIG_IGN, None)]
    for number in mine:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in mine:
            signal.signal(number, before[number])
