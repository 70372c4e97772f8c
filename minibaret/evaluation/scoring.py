"""Edits of cases: made, scored by every metric, in worker processes, and kept in a file as they come."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from ..editor import Editor
from ..errors import InputError
from ..images import psnr, write_image
from ..inversion import Inversion
from ..loading import load
from ..methods import Method
from ..models.image_encoder import ImageTower
from ..pipeline import StableDiffusion
from ..progress import Count, nobody
from ..result import Result
from ..weights import MINIATURE_FOLDER
from ..weights.folder import IMAGE_ENCODER, load_image_encoder, tuples
from ..workers import in_workers
from .cases import Case, LazyCase
from .metrics import METRICS
from .networks import Missing, Networks

LINE = b'{"of": '  # how each begins that is kept
FAILED = 3.0  # dB below the VAE's own: a reconstruction that failed; ours
Scores = dict[str, float | bool | str]  # a text says why there is none


def score(
    editor: Editor,
    case: Case,
    method: str | Method = "baret",
    knobs: Mapping[str, object] | None = None,
    *,
    networks: Networks | None = None,
    inversion: Inversion | None = None,
) -> tuple[Scores, Result]:
    """Edits the case; every metric of the edit, and what it cost.

    knobs: the method's, by name; inversion: as `Editor.steps` has it. Beside `METRICS`: vae_psnr: dB of the
    VAE's own reconstruction against the input; reconstruction_psnr, reconstruction_vae_psnr: of the method's, where it
    has one, against the input and against the VAE's, and whether it is within 3 dB of the VAE's (reconstructed);
    inner_iterations, loss: of its tuning, where it tunes an embedding, the loss at its end as the mean over time steps;
    seconds, row_forwards, gradient_passes: of a whole edit, so not where an inversion was given.
    """
    networks = networks or Networks()
    options = {"source_prompt": case.source_prompt, "inversion": inversion, **(knobs or {})}
    result = editor.edit(case.image, case.prompt, method, **options)
    case = case.fitted(result.input.size)
    scores: Scores = {}
    for name, metric in METRICS.items():
        try:
            value = metric.of and metric.of(case, result.image, networks)
        except Missing as missing:
            value = str(missing)
        if value is not None:
            scores[name] = value
    # where there is a limit, with the savings that keep it
    sd = editor.sd if editor.memory_limit is None else StableDiffusion(editor.model, result.savings)
    coded = sd.decode(sd.encode(result.input))
    scores["vae_psnr"] = psnr(coded, result.input)
    if result.reconstruction_psnr is not None:
        scores["reconstruction_psnr"] = result.reconstruction_psnr
        scores["reconstruction_vae_psnr"] = psnr(result.images["reconstruction"], coded)
        scores["reconstructed"] = result.reconstruction_psnr > scores["vae_psnr"] - FAILED
    if result.tuned:
        scores["inner_iterations"] = sum(step.iterations for step in result.tuned)
        scores["loss"] = sum(step.losses[-1].item() for step in result.tuned) / len(result.tuned)
    if inversion is None:
        scores |= {"seconds": sum(result.seconds.values()), **asdict(result.counts)}
    return scores, result


class Edit(NamedTuple):
    """One edit to be scored."""

    case: LazyCase
    method: str
    knobs: dict[str, object]  # all that the method has

    @property
    def of(self) -> dict:
        """What its scores are kept under."""
        return {"case": self.case.name, "method": self.method, "knobs": self.knobs}


class ScoreFile:
    """Scores by what they are of, one JSON line each; in a file where a path is given, so that work can go on there.

    A last line that was cut short, as by a kill, is dropped. fingerprint: of the weights, and of what else the scores
    depend on. What the code was is not recorded: after changing what a score comes from, begin another file. Raises
    InputError where the file holds something else, or scores of other weights.
    """

    def __init__(self, path: Path | None, fingerprint: str):
        self.path, self.fingerprint = path, fingerprint
        self.found: dict[str, Scores] = {}
        if path and path.exists():
            lines, whole = read_lines(path)
            if any(line["of"].get("weights") != fingerprint for line in lines):
                raise InputError(f"{path} has scores of other weights or networks: name another file for these")
            self.found = {json.dumps(line["of"]): line["scores"] for line in lines}
            os.truncate(path, whole)
        elif path:
            path.parent.mkdir(parents=True, exist_ok=True)

    def get(self, of: dict) -> Scores | None:
        return self.found.get(self._key(of))

    def add(self, of: dict, scores: Scores) -> None:
        self.found[self._key(of)] = scores
        if self.path:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(f'{LINE.decode()}{self._key(of)}, "scores": {json.dumps(scores)}}}\n')

    def _key(self, of: dict) -> str:
        return json.dumps({"weights": self.fingerprint, **of})


def read_lines(path: Path) -> tuple[list[dict], int]:
    """The kept scores, and how many bytes of the file hold them: a last line without an end is left out. Raises
    InputError, with the line's number, for one that holds something else."""
    *lines, rest = path.read_bytes().split(b"\n")
    found = []
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            found.append({"of": dict(entry["of"]), "scores": dict(entry["scores"])})
        except (ValueError, TypeError, KeyError):
            raise InputError(f"{path} should hold kept scores, but line {number} holds something else") from None
    if rest and not lines and not rest.startswith(LINE[: len(rest)]):
        raise InputError(f"{path} should hold kept scores, but holds something else")
    return found, path.stat().st_size - len(rest)


