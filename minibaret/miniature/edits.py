"""Scores many edits of drawn scenes: in worker processes, and kept in a file as they are done."""

import dataclasses
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import cache
from pathlib import Path

from PIL import Image

from ..editor import Editor
from ..errors import InputError
from ..evaluation import invert, score
from ..loading import load
from ..origin import INVERSION_SETTINGS
from ..progress import Count, nobody
from ..settings import Settings
from .workers import in_workers
from .world.tasks import task_of

LINE = b'{"of": '  # how each kept line begins


@dataclasses.dataclass(frozen=True)
class Edit:
    """One edit to be scored: of which scene, what, and how."""

    kind: str
    seed: int
    settings: Settings
    distortion: str | None = None


class Kept:
    """Results by what they are of, one JSON line each; in a file where a path is given, so that work can go on there.

    A last line that was cut short, as by a kill, is dropped. fingerprint: of the weights that results are of; results
    of other weights stay in the file and are not seen. What the code was is not recorded: after changing what a score
    comes from, begin another file. Raises InputError where the file holds something else.
    """

    def __init__(self, path: Path | None, fingerprint: str):
        self.path, self.fingerprint = path, fingerprint
        self.results: dict[str, dict] = {}
        if path and path.exists():
            *whole, rest = path.read_bytes().split(b"\n")
            try:
                lines = [json.loads(line) for line in whole]
                self.results = {json.dumps(line["of"]): line["result"] for line in lines}
                ours = rest.startswith(LINE) or not rest or (len(lines) > 0 and LINE.startswith(rest))
            except (ValueError, TypeError, KeyError):
                ours = False
            if not ours:
                raise InputError(f"{path} should hold kept results, but holds something else")
            if rest:
                os.truncate(path, path.stat().st_size - len(rest))
        elif path:
            path.parent.mkdir(parents=True, exist_ok=True)

    def get(self, of: dict) -> dict | None:
        return self.results.get(self._key(of))

    def add(self, of: dict, result: dict) -> None:
        self.results[self._key(of)] = result
        if self.path:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(f'{{"of": {self._key(of)}, "result": {json.dumps(result)}}}\n')

    def _key(self, of: dict) -> str:
        return json.dumps({"weights": self.fingerprint, **of})


def score_edits(
    edits: Sequence[Edit],
    weights: Path,
    kept: Kept,
    workers: int,
    watch: Count = nobody,
) -> list[dict[str, float]]:
    """The figures of `evaluation.score` of every edit, in order; those that are kept are not made again.

    Edits that differ only in what comes after target-text inversion share one; the seconds of each count it as well.
    """
    keys = [dataclasses.asdict(edit) for edit in edits]
    if not edits:
        return []
    missing = {json.dumps(key): edit for key, edit in zip(keys, edits) if kept.get(key) is None}
    groups: dict[Edit, list[Edit]] = {}
    for edit in missing.values():
        groups.setdefault(_inverted(edit), []).append(edit)
    done = len(edits) - len(missing)
    watch("edits", done, len(edits))
    with closing(in_workers(_score, [(weights, group) for group in groups.values()], workers)) as fresh:
        for group, scored in zip(groups.values(), fresh):
            for edit, scores in zip(group, scored):
                kept.add(dataclasses.asdict(edit), scores)
            done += len(group)
            watch("edits", done, len(edits))
    return [kept.get(key) for key in keys]


def edit_pictures(edits: Sequence[Edit], weights: Path, workers: int) -> Iterator[list[Image.Image]]:
    """Input, reconstruction, transition, edit and right answer of every edit, in order."""
    return in_workers(_pictures, [(weights, edit) for edit in edits], workers)


def _inverted(edit: Edit) -> Edit:
    """Stands for all edits that begin with the same inversion."""
    what_counts = {name: getattr(edit.settings, name) for name in INVERSION_SETTINGS}
    return dataclasses.replace(edit, settings=Settings(**what_counts))


def _score(weights: Path, edits: Sequence[Edit]) -> list[dict[str, float]]:
    editor, first = _editor(weights), edits[0]
    task = task_of(first.kind, first.seed)
    begin = time.perf_counter()
    inversion = invert(editor, first.settings, task, first.distortion)
    seconds = time.perf_counter() - begin
    found = []
    for edit in edits:
        scores, _ = score(editor, edit.settings, task, edit.distortion, inversion=inversion)
        scores["seconds"] += seconds
        found.append({name: round(value, 4) for name, value in scores.items()})
    return found


def _pictures(weights: Path, edit: Edit) -> list[Image.Image]:
    task = task_of(edit.kind, edit.seed)
    return score(_editor(weights), edit.settings, task, edit.distortion, pictures=("transition",))[1]


@cache
def _editor(weights: Path) -> Editor:
    return load(weights, "cpu")
