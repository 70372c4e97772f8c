"""Scores edits of drawn scenes, whose right answer is known: the same scene drawn with the attribute that the text
changes."""

import dataclasses
import time
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from .editor import Editor
from .images import psnr
from .miniature.drawing import render
from .miniature.scene import HELD_OUT_SEEDS, POSTURES, Scene
from .settings import Settings
from .sheet import contact_sheet

SHEET_ROWS = 12


@dataclasses.dataclass(frozen=True)
class Task:
    """A scene, and the same scene as the edit should leave it."""

    before: Scene
    after: Scene

    @property
    def candidates(self) -> list[Scene]:
        """The scene in each of its postures: what the edit might have become."""
        return [dataclasses.replace(self.before, posture=posture) for posture in POSTURES[self.before.animal]]


def posture_tasks(count: int, seeds: range = HELD_OUT_SEEDS) -> Iterator[Task]:
    """The first `count` scenes of the seeds, each with another posture to reach."""
    for seed in seeds[:count]:
        before = Scene.random(seed)
        others = [posture for posture in POSTURES[before.animal] if posture != before.posture]
        after = np.random.default_rng([seed, 7]).choice(others)
        yield Task(before, dataclasses.replace(before, posture=str(after)))


def evaluate(
    editor: Editor,
    settings: Settings,
    kind: str,
    count: int,
    watch: Callable[[str, int, int], None] = lambda *_: None,
    seeds: range = HELD_OUT_SEEDS,
) -> tuple[dict[str, float], Image.Image]:
    """Means over `count` edits, and a sheet of the first twelve in seed order.

    success: of the scene drawn in each posture, the edit is nearest (mean squared error) to the one asked for.
    background_psnr: dB against the input, over the pixels where the drawn answer equals the drawn input.
    reconstruction_psnr: dB of where target-text inversion leads, against the VAE's own reconstruction of the input.
    vae_psnr: dB of that against the input. inner_iterations: of target-text inversion, an edit. seconds: an edit.
    """
    assert kind == "posture"
    scores, rows = [], []
    for index, task in enumerate(posture_tasks(count, seeds)):
        begin = time.perf_counter()
        result = editor.edit(render(task.before), task.after.caption(), settings)
        seconds = time.perf_counter() - begin
        coded = editor.decode(editor.encode(result.input))
        answer = render(task.after)
        scores.append(
            {
                "success": float(nearest(result.image, task.candidates) == task.after),
                "background_psnr": psnr(result.image, result.input, unchanged(result.input, answer)),
                "reconstruction_psnr": psnr(result.reconstruction, coded),
                "vae_psnr": psnr(coded, result.input),
                "inner_iterations": float(sum(result.record.iterations)),
                "seconds": seconds,
            }
        )
        if index < SHEET_ROWS:
            rows.append([result.input, result.reconstruction, result.transition, result.image, answer])
        watch(f"{kind} edits", index + 1, count)
    labels = ["input", "reconstruction", "transition", "edit", "right answer"]
    return {name: float(np.mean([s[name] for s in scores])) for name in scores[0]}, contact_sheet(rows, labels)


def nearest(picture: Image.Image, candidates: list[Scene]) -> Scene:
    """The candidate whose drawing has the least mean squared error to the picture."""
    return max(candidates, key=lambda scene: psnr(picture, render(scene, picture.height)))


def unchanged(before: Image.Image, after: Image.Image) -> np.ndarray:
    """Where two pictures agree: bool (H, W)."""
    return (np.asarray(before) == np.asarray(after)).all(-1)
