"""Files that are written whole or not at all."""

import json
import os
import secrets
from collections.abc import Callable
from pathlib import Path

from .errors import InputError


def check_place(path: Path, force: bool) -> None:
    """Raises InputError where a file could not be written, before any work is done for it."""
    if not path.parent.is_dir():
        raise InputError(f"there is no folder {path.parent} to write {path.name} to")
    if path.is_dir():
        raise InputError(f"a file was wanted as output, but {path} is a folder")
    if path.exists() and not force:
        raise InputError(f"{path} exists already; pass --force to overwrite it")
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"the folder {path.parent} cannot be written to")


def write_whole(path: Path, write: Callable[[str], object]) -> None:
    """Has `write` fill a file under a temporary name beside `path`, then renames it: `path` is whole or untouched, also
    where the power fails."""
    unfinished = str(path.parent / f".{path.stem[:40]}-{secrets.token_hex(8)}{path.suffix}")
    os.close(os.open(unfinished, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666))  # less what the umask takes away
    try:
        write(unfinished)
        with open(unfinished, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException:
        os.unlink(unfinished)
        raise


def read_json(path: Path) -> object:
    """What is in a JSON file. Raises InputError where it is something else."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise InputError(f"{path} is damaged: JSON was wanted there") from None


def write_text_whole(path: Path, text: str) -> None:
    """`write_whole` of a text, in UTF-8."""
    write_whole(path, lambda unfinished: Path(unfinished).write_text(text, encoding="utf-8"))
