"""What is slow to find about a picture, kept: a DDIM trajectory, tuned embeddings, a tuned prompt; in memory, so that
methods share it, and on disk.

Everything kept is a list of tuples of tensors, one for each step, with a name and a recipe: the values that it follows
from, beside picture and model. The file is safetensors: tensor "trajectory.0.12.0" is of the first list, of its item
12, the first; its metadata, all strings, hold format, version, origin and lists (JSON), and sha256 of these and all
tensors.
"""

import json
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as to_bytes
from torch import Tensor

from .errors import InputError
from .files import absent, as_path, brief, write_whole
from .origin import Origin, digest, picture_digest
from .sampler import Step
from .weights.files import open_file, shown

FORMAT, VERSION = "minibaret inversion", "2"
SUFFIX = ".safetensors"
START_OVER = "pass --force to start over"  # restart, in Python
SHARE = 0.02  # of the time of an inversion may go into checkpoints


class Mismatch(InputError):
    """An inversion belongs to another picture, prompt, model or knob."""


@dataclass
class Entry:
    name: str
    recipe: dict
    items: list[tuple[Tensor, ...]] = field(default_factory=list)
    read: bool = False  # of an inversion that was made before this run, for good: from a file, or from `Editor.invert`
    used: bool = False  # asked for, and found


@dataclass
class Inversion:
    """Lists that grow as they are found, by name and recipe."""

    origin: Origin | None = None  # what it is of; None: of an edit, in memory only
    name: str = "the inversion"  # its file, for messages
    entries: list[Entry] = field(default_factory=list)
    picture: str | None = None  # digest of the picture it was used for, where there is no origin
    anew: bool = False  # make anew what a file has by another recipe, its trajectory excepted, instead of refusing

    def find(self, name: str, recipe: dict, kind: type = tuple, shapes: tuple | None = None) -> list:
        """The list of that name and recipe, to be read and extended; empty at first.

        kind: the tuple class of its items; shapes: of the first tensors of each item. Where a file has that name by
        another recipe, nothing of it is used: raises Mismatch, saying what differs, unless that is only a prompt, for
        which the list is made anew. A trajectory is never made anew beside a file's.
        """
        recipe = json.loads(json.dumps(recipe))
        for place, entry in enumerate(self.entries):
            if entry.name == name and not _differing(entry.recipe, recipe):
                _check(entry, kind, shapes, self.name)
                entry.used = True
                self.entries.append(self.entries.pop(place))  # the list that was asked for last is the last
                return entry.items
        rivals = [entry for entry in self.entries if entry.name == name and entry.read]
        for entry in rivals:
            differing = _differing(entry.recipe, recipe)
            if name == "trajectory" or not (self.anew or differing <= {"prompt", "source"}):
                said = "; ".join(_said(key, entry.recipe.get(key), recipe.get(key)) for key in sorted(differing))
                raise Mismatch(f"{self.name} does not belong to this run: it was made with {said}")
        self.entries.append(Entry(name, recipe))
        return self.entries[-1].items

    def belongs_to(self, origin: Origin) -> "Inversion":
        """Itself, to be used for that picture and model. Raises Mismatch where it is another's."""
        found = self.origin.differences(origin)
        if found:
            raise Mismatch(f"{self.name} does not belong to this run: it was made with {'; '.join(found)}")
        return self

    def used_for(self, picture: Image.Image) -> None:
        """Notes the fitted picture. Raises Mismatch where it was used for another."""
        digest = picture_digest(picture)
        if self.picture not in (None, digest):
            raise Mismatch(f"{self.name} does not belong to this run: it was made with another picture")
        self.picture = digest

    def to(self, device: torch.device | str) -> "Inversion":
        """A copy that can grow on its own, on the device."""
        read = self.origin is not None
        entries = [
            Entry(entry.name, entry.recipe, [tuple(x.to(device) for x in item) for item in entry.items], read)
            for entry in self.entries
        ]
        return Inversion(self.origin, self.name, entries, self.picture)

    def holds_tuning(self, knobs: dict, prompts: Collection[list[int]]) -> bool:
        """Whether there is something tuned for every step, with these knobs and one of the prompts (token ids)."""
        knobs = json.loads(json.dumps(knobs))
        return any(
            entry.name != "trajectory"
            and len(entry.items) == knobs["steps"]
            and all(
                _essence(x) in prompts if isinstance(x, dict) else knobs.get(key, x) == x
                for key, x in entry.recipe.items()
            )
            for entry in self.entries
        )

    def knobs(self, keeps: str) -> dict[str, object]:
        """The knobs that its trajectory and the list of that name were made with."""
        entries = [entry for entry in self.entries if entry.name in ("trajectory", keeps)]
        merged = {key: value for entry in entries for key, value in entry.recipe.items()}
        plain = {key: value for key, value in merged.items() if not isinstance(value, dict)}
        return {key: tuple(value) if isinstance(value, list) else value for key, value in plain.items()}

    @property
    def start(self) -> Tensor | None:
        """z*[0], the picture's latents (1, 4, h, w), if a trajectory is kept."""
        items = next((entry.items for entry in self.entries if entry.name == "trajectory"), [])
        return items[0][0] if items else None

    @property
    def steps(self) -> int:
        """How much it holds."""
        return sum(len(entry.items) for entry in self.entries)

    def items(self, name: str) -> list:
        """The items of the list of that name that was found last."""
        return next((entry.items for entry in reversed(self.entries) if entry.name == name), [])

    def save(self, path: str | Path, overwrite: bool = True) -> None:
        """Writes the file, whole or not at all. Raises InputError where it cannot be written, or is there and may not
        be overwritten, and for what an edit found, which does not say what it is of."""
        if self.origin is None:
            raise InputError("an inversion to save must be one of `Editor.invert`, got what an edit has found")
        tensors = {
            f"{entry.name}.{number}.{index}.{place}": tensor.detach().cpu().contiguous().clone()
            for number, entry in enumerate(self.entries)
            for index, item in enumerate(entry.items)
            for place, tensor in enumerate(item)
        }
        lists = json.dumps([{"name": entry.name, "recipe": entry.recipe} for entry in self.entries])
        origin = json.dumps(vars(self.origin))
        metadata = {"format": FORMAT, "version": VERSION, "origin": origin, "lists": lists}
        metadata["sha256"] = digest(origin + lists, sorted(tensors.items()))
        try:
            write_whole(Path(path), to_bytes(tensors, metadata), overwrite)
        except OSError as error:
            raise InputError(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}") from None


