"""An inversion on disk: what DDIM inversion and target-text inversion found, and what it was made from.

A safetensors file. Its tensors, for T steps of which the last may still be missing:

    trajectory    z*[0] … z*[T]          (T + 1, 4, h, w), float32
    embeddings    E[0] … E[T-1]          (T, 77, width), in the dtype they were tuned in
    latents       Z_rec[1] … Z_rec[T]    (T, 4, h, w), float32
    iterations    inner, of each step    (T,), int64
    losses        of all steps in a row  (T + sum of iterations,), float64

and its metadata, all text: format, version, origin (JSON, see origin.py) and sha256 of the origin and all tensors.
"""

import hashlib
import json
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors
from safetensors.torch import save_file
from torch import Tensor

from .baret import Record, Step
from .errors import InputError
from .files import write_whole
from .inversion import TunedStep
from .origin import Origin, inversion_settings, tensor_digest
from .settings import Settings
from .weights.files import open_file

FORMAT, VERSION = "minibaret inversion", "1"
SUFFIX = ".safetensors"
SHARE = 0.02  # of the time of an inversion may go into checkpoints


@dataclass(frozen=True)
class Inversion:
    """What brings a picture to noise and back; begun or finished."""

    origin: Origin
    trajectory: tuple[Tensor, ...]  # z*[0] …, each (1, 4, h, w)
    tuned: tuple[TunedStep, ...]  # noisiest first
    name: str = "the inversion"  # its file, for messages

    @property
    def finished(self) -> bool:
        return len(self.tuned) == self.origin.settings["steps"]

    @property
    def iterations(self) -> list[int]:
        """Inner iterations, by step."""
        return [step.iterations for step in self.tuned]

    def summary(self) -> dict:
        """The figures of the inversion, as plain numbers; the last loss is None before the first tuned step."""
        settings = self.origin.settings
        return {
            "inner_iterations": sum(self.iterations),
            "inner_iterations_allowed": settings["steps"] * settings["inner_steps"],
            "last_loss": self.tuned[-1].losses[-1] if self.tuned else None,
        }

    def serves(self, tokens: Sequence[int], settings: Settings) -> bool:
        """Whether it is finished, and for a text of these tokens and these settings: nothing is left to tune."""
        origin = self.origin
        return self.finished and origin.tokens == tuple(tokens) and origin.settings == inversion_settings(settings)

    def record_for(self, origin: Origin, device: torch.device | str, may_differ: Collection[str] = ()) -> Record:
        """What a run of `origin` can go on from: everything, or the trajectory alone where something differs that the
        trajectory does not depend on and that `may_differ` names. Raises InputError, saying what, if more differs.

        may_differ: names of `Origin.differences`. A trajectory inverted with the target text is only that text's.
        """
        found = self.origin.differences(origin)
        spared = set(may_differ) - ({"text"} if self.origin.settings["inversion_text"] == "target" else set())
        wrong = [words for name, words in found.items() if name not in spared]
        if wrong:
            raise InputError(f"{self.name} does not belong to this run: it was made with {'; '.join(wrong)}")
        tuned = [] if found else self.tuned
        return Record(
            [latents.to(device) for latents in self.trajectory],
            [TunedStep(step.embedding.to(device), step.latents.to(device), step.losses) for step in tuned],
        )

    def save(self, path: str | Path) -> None:
        """Writes the file, whole or not at all. Raises InputError where it cannot be written."""
        tensors = {"trajectory": torch.cat(self.trajectory)}
        if self.tuned:
            tensors["embeddings"] = torch.cat([step.embedding for step in self.tuned])
            tensors["latents"] = torch.cat([step.latents for step in self.tuned])
            tensors["iterations"] = torch.tensor(self.iterations)
            losses = [loss for step in self.tuned for loss in step.losses]
            tensors["losses"] = torch.tensor(losses, dtype=torch.float64)
        tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        origin = self.origin.to_json()
        metadata = {"format": FORMAT, "version": VERSION, "origin": origin, "sha256": _digest(origin, tensors)}
        try:
            write_whole(Path(path), lambda unfinished: save_file(tensors, unfinished, metadata))
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}") from None


