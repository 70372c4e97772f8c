"""Edits of drawn scenes as cases to be scored: the right answer is the same scene with one attribute changed."""

from ..evaluation import Case
from .world.distortions import distort
from .world.drawing import render
from .world.scene import MEASURED_SEEDS, SWEEP_SEEDS
from .world.tasks import task_of

SEEDS = {"held-out": MEASURED_SEEDS, "sweep": SWEEP_SEEDS}  # to report figures of; to choose knobs by
FIT = "stretch"  # of distorted pictures: the one fit that brings every pixel back to its place


def drawn_case(kind: str, seed: int, side: int, distortion: str | None = None) -> Case:
    """The seed's edit of that kind, on pictures of `side` pixels; distortion: of input and answers alike, a name in
    `DISTORTIONS`. Prompts are the scenes' captions."""
    task = task_of(kind, seed)

    def draw(scene):
        return distort(render(scene, side), distortion, seed)

    return Case(
        image=draw(task.before),
        prompt=task.after.caption(),
        source_prompt=task.before.caption(),
        answers={scene.caption(): draw(scene) for scene in task.candidates},
        fit=FIT,
    )
