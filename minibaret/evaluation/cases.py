"""What an edit is asked for and what is known of its right answer; folders of such cases."""

import csv
import dataclasses
import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ..errors import InputError
from ..files import read_json
from ..images import fit_image, read_image

PIE_SIDE = 512  # pixels, of its pictures and masks
PIE_KINDS = (  # by editing_type_id
    *("random", "change-object", "add", "delete", "content", "pose", "colour", "material", "background", "style"),
)


@dataclass(frozen=True)
class Case:
    """An edit that is asked for."""

    image: Image.Image
    prompt: str  # what the edited picture should show
    source_prompt: str | None = None  # what the picture shows
    answers: Mapping[str, Image.Image] = field(default_factory=dict)  # by prompt: what the edit might have become
    mask: Image.Image | None = None  # white where the edit may change the picture, else black
    kind: str = ""  # of edit

    @property
    def answer(self) -> Image.Image | None:
        """The right one."""
        return self.answers.get(self.prompt)

    @property
    def changing(self) -> np.ndarray | None:
        """Where the edit may change the picture, bool (H, W): in the mask, else where the right answer differs."""
        if self.mask:
            return np.asarray(self.mask.convert("L")) > 127
        return ~unchanged(self.image, self.answer) if self.answer else None

    def fitted(self, size: tuple[int, int]) -> "Case":
        """The same with all its pictures at `size`, (width, height)."""
        answers = {prompt: fit_image(picture, size) for prompt, picture in self.answers.items()}
        mask = self.mask and fit_image(self.mask, size)
        return dataclasses.replace(self, image=fit_image(self.image, size), answers=answers, mask=mask)


class LazyCase(NamedTuple):
    """Where a case comes from. It is made in the process that edits it."""

    name: str  # kind/which, fit for a file's name; no other case has it
    make: Callable[[], Case]


def named(kind: str, which: str, picture: Path, *texts: str) -> str:
    """kind/which-digest, of the case's file and texts: what was changed has another name. Raises InputError
    where there is no file."""
    if not picture.is_file():
        raise InputError(f"a picture was wanted at {picture}, but there is none")
    digest = hashlib.sha256(picture.read_bytes() + "\n".join(texts).encode()).hexdigest()[:8]
    return "/".join(re.sub(r"[^\w-]+", "-", part) for part in (kind, f"{which}-{digest}"))


def unchanged(before: Image.Image, after: Image.Image) -> np.ndarray:
    """Where two pictures agree: bool (H, W)."""
    return (np.asarray(before) == np.asarray(after)).all(-1)


def pie_cases(spec: str) -> list[LazyCase]:
    """FOLDER[:KIND] of PIE-Bench (PnPInversion): mapping_file.json and annotation_images/; of one kind of edit, or all.
    Raises InputError where they are not what they should be."""
    folder, kind = _folder_and_kind(spec)
    path = folder / "mapping_file.json"
    entries = read_json(path)
    if not isinstance(entries, dict):
        raise InputError(f"{path} must be an object with an entry for each picture, got {type(entries).__name__}")
    sources = []
    for key, entry in entries.items():
        try:
            found = dict(enumerate(PIE_KINDS))[int(entry["editing_type_id"])]  # a list would take -1
            texts = [str(entry[name]) for name in ("image_path", "original_prompt", "editing_prompt")]
            runs = entry["mask"].split() if isinstance(entry["mask"], str) else entry["mask"]
            runs = tuple(map(int, runs))
            pie_mask(runs)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError, InputError) as error:
            wanted = "an editing_type_id of 0 to 9, image_path, original_prompt, editing_prompt and mask"
            got = error if isinstance(error, InputError) else repr(error)
            raise InputError(f"entry {key} of {path} must have {wanted} as PIE-Bench has them, but: {got}") from None
        if kind in (None, found):
            name = named(found, key, folder / "annotation_images" / texts[0], *texts, str(runs))
            sources.append(LazyCase(name, partial(pie_case, folder, *texts, runs, found)))
    return sources


def _folder_and_kind(spec: str) -> tuple[Path, str | None]:
    name, colon, kind = spec.rpartition(":")
    if colon and kind not in PIE_KINDS and Path(name).is_dir() and not Path(spec).exists():
        raise InputError(f"a kind of PIE-Bench's edits must be one of {', '.join(PIE_KINDS)}, got {kind}")
    return (Path(name), kind) if colon and kind in PIE_KINDS else (Path(spec), None)


def pie_case(folder: Path, image: str, source: str, prompt: str, runs: tuple[int, ...], kind: str) -> Case:
    """The brackets that mark changed words are no part of a prompt."""
    source, prompt = (text.replace("[", "").replace("]", "") for text in (source, prompt))
    picture = read_image(folder / "annotation_images" / image)
    return Case(picture, prompt, source, mask=pie_mask(runs).resize(picture.size, Image.Resampling.NEAREST), kind=kind)


def pie_mask(runs: tuple[int, ...]) -> Image.Image:
    """PIE-Bench's run lengths, pairs of start and length over the rows of 512² pixels; its outermost pixels are always
    among them. Raises InputError where a run does not fit."""
    mask = np.zeros(PIE_SIDE**2, dtype=np.uint8)
    for start, length in zip(runs[::2], runs[1::2]):
        mask[start : start + length] = 255
    ends = [start + length for start, length in zip(runs[::2], runs[1::2])]
    if len(runs) % 2 or any(run < 0 for run in runs) or any(end > PIE_SIDE**2 for end in ends):
        raise InputError(f"a mask must be pairs of start and length within {PIE_SIDE**2} pixels, got {str(runs)[:40]}")
    mask = mask.reshape(PIE_SIDE, PIE_SIDE)
    mask[[0, -1]] = mask[:, [0, -1]] = 255
    return Image.fromarray(mask)


def folder_cases(spec: str) -> list[LazyCase]:
    """A folder of pictures and one CSV file, as TEdBench is: a line a case, columns image (a path in the folder),
    prompt, and source_prompt and kind, if they are known. Raises InputError where they are not what they should be."""
    folder = Path(spec)
    tables = sorted(folder.glob("*.csv"))
    if len(tables) != 1:
        raise InputError(f"a folder with one CSV file was wanted, but {folder} has {len(tables)}")
    try:
        with open(tables[0], newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            headings, lines = reader.fieldnames or (), list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{tables[0]} must be a CSV file in UTF-8, but: {error}") from None
    if not {"image", "prompt"} <= {*headings}:
        raise InputError(
            f"the first line of {tables[0]} must name columns, image and prompt among them, got {headings}"
        )
    sources, columns = [], ("image", "prompt", "source_prompt", "kind")
    for number, line in enumerate(lines, 2):
        texts = {name: (line.get(name) or "").strip() for name in columns}
        if None in line:
            raise InputError(f"line {number} of {tables[0]} has more columns than the first: quote texts with commas")
        if not texts["image"] or not texts["prompt"]:
            raise InputError(f"line {number} of {tables[0]} must have an image and a prompt")
        kind = texts.pop("kind") or folder.resolve().name
        name = named(kind, Path(texts["image"]).stem, folder / texts["image"], *texts.values())
        sources.append(LazyCase(name, partial(folder_case, folder, kind=kind, **texts)))
    if len({bool((line.get("source_prompt") or "").strip()) for line in lines}) > 1:
        raise InputError(f"{tables[0]} must have a source_prompt in every line or in none")
    return sources


def folder_case(folder: Path, image: str, prompt: str, source_prompt: str, kind: str) -> Case:
    return Case(read_image(folder / image), prompt, source_prompt or None, kind=kind)