def load_inversion(path: str | Path) -> Inversion:
    """Reads what `Inversion.save` wrote. Raises InputError where the file is missing, damaged or something else."""
    path = as_path(path, "an inversion file")
    if not path.is_file():
        raise InputError(absent(path) if path.is_symlink() else f"there is no inversion file {path}")
    open_file(path)  # says what is wrong with a file that is not safetensors, or cut short
    with path.open("rb") as file:
        metadata = json.loads(file.read(int.from_bytes(file.read(8), "little"))).get("__metadata__")
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise InputError(f"{path} is a safetensors file, but none that minibaret invert wrote")
    if metadata.get("version") != VERSION:
        found = brief(metadata.get("version"))
        raise InputError(f"{path} has version {found} of the format; this minibaret reads {VERSION}")
    try:
        tensors = parse_tensors(path.read_bytes())
        whole = metadata["sha256"] == digest(metadata["origin"] + metadata["lists"], sorted(tensors.items()))
    except (KeyError, TypeError, SafetensorError):
        whole = False
    if not whole:
        raise InputError(f"{path} is damaged: what it holds is not what was written")
    try:
        origin = json.loads(metadata["origin"])
        origin = Origin(**{**origin, "size": tuple(origin["size"])})
        entries = [Entry(str(e["name"]), dict(e["recipe"]), read=True) for e in json.loads(metadata["lists"])]
        for number, entry in enumerate(entries):
            found: dict[int, dict[int, Tensor]] = {}
            prefix = f"{entry.name}.{number}."
            for name in [name for name in tensors if name.startswith(prefix)]:
                index, place = map(int, name.removeprefix(prefix).split("."))
                found.setdefault(index, {})[place] = tensors.pop(name)
            items = [[item[place] for place in range(len(item))] for item in (found[i] for i in range(len(found)))]
            entry.items = [tuple(item) for item in items]
        if tensors:
            raise ValueError(f"{len(tensors)} tensors of no list")
        _check_content(origin, entries)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise InputError(f"{path} was written by another version of minibaret, which keeps something else") from None
    return Inversion(origin, str(path), entries)


