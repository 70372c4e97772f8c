"""Scores edits whose right answer is known, by any method.

A `Case` is what is asked for and what is known of the right answer; a metric is a function of a case and an edited
picture. What draws the cases stands elsewhere: `minibaret.miniature.cases` has those of the drawn world.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

from .editor import ALL, Editor
from .images import fit_image, psnr
from .inversion import Inversion
from .methods import Method
from .progress import Count, nobody
from .result import Result
from .sheet import columns_sheet

RECONSTRUCTION = ("reconstruction",)  # beside the edit, the one picture that scores need
SHEET_ROWS = 12
RESAMPLES = 2000  # of a bootstrap


@dataclass(frozen=True)
class Case:
    """An edit that is asked for."""

    image: Image.Image
    prompt: str  # what the edited picture should show
    source_prompt: str | None  # what the picture shows
    answers: Mapping[str, Image.Image]  # by prompt: what the edit might have become, the right answer among them
    fit: str = "crop"  # how image and answers come to the model's size

    @property
    def answer(self) -> Image.Image:
        return self.answers[self.prompt]

    def fitted(self, size: tuple[int, int]) -> "Case":
        """The same with all its pictures at `size`, (width, height)."""
        answers = {prompt: fit_image(picture, size, self.fit) for prompt, picture in self.answers.items()}
        return dataclasses.replace(self, image=fit_image(self.image, size, self.fit), answers=answers)


def success(case: Case, picture: Image.Image) -> bool:
    """Whether the right answer is the nearest, by mean squared error, of all answers."""
    return max(case.answers, key=lambda prompt: psnr(picture, case.answers[prompt])) == case.prompt


def answer_psnr(case: Case, picture: Image.Image) -> float:
    """dB against the right answer."""
    return psnr(picture, case.answer)


def background_psnr(case: Case, picture: Image.Image) -> float:
    """dB against the input, over the pixels where the right answer equals the input."""
    return psnr(picture, case.image, unchanged(case.image, case.answer))


METRICS: dict[str, Callable[[Case, Image.Image], float | bool]] = {
    metric.__name__: metric for metric in (success, background_psnr, answer_psnr)
}
Scores = dict[str, float | bool]


def score(
    editor: Editor,
    case: Case,
    method: str | Method = "baret",
    knobs: Mapping[str, object] | None = None,
    *,
    preset: str | None = None,
    pictures: Sequence[str] | str = RECONSTRUCTION,
    inversion: Inversion | None = None,
) -> tuple[Scores, Result]:
    """Edits the case; every metric of the edit, and what it cost.

    knobs: the method's, by name; preset, pictures, inversion: as `Editor.steps` has them. Beside `METRICS`:
    vae_psnr: dB of the VAE's own reconstruction against the input; reconstruction_psnr: of the method's, where it has
    one; inner_iterations: of its tuning, where it tunes; seconds, row_forwards, gradient_passes: of this edit, without
    what the inversion gave.
    """
    options = {"fit": case.fit, "pictures": pictures, "inversion": inversion, "preset": preset, **(knobs or {})}
    result = editor.edit(case.image, case.prompt, method, source_prompt=case.source_prompt, **options)
    case = case.fitted(result.input.size)
    scores: Scores = {name: metric(case, result.image) for name, metric in METRICS.items()}
    scores["vae_psnr"] = psnr(editor.sd.decode(editor.sd.encode(result.input)), result.input)
    if result.reconstruction_psnr is not None:
        scores["reconstruction_psnr"] = result.reconstruction_psnr
    if result.tuned:
        scores["inner_iterations"] = sum(step.iterations for step in result.tuned)
    scores["seconds"] = sum(result.seconds.values())
    return scores | vars(result.counts), result


def evaluate(
    editor: Editor,
    cases: Sequence[Case],
    method: str | Method = "baret",
    knobs: Mapping[str, object] | None = None,
    *,
    preset: str | None = None,
    watch: Count = nobody,
    sheet: bool = True,
) -> tuple[list[Scores], Image.Image | None]:
    """The scores of every case and, if wanted, a sheet of the first twelve: input, every branch's picture, right
    answer."""
    scores, shown = [], []
    for index, case in enumerate(cases):
        drawn = sheet and index < SHEET_ROWS
        scored, result = score(editor, case, method, knobs, preset=preset, pictures=ALL if drawn else RECONSTRUCTION)
        scores.append(scored)
        if drawn:
            shown.append((case, result))
        watch("edits", index + 1, len(cases))
    if not sheet:
        return scores, None
    branches = [*(name for name in shown[0][1].images if name != "edit"), "edit"]
    rows = [
        [result.input, *map(result.images.get, branches), fit_image(case.answer, result.input.size, case.fit)]
        for case, result in shown
    ]
    return scores, columns_sheet(rows, ["input", *branches, "right answer"])


class Figure(NamedTuple):
    """A mean over cases, and what the true one may be after so few: a 95 % interval."""

    value: float
    low: float
    high: float
    cases: int


def mean(values: Iterable[float | bool]) -> Figure:
    """Of truths the share of true ones with Wilson's interval; of numbers the mean with a bootstrap's."""
    values = list(values)
    if all(isinstance(value, bool) for value in values):
        return wilson(sum(values), len(values))
    numbers = np.array(values, dtype=float)
    picks = np.random.default_rng(0).integers(len(numbers), size=(RESAMPLES, len(numbers)))
    low, high = np.quantile(numbers[picks].mean(1), (0.025, 0.975))
    return Figure(float(numbers.mean()), float(low), float(high), len(numbers))


def wilson(right: int, cases: int, z: float = 1.96) -> Figure:
    """A share and its interval (Wilson 1927)."""
    share = right / cases
    middle = (share + z**2 / (2 * cases)) / (1 + z**2 / cases)
    half = z * (share * (1 - share) / cases + (z / (2 * cases)) ** 2) ** 0.5 / (1 + z**2 / cases)
    return Figure(share, max(middle - half, 0.0), min(middle + half, 1.0), cases)


def means(scores: Sequence[Scores]) -> dict[str, Figure]:
    """Of every score that all cases have."""
    return {name: mean(scored[name] for scored in scores) for name in scores[0] if all(name in s for s in scores)}


def unchanged(before: Image.Image, after: Image.Image) -> np.ndarray:
    """Where two pictures agree: bool (H, W)."""
    return (np.asarray(before) == np.asarray(after)).all(-1)