def load_inversion(path: str | Path) -> Inversion:
    """Reads what `Inversion.save` wrote. Raises InputError where the file is missing, damaged or something else."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no inversion file {path}")
    open_file(path)  # says what is wrong with a file that is not safetensors, or cut short
    with path.open("rb") as file:
        metadata = json.loads(file.read(int.from_bytes(file.read(8), "little"))).get("__metadata__")
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise InputError(f"{path} is a safetensors file, but none that minibaret invert wrote")
    if metadata.get("version") != VERSION:
        raise InputError(f"{path} has version {metadata.get('version')} of the format; this minibaret reads {VERSION}")
    try:
        tensors = parse_tensors(path.read_bytes())
        whole = metadata["sha256"] == _digest(metadata["origin"], tensors)
    except (KeyError, SafetensorError):
        whole = False
    if not whole:
        raise InputError(f"{path} is damaged: what it holds is not what was written")
    try:
        origin = Origin.from_json(metadata["origin"])
    except (ValueError, TypeError, KeyError, AttributeError):
        raise InputError(
            f"{path} was written by another version of minibaret, which records an inversion's origin differently"
        ) from None
    return Inversion(origin, _each(tensors["trajectory"]), _tuned_steps(tensors), name=str(path))


def _tuned_steps(tensors: dict[str, Tensor]) -> tuple[TunedStep, ...]:
    if "losses" not in tensors:
        return ()
    losses = tensors["losses"].split((tensors["iterations"] + 1).tolist())
    parts = zip(_each(tensors["embeddings"]), _each(tensors["latents"]), losses)
    return tuple(TunedStep(embedding, latents, tuple(values.tolist())) for embedding, latents, values in parts)


def _each(steps: Tensor) -> tuple[Tensor, ...]:
    """(T, …) → T tensors (1, …), each with memory of its own, as they were when they were found."""
    return tuple(step.clone() for step in steps.split(1))


def keep(work: Iterator[Step], file: Path, origin: Origin, record: Record) -> Iterator[Step]:
    """Passes on the steps of `work`, which fills the record, and writes the inversion to the file at its end.

    Until then it is kept beside the file, under `unfinished_path`: written after every step, or more seldom where that
    would take more than a small share of the time, and when the work stops early, unless the process is killed.
    """
    unfinished = unfinished_path(file)
    kept, due = _steps(record), 0.0
    try:
        for step in work:
            begin = time.monotonic()
            if begin >= due:
                _save(origin, record, unfinished)
                end = time.monotonic()
                kept, due = _steps(record), end + (end - begin) / SHARE
            yield step
        _save(origin, record, file)
        unfinished.unlink(missing_ok=True)
    except BaseException:
        if _steps(record) > kept:
            _save(origin, record, unfinished)
        raise


def resume(file: Path, origin: Origin, device: torch.device | str, restart: bool = False) -> Record | None:
    """What an interrupted inversion that was to become the file has found; None if there is none.

    Raises InputError where it is damaged or belongs to something else; with `restart` that counts as none.
    """
    unfinished = unfinished_path(file)
    if not unfinished.exists():
        return None
    try:
        return load_inversion(unfinished).record_for(origin, device)
    except InputError as error:
        if restart:
            return None
        raise InputError(f"{error}; pass --force to start over") from None


def unfinished_path(file: Path) -> Path:
    """Where an inversion is kept until it is finished."""
    return file.with_name(file.name + ".part")


def _save(origin: Origin, record: Record, path: Path) -> None:
    Inversion(origin, tuple(record.trajectory), tuple(record.tuned)).save(path)


def _steps(record: Record) -> int:
    return len(record.trajectory) + len(record.tuned)


def check_name(path: Path) -> None:
    """Raises InputError unless the name is one for an inversion file."""
    if path.suffix.lower() != SUFFIX:
        raise InputError(f"the name of an inversion file must end in {SUFFIX}, got {path.name}")


def _digest(origin: str, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(origin.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode() + tensor_digest(tensor))
    return digest.hexdigest()
