"""Edits of drawn scenes as cases to be scored: the right answer is the same scene with one attribute changed."""

from collections.abc import Sequence
from functools import partial

from minibaret.errors import InputError
from minibaret.evaluation.cases import Case, Source

from .world.distortions import DISTORTIONS, distort
from .world.drawing import render
from .world.scene import MEASURED_SEEDS, SWEEP_SEEDS
from .world.tasks import KINDS, task_of

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
        kind=kind,
        fit=FIT,
    )


def drawn_source(kind: str, seed: int, side: int, distortion: str | None = None) -> Source:
    name = f"{kind}/{seed}-{distortion}" if distortion else f"{kind}/{seed}"
    return Source(name, partial(drawn_case, kind, seed, side, distortion))


def drawn_sources(spec: str, seeds: Sequence[int], side: int) -> list[Source]:
    """KIND:COUNT[:DISTORTION], of the first seeds. Raises InputError for another."""
    kind, count, distortion, *more = spec.split(":") + [""] * 2
    if (
        any(more)
        or kind not in KINDS
        or not count.isdecimal()
        or not int(count)
        or distortion not in ("", *DISTORTIONS)
    ):
        wanted = f"{'|'.join(KINDS)}:COUNT[:{'|'.join(DISTORTIONS)}]"
        raise InputError(f"drawn: and sweep: must be followed by {wanted}, got {spec}")
    if int(count) > len(seeds):
        raise InputError(f"there are {len(seeds):,} drawn scenes, too few for {spec}")
    return [drawn_source(kind, seed, side, distortion or None) for seed in seeds[: int(count)]]
