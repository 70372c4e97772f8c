"""Files that are written whole or not at all, and what is said of those that cannot be read."""

import contextlib
import json
import os
import re
import secrets
import stat
from collections.abc import Callable
from pathlib import Path

from .errors import InputError

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None

UNFINISHED = re.compile(r"\..*-[0-9a-f]{16}\.unfinished")
LONGEST_JSON = 20_000_000  # bytes; no file that is read as JSON here comes near


def as_path(path: str | os.PathLike, what: str) -> Path:
    """Raises InputError, naming `what` it is, for what is no path."""
    if not isinstance(path, str | os.PathLike):
        raise InputError(f"{what} must be a path, got {type(path).__name__}")
    return Path(path)


def check_place(path: Path, force: bool) -> None:
    """Raises InputError where a file could not be written, before any work is done for it."""
    try:
        place = Path(os.path.realpath(path))  # a link is followed
        mode = os.stat(place).st_mode
    except (FileNotFoundError, NotADirectoryError):
        mode = None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}") from None
    if not place.parent.is_dir():
        raise InputError(f"there is no folder {place.parent} to write {place.name} to")
    if mode is not None and not stat.S_ISREG(mode):
        raise InputError(f"a file was wanted as output, but {path} is {'a folder' if place.is_dir() else 'no file'}")
    if mode is not None and not force:
        raise InputError(f"{path} exists already; pass --force to overwrite it")
    if not os.access(place.parent, os.W_OK):
        raise InputError(f"the folder {place.parent} cannot be written to")


def same_place(first: Path, second: Path) -> bool:
    """Whether two names, of files that may not exist yet, are those of one file."""
    places = [os.path.normcase(os.path.realpath(path)) for path in (first, second)]
    return places[0] == places[1] or (all(map(os.path.exists, places)) and os.path.samefile(*places))


def write_whole(path: Path, content: bytes | Callable[[str], object], force: bool = True) -> None:
    """Writes a file under a temporary name beside `path` and gives it that name at the end: `path` is whole or
    untouched, also where the disk is full, the process is killed or the power fails.

    content: what to write, or a function that fills the file of a given name in place. A link is followed, and the mode
    of a file that is overwritten stays. Temporary files of killed runs in the same folder are removed. Raises
    InputError where `path` came to be meanwhile and `force` does not allow to overwrite it.
    """
    place = Path(os.path.realpath(path))
    _remove_leftovers(place.parent)
    old = place.stat() if place.exists() else None
    unfinished, lock = _create(place, 0o600 if old else 0o666)  # the latter less what the umask takes away
    try:
        mode = stat.S_IMODE((old or os.stat(unfinished)).st_mode)
        if callable(content):
            content(unfinished)
        else:
            Path(unfinished).write_bytes(content)
        with open(unfinished, "rb+") as file:
            os.fsync(file.fileno())
        if stat.S_IMODE(os.stat(unfinished).st_mode) != mode:
            os.chmod(unfinished, mode)
        if force:
            os.replace(unfinished, place)
        else:
            _give_free_name(unfinished, place)
    finally:
        if lock is not None:
            os.close(lock)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(unfinished)


def _create(place: Path, mode: int) -> tuple[str, int | None]:
    """A new file beside `place`: its name, and a descriptor that keeps it locked while it is open, so that nobody takes
    it for a killed run's."""
    while True:
        name = str(place.parent / f".{place.name[:40]}-{secrets.token_hex(8)}.unfinished")
        descriptor = os.open(name, os.O_CREAT | os.O_EXCL | os.O_RDWR, mode)
        if fcntl is None:
            os.close(descriptor)
            return name, None
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return name, descriptor
        os.close(descriptor)  # removed as a leftover before it was locked


def _give_free_name(unfinished: str, place: Path) -> None:
    """Renames a file, unless there is one of that name: asking and renaming are one step."""
    try:
        try:
            os.link(unfinished, place)
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links
            os.close(os.open(place, os.O_CREAT | os.O_EXCL))
            os.replace(unfinished, place)
    except FileExistsError:
        raise InputError(f"{place} was written by another run meanwhile; pass --force to overwrite it") from None


def _remove_leftovers(folder: Path) -> None:
    """Removes the temporary files of runs that were killed: those that nobody keeps locked."""
    if fcntl is None:
        return
    with contextlib.suppress(OSError):
        for name in filter(UNFINISHED.fullmatch, os.listdir(folder)):
            with contextlib.suppress(OSError):
                descriptor = os.open(folder / name, os.O_RDWR | os.O_NOFOLLOW)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    os.unlink(folder / name)
                finally:
                    os.close(descriptor)


def absent(path: Path) -> str:
    """What to say of a file that is not there; of a link to nowhere, that it is one."""
    if path.is_symlink():
        return f"{path} is a link to {os.readlink(path)}, which is not there, as after a download that was interrupted"
    return f"there is no file {path}"


def read_json(path: Path) -> object:
    """What is in a JSON file. Raises InputError where it is missing, too large or something else."""
    if not path.is_file():
        raise InputError(absent(path))
    if path.stat().st_size > LONGEST_JSON:
        raise InputError(f"{path} must have at most {LONGEST_JSON:,} bytes, it has {path.stat().st_size:,}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise InputError(f"{path} is damaged: JSON was wanted there") from None


def brief(value: object) -> str:
    """A value out of a JSON file as it may stand in a sentence."""
    try:
        said = json.dumps(value)
    except RecursionError:
        said = "something deeply nested"
    return said if len(said) <= 40 else f"{said[:40]}…"
