"""Edits of drawn scenes as cases to be scored: the right answer is the same scene with one attribute changed."""

from collections.abc import Sequence
from functools import partial

from minibaret.errors import InputError
from minibaret.evaluation.cases import Case, LazyCase

from .world.drawing import render
from .world.scene import MEASURED_SEEDS, SWEEP_SEEDS
from .world.tasks import KINDS, task_of

SEEDS = {"held-out": MEASURED_SEEDS, "sweep": SWEEP_SEEDS}  # to report figures of; to choose knobs by


def drawn_case(kind: str, seed: int, side: int) -> Case:
    """The seed's edit of that kind, on pictures of `side` pixels. Prompts are the scenes' captions."""
    task = task_of(kind, seed)
    return Case(
        image=render(task.before, side),
        prompt=task.after.caption(),
        source_prompt=task.before.caption(),
        answers={scene.caption(): render(scene, side) for scene in task.candidates},
        kind=kind,
    )


def lazy_case(kind: str, seed: int, side: int) -> LazyCase:
    return LazyCase(f"{kind}/{seed}", partial(drawn_case, kind, seed, side))


def drawn_cases(spec: str, seeds: Sequence[int], side: int) -> list[LazyCase]:
    """KIND:COUNT, of the first seeds. Raises InputError for another."""
    kind, _, count = spec.partition(":")
    if kind not in KINDS or not count.isdecimal() or not int(count):
        raise InputError(f"drawn: and sweep: must be followed by {'|'.join(KINDS)}:COUNT, got {spec}")
    if int(count) > len(seeds):
        raise InputError(f"there are {len(seeds):,} drawn scenes, too few for {spec}")
    return [lazy_case(kind, seed, side) for seed in seeds[: int(count)]]