def _check_content(origin: Origin, entries: list[Entry]) -> None:
    """Raises ValueError or TypeError for what no minibaret writes, though it may be signed."""
    words = [origin.picture, origin.fit, origin.dtype, *origin.weights, *origin.weights.values()]
    if not all(isinstance(word, str) and word.isprintable() for word in words):
        raise ValueError("an origin is of words")
    if len(origin.size) != 2 or any(type(side) is not int or side < 1 for side in origin.size):
        raise ValueError("a size is two whole numbers")
    for entry in entries:
        for value in entry.recipe.values():
            listed = value if isinstance(value, list) else []
            if isinstance(value, dict) and not isinstance(value.get("text"), str):
                raise ValueError("a prompt has a text")
            if any(isinstance(part, bool) or not isinstance(part, int | float) for part in listed):
                raise ValueError("a list in a recipe is of numbers")
        if any(not x.is_floating_point() or not x.numel() or not x.dim() for item in entry.items for x in item):
            raise ValueError("what is kept are numbers")


def keep(work: Iterator[Step], file: Path, inversion: Inversion, overwrite: bool = True) -> Iterator[Step]:
    """Passes on the steps of `work`, which fills the inversion, and writes it to the file at its end.

    Until then it is kept beside the file, under `unfinished_path`: written after every step, or more seldom where that
    would take more than a small share of the time, and when the work stops early, unless the process is killed.
    """
    unfinished = unfinished_path(file)
    kept, due = inversion.steps, 0.0
    try:
        for step in work:
            begin = time.monotonic()
            if begin >= due:
                inversion.save(unfinished)
                end = time.monotonic()
                kept, due = inversion.steps, end + (end - begin) / SHARE
            yield step
        inversion.save(file, overwrite)
        unfinished.unlink(missing_ok=True)
    except BaseException:
        if inversion.steps > kept:
            inversion.save(unfinished)
        raise


def resume(file: Path, origin: Origin, restart: bool) -> Inversion | None:
    """What an interrupted inversion that was to become the file has found; None if there is none, or where it is
    damaged and `restart` says to begin anew. Raises Mismatch where it is of something else."""
    if not unfinished_path(file).exists():
        return None
    try:
        return load_inversion(unfinished_path(file)).belongs_to(origin)
    except Mismatch:
        raise
    except InputError as error:
        if restart:
            return None
        raise InputError(f"{error}; {START_OVER}") from None


def discard(file: Path, restart: bool, mismatch: Mismatch) -> bool:
    """Deletes an unfinished inversion that does not belong to a run; whether there was one. Raises InputError where
    there is and `restart` does not say to."""
    unfinished = unfinished_path(file)
    if unfinished.exists() and not restart:
        raise InputError(f"{mismatch}; {START_OVER}") from None
    if not unfinished.exists():
        return False
    unfinished.unlink()
    return True


def unfinished_path(file: Path) -> Path:
    """Where an inversion is kept until it is finished."""
    return file.with_name(file.name + ".part")


def check_name(path: Path) -> None:
    """Raises InputError unless the name is one for an inversion file."""
    if path.suffix.lower() != SUFFIX:
        raise InputError(f"the name of an inversion file must end in {SUFFIX}, got {path.name}")


def _check(entry: Entry, kind: type, shapes: Collection | None, name: str) -> None:
    """Makes tuples of a file those of `kind`. Raises InputError where they cannot be."""
    try:
        entry.items[:] = [item if kind is tuple else kind(*item) for item in entry.items]
        fit = all(x.shape == shape for item in entry.items for x, shape in zip(item, shapes or ()))
    except TypeError:
        fit = False
    if not fit:
        raise InputError(f"{name} is damaged: its {entry.name} has other shapes than this picture and model")


def _differing(a: dict, b: dict) -> set[str]:
    """The keys of two recipes whose values differ; prompts are compared by what they are to the model."""
    return {key for key in a.keys() | b.keys() if _essence(a.get(key)) != _essence(b.get(key))}


def _essence(value):
    return value.get("tokens") if isinstance(value, dict) else value


def _said(key: str, was, wanted) -> str:
    """A value of a recipe that differs, as the command line has it."""
    if isinstance(was, dict) and isinstance(wanted, dict):
        made, asked = was.get("text"), wanted.get("text")
        said = f"the prompt {made!r}" if made else "the empty prompt"
        return "another tokenizer" if made == asked else f"{said}, not {repr(asked) if asked else 'the empty one'}"
    words = [":".join(f"{part:g}" for part in v) if isinstance(v, list) else shown(str(v)) for v in (was, wanted)]
    return f"{shown(key).replace('_', ' ')} {words[0]}, not {words[1]}"
