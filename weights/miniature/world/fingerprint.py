"""Names of what training data and scores were made from, so that none is taken for those of something else."""

import hashlib
import json
from functools import cache
from pathlib import Path

from .drawing import render
from .scene import ADDITIONS, ANIMALS, COLOURS, GROUNDS, POSTURES, Scene
from .tasks import KINDS, task_of


@cache
def world_fingerprint() -> str:
    """Of the drawn world: scenes that have every animal, posture, colour, ground and addition among them."""
    digest = hashlib.sha256()
    places = [(animal, posture) for animal in ANIMALS for posture in POSTURES[animal]]
    for number, (animal, posture) in enumerate(places):
        others = [values[number % len(values)] for values in (COLOURS, GROUNDS, ADDITIONS)]
        digest.update(render(Scene(number, animal, posture, *others), 64).tobytes())
        digest.update(Scene.random(number).caption().encode())
    return digest.hexdigest()[:16]


def fingerprint(weights: Path) -> str:
    """Of a minibaret folder's networks, their sizes, the drawn world and the tasks: what was measured on one holds for
    it alone."""
    config = json.loads((weights / "config.json").read_text(encoding="utf-8"))
    config.pop("defaults", None)  # an edit names its settings itself
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for path in (*sorted(weights.glob("*.safetensors")), weights / "merges.txt"):
        digest.update(path.read_bytes())
    digest.update(world_fingerprint().encode())
    for kind in KINDS:
        digest.update(" ".join(task_of(kind, seed).after.caption() for seed in range(4)).encode())
    return digest.hexdigest()[:16]