@dataclass(frozen=True)
class Laboratory:
    """What edits are made and scored with, read once in every process."""

    loading: tuple = (None, "cpu")  # arguments of `load`, the first of them the weights
    networks: Path | None = None  # folder of the metrics' networks
    pictures: Path | None = None  # folder to leave the pictures in

    @cache  # noqa: B019  lives as long as its process
    def open(self) -> tuple[Editor, Networks]:
        editor = load(*self.loading)
        return editor, Networks(self.networks, editor.sd, own_tower(self.loading[0]))


def own_tower(weights: Path | None) -> ImageTower | None:
    """The image half of a CLIP pair that the weights may bring."""
    folder = weights or MINIATURE_FOLDER
    return load_image_encoder(folder) if (folder / IMAGE_ENCODER).exists() else None


@dataclass
class Scorer:
    """Scores what is asked for and not kept."""

    laboratory: Laboratory
    kept: ScoreFile
    jobs: int = 1  # processes of one thread each; one: this process, as it is
    watch: Count = nobody

    def edits(self, edits: Sequence[Edit]) -> list[Scores]:
        """Of every edit, in order. Edits of one case by one method are made together, and tune once what is the same:
        only the first of such has its costs."""
        groups: dict[tuple[str, str], dict[str, Edit]] = {}
        for edit in edits:
            groups.setdefault((edit.case.name, edit.method), {})[json.dumps(edit.of)] = edit
        self.make("edits", _edits, [list(alike.values()) for alike in groups.values()], lambda edit: edit.of)
        return [self.kept.get(edit.of) for edit in edits]

    def make(self, name: str, function: Callable, groups: Sequence[Sequence], of: Callable[..., dict]) -> None:
        """Has `function` make the scores that are not kept, and keeps each under what `of` says it is of; with several
        jobs a group of them at a time. function: from the laboratory and a group to the group's scores, in order."""
        total = sum(map(len, groups))
        groups = [missing for group in groups if (missing := [one for one in group if self.kept.get(of(one)) is None])]
        done = total - sum(map(len, groups))
        self.watch(name, done, total)
        if self.jobs > 1:
            made = in_workers(partial(_whole, function, self.laboratory), groups, self.jobs)
        else:
            made = ((place, function(self.laboratory, group)) for place, group in enumerate(groups))
        with closing(made):
            for place, scores in made:
                for one, scored in zip(groups[place], scores):
                    self.kept.add(of(one), scored)
                    done += 1
                    self.watch(name, done, total)


def _whole(function: Callable, laboratory: Laboratory, group: Sequence) -> list[Scores]:
    return list(function(laboratory, group))


def _edits(laboratory: Laboratory, edits: Sequence[Edit]) -> Iterator[Scores]:
    """Of edits of one case by one method, as they are made."""
    editor, networks = laboratory.open()
    case, inversions = edits[0].case.make(), []
    prompts = [editor.sd.tokens(text) for text in (case.prompt, case.source_prompt or "")]
    for edit in edits:
        inversion = next((kept for kept in inversions if kept.holds_tuning(edit.knobs, prompts)), None)
        given = {"networks": networks, "inversion": inversion}
        try:
            scores, result = score(editor, case, edit.method, tuples(edit.knobs), **given)
        except InputError as error:
            raise InputError(f"{edit.case.name} by {edit.method}: {error}") from None
        inversions += [result.kept] if inversion is None else []
        if laboratory.pictures:
            leave_pictures(laboratory.pictures, edit.of, case.fitted(result.input.size), result.image)
        yield scores


def leave_pictures(folder: Path, of: dict, case: Case, picture: Image.Image) -> None:
    """The edit at `picture_path`, the case's own pictures in folder/input and folder/answer, under the same name."""
    name = f"{of['case']}.png"
    places = {
        picture_path(folder, of): picture,
        folder / "input" / name: case.image,
        folder / "answer" / name: case.answer,
    }
    for path, each in places.items():
        if each:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_image(each, path)


def picture_path(folder: Path, of: dict) -> Path:
    """Of an edit's picture; a row's name has what its knobs are in it."""
    digest = hashlib.sha256(json.dumps(of["knobs"]).encode()).hexdigest()[:8]
    return folder / f"{of['method']}-{digest}" / f"{of['case']}.png"
