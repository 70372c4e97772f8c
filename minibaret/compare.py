"""Several methods on one picture, side by side; what they can share is found once."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from .editor import Editor
from .errors import InputError
from .inversion import Inversion
from .methods import METHODS, find
from .result import Result
from .sampler import Step
from .sheet import contact_sheet

COLUMNS = 4


@dataclass(frozen=True)
class Comparison:
    results: dict[str, Result]  # by method
    left_out: tuple[str, ...]  # methods that need a source prompt, where there is none

    def summary(self) -> dict:
        return {
            "methods": {name: result.summary() for name, result in self.results.items()},
            "left_out": list(self.left_out),
        }

    def sheet(self, prompt: str) -> Image.Image:
        """The input and each method's edit, with its cost under it."""
        picture = next(iter(self.results.values())).input
        cells = [(picture, ["input"])] + [(result.image, _label(result)) for result in self.results.values()]
        rows = [cells[start : start + COLUMNS] for start in range(0, len(cells), COLUMNS)]
        return contact_sheet(rows, f"“{prompt}”", max(1, 256 // picture.height))


def compare(
    editor: Editor,
    image: Image.Image | str | Path,
    prompt: str,
    source_prompt: str | None = None,
    methods: Sequence[str] = (),
    *,
    size: tuple[int, int] | None = None,
    fit: str | None = None,
    preset: str | None = None,
    **knobs,
) -> Generator[Step, None, Comparison]:
    """Edits the picture by each method, all of METHODS if none is named; a generator of steps that returns the
    Comparison. size, fit, preset, knobs: as `Editor.steps` has them.

    One DDIM inversion serves all that start from the same; its time counts for the first. Raises InputError for an
    unknown method, and where every one named needs a source prompt and there is none.
    """
    chosen = [find(name) for name in methods or METHODS]
    left_out = tuple(m.name for m in chosen if m.needs_source and source_prompt is None)
    if len(left_out) == len(chosen):
        raise InputError(
            f"a source prompt that says what the picture shows was wanted for {', '.join(left_out)}, got none"
        )
    chosen = [method for method in chosen if method.name not in left_out]
    for method in chosen:
        editor.check_memory(method, size, preset, **knobs)
    results, kept, options = {}, Inversion(), {"size": size, "fit": fit, "preset": preset, **knobs}
    for method in chosen:
        work = editor.steps(image, prompt, method, source_prompt=source_prompt, inversion=kept, pictures=(), **options)
        result = yield from _named(work, method.name)
        results[method.name], kept = result, result.kept
    return Comparison(results, left_out)


def _named(work: Generator[Step, None, Result], name: str) -> Generator[Step, None, Result]:
    """Steps whose stage says which method they are of."""
    while True:
        try:
            step = next(work)
        except StopIteration as end:
            return end.value
        yield replace(step, stage=f"{name}: {step.stage}")


def _label(result: Result) -> list[str]:
    seconds, counts = sum(result.seconds.values()), result.counts
    gradients = f", {counts.gradient_passes} gradients" if counts.gradient_passes else ""
    return [result.method.name, f"{seconds:.1f} s, {counts.row_forwards} rows{gradients}"]
