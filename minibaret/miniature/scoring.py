"""Scores of many edits and of the networks, scene by scene: in worker processes, and kept in a file as they come."""

import json
import os
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from ..editor import Editor
from ..errors import InputError
from ..evaluation import Scores, score
from ..loading import load
from ..progress import Count, nobody
from ..weights.folder import load_image_encoder, tuples
from . import networks
from .cases import drawn_case
from .workers import in_workers

BATCH = 10  # scenes that the networks are scored on in one go


@dataclass(frozen=True)
class Edit:
    """One edit to be scored: of which scene, what, and how."""

    kind: str
    seed: int
    method: str
    knobs: dict[str, object]  # all that the method has
    distortion: str | None = None


class Kept:
    """Scores by what they are of, one JSON line each; in a file where a path is given, so that work can go on there.

    A last line that was cut short, as by a kill, is dropped. fingerprint: of the weights; scores of other weights stay
    in the file and are not seen. What the code was is not recorded: after changing what a score comes from, begin
    another file. Raises InputError where the file holds something else.
    """

    def __init__(self, path: Path | None, fingerprint: str):
        self.path, self.fingerprint = path, fingerprint
        self.found: dict[str, Scores] = {}
        if path and path.exists():
            *lines, rest = path.read_bytes().split(b"\n")
            try:
                self.found = {json.dumps(line["of"]): line["scores"] for line in map(json.loads, lines)}
            except (ValueError, TypeError, KeyError):
                lines = []
            if not lines and path.stat().st_size:
                raise InputError(f"{path} should hold kept scores, but holds something else")
            os.truncate(path, path.stat().st_size - len(rest))
        elif path:
            path.parent.mkdir(parents=True, exist_ok=True)

    def get(self, of: dict) -> Scores | None:
        return self.found.get(self._key(of))

    def add(self, of: dict, scores: Scores) -> None:
        self.found[self._key(of)] = scores
        if self.path:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(f'{{"of": {self._key(of)}, "scores": {json.dumps(scores)}}}\n')

    def _key(self, of: dict) -> str:
        return json.dumps({"weights": self.fingerprint, **of})


@dataclass
class Scorer:
    """Scores what is asked for and not kept, with one folder of weights."""

    weights: Path
    kept: Kept
    workers: int
    watch: Count = nobody

    def edits(self, edits: Sequence[Edit]) -> list[Scores]:
        """Of every edit, in order. Edits of one scene by one method share what they can of its inversion, so the cost
        of each is without it."""
        groups: dict[tuple, dict[str, dict]] = {}
        for edit in edits:
            alike = groups.setdefault((edit.kind, edit.seed, edit.method, edit.distortion), {})
            alike[json.dumps(vars(edit))] = vars(edit)
        self._make("edits", _edits, [list(alike.values()) for alike in groups.values()])
        return [self.kept.get(vars(edit)) for edit in edits]

    def networks(self, seeds: Sequence[int]) -> list[Scores]:
        """`networks.scores` of every seed's scene, in order."""
        scenes = [{"networks, scene": seed} for seed in seeds]
        self._make("networks", _networks, [scenes[start : start + BATCH] for start in range(0, len(scenes), BATCH)])
        return [self.kept.get(scene) for scene in scenes]

    def _make(self, name: str, function: Callable[[Path, list[dict]], list[Scores]], groups: list[list[dict]]) -> None:
        """Has workers make what is not kept, one group at a time, and keeps it."""
        total = sum(map(len, groups))
        groups = [missing for group in groups if (missing := [of for of in group if self.kept.get(of) is None])]
        done = total - sum(map(len, groups))
        self.watch(name, done, total)
        with closing(in_workers(partial(function, self.weights), groups, self.workers)) as made:
            for group, scores in zip(groups, made):
                for of, scored in zip(group, scores):
                    self.kept.add(of, scored)
                done += len(group)
                self.watch(name, done, total)


def _edits(weights: Path, edits: list[dict]) -> list[Scores]:
    editor, inversion, found = _editor(weights), None, []
    for edit in (Edit(**of) for of in edits):
        case = drawn_case(edit.kind, edit.seed, editor.config.image_size, edit.distortion)
        scores, result = score(editor, case, edit.method, tuples(edit.knobs), inversion=inversion)
        inversion = result.kept
        found.append(scores)
    return found


def _networks(weights: Path, scenes: list[dict]) -> list[Scores]:
    seeds = [seed for scene in scenes for seed in scene.values()]
    return networks.scores(_editor(weights), load_image_encoder(weights), seeds)


@cache
def _editor(weights: Path) -> Editor:
    return load(weights, "cpu")
