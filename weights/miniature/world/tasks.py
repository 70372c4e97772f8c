"""Edits whose right answer is known: a scene, and the same scene with one attribute changed."""

import dataclasses

import numpy as np

from .scene import ADDITIONS, ANIMALS, COLOURS, GROUNDS, POSTURES, Scene

KINDS = ("posture", "colour", "ground", "animal", "addition")

_TASK_STREAM = 7  # of random numbers, apart from those of `Scene`


@dataclasses.dataclass(frozen=True)
class Task:
    """A scene, and the same scene as the edit should leave it."""

    kind: str
    before: Scene
    after: Scene

    @property
    def candidates(self) -> list[Scene]:
        """The scene with each value of the attribute: what the edit might have become."""
        return variants(self.before, self.kind)


def task_of(kind: str, seed: int) -> Task:
    """The seed's scene, and another value of the attribute `kind` to reach, drawn from the same seed.

    An addition is put on, exchanged or taken away. Another animal keeps everything else, its posture as in `variants`.
    """
    before = Scene.random(seed)
    others = [scene for scene in variants(before, kind) if scene != before]
    return Task(kind, before, others[np.random.default_rng([seed, _TASK_STREAM]).integers(len(others))])


def variants(scene: Scene, attribute: str) -> list[Scene]:
    """The scene with each value of one attribute, its own among them.

    Another animal takes the posture of the same number, so that a jumping dog becomes a flying bird.
    """
    if attribute == "animal":
        number = POSTURES[scene.animal].index(scene.posture)
        return [dataclasses.replace(scene, animal=animal, posture=POSTURES[animal][number]) for animal in ANIMALS]
    values = {"posture": POSTURES[scene.animal], "colour": COLOURS, "ground": GROUNDS, "addition": ADDITIONS}
    return [dataclasses.replace(scene, **{attribute: value}) for value in values[attribute]]
