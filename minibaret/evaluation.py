"""Scores edits of drawn scenes, whose right answer is known: the same scene drawn with the attribute that the text
changes."""

import time
from collections.abc import Sequence

import numpy as np
from PIL import Image

from .editor import Editor
from .images import fit_image, psnr
from .inversion_file import Inversion
from .miniature.world.distortions import distort
from .miniature.world.drawing import render
from .miniature.world.scene import MEASURED_SEEDS, Scene
from .miniature.world.tasks import Task, task_of
from .progress import Count, nobody
from .settings import Settings
from .sheet import contact_sheet

SHEET_ROWS = 12
SHEET_LABELS = ("input", "reconstruction", "transition", "edit", "right answer")
FIT = "stretch"  # of distorted pictures: the one fit that brings every pixel back to its place


def evaluate(
    editor: Editor,
    settings: Settings,
    kind: str,
    count: int,
    watch: Count = nobody,
    distortion: str | None = None,
    sheet: bool = True,
) -> tuple[dict[str, float], Image.Image | None]:
    """Means of `score` over one kind of edit of the first `count` measured scenes, and if wanted a sheet of the first
    twelve in seed order, for which their transition is carried to the end."""
    scores, rows = [], []
    for index, seed in enumerate(MEASURED_SEEDS[:count]):
        pictures = ("transition",) if sheet and index < SHEET_ROWS else ()
        scored, row = score(editor, settings, task_of(kind, seed), distortion, pictures)
        scores.append(scored)
        rows.append(row)
        watch(f"{kind} edits", index + 1, count)
    return means(scores), contact_sheet(rows[:SHEET_ROWS], SHEET_LABELS) if sheet else None


def invert(editor: Editor, settings: Settings, task: Task, distortion: str | None = None) -> Inversion:
    """The inversion that edits of the task may share, if their settings differ only in what comes after it."""
    return editor.invert(_given(editor, task.before, distortion), task.after.caption(), settings, fit=FIT)


def score(
    editor: Editor,
    settings: Settings,
    task: Task,
    distortion: str | None = None,
    pictures: tuple[str, ...] = (),
    inversion: Inversion | None = None,
) -> tuple[dict[str, float], list[Image.Image | None]]:
    """The figures of one edit; its input, reconstruction, transition (if in `pictures`), edit and right answer.

    success: of the scene drawn with each value of the attribute, the edit is nearest (mean squared error) to the one
    asked for. answer_psnr: dB of the edit against that one. background_psnr: dB against the input, over the pixels
    where the right answer equals the input. reconstruction_psnr: dB of where target-text inversion leads, against the
    VAE's own reconstruction of the input. vae_psnr: dB of that against the input. inner_iterations: of target-text
    inversion. seconds: of the edit.
    distortion: of input and answers alike, a name in `DISTORTIONS`. inversion: what `invert` found, if that is done.
    """
    picture, text = _given(editor, task.before, distortion), task.after.caption()
    begin = time.perf_counter()
    result = editor.edit(picture, text, settings, fit=FIT, pictures=pictures, inversion=inversion)
    seconds = time.perf_counter() - begin
    size = result.input.size
    answers = {scene: fit_image(_given(editor, scene, distortion), size, FIT) for scene in task.candidates}
    answer, coded = answers[task.after], editor.decode(editor.encode(result.input))
    scores = {
        "success": float(nearest(result.image, answers) == task.after),
        "answer_psnr": psnr(result.image, answer),
        "background_psnr": psnr(result.image, result.input, unchanged(result.input, answer)),
        "reconstruction_psnr": psnr(result.reconstruction, coded),
        "vae_psnr": psnr(coded, result.input),
        "inner_iterations": float(sum(result.record.iterations)),
        "seconds": seconds,
    }
    return scores, [result.input, result.reconstruction, result.transition, result.image, answer]


def _given(editor: Editor, scene: Scene, distortion: str | None) -> Image.Image:
    """The scene as the editor gets to see it."""
    return distort(render(scene, editor.config.image_size), distortion, scene.seed)


def means(scores: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([scored[name] for scored in scores])) for name in scores[0]}


def nearest(picture: Image.Image, answers: dict[Scene, Image.Image]) -> Scene:
    """The scene whose drawing has the least mean squared error to the picture."""
    return max(answers, key=lambda scene: psnr(picture, answers[scene]))


def unchanged(before: Image.Image, after: Image.Image) -> np.ndarray:
    """Where two pictures agree: bool (H, W)."""
    return (np.asarray(before) == np.asarray(after)).all(-1)
