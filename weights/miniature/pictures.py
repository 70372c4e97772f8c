"""The pictures of the card, chosen by seed order and not by taste: samples, edits, and charts."""

from itertools import chain
from pathlib import Path

from PIL import Image

from minibaret.charts import picture
from minibaret.compare import compare
from minibaret.errors import InputError
from minibaret.loading import load
from minibaret.methods import METHODS
from minibaret.progress import Count, nobody, run_to_end
from minibaret.sheet import columns_sheet, edit_sheet
from minibaret.weights import MINIATURE_FOLDER

from . import plots
from .cases import SEEDS, drawn_case
from .networks import GUIDANCE, generate
from .world.scene import Scene
from .world.tasks import KINDS

SAMPLES, ACROSS, EDITS = 24, 4, 12
EXAMPLE, EXAMPLE_TEXT = "dog.png", "a brown dog lying down on grass"  # of the README


def samples(weights: Path, watch: Count = nobody) -> Image.Image:
    """From the captions of the first 24 held-out scenes: on the left at guidance 7.5, on the right at 1."""
    editor, rows = load(weights, "cpu"), []
    for start in range(0, SAMPLES, ACROSS):
        scenes = [Scene.random(seed) for seed in SEEDS["held-out"][start : start + ACROSS]]
        rows.append([*chain.from_iterable(generate(editor, scenes, guidance) for guidance in (GUIDANCE, 1.0))])
        watch("samples", start + ACROSS, SAMPLES)
    return columns_sheet(rows, [*["guidance 7.5"] * ACROSS, *["guidance 1"] * ACROSS])


def edits(weights: Path, watch: Count = nobody) -> Image.Image:
    """The first twelve posture edits by BARET, in seed order."""
    editor = load(weights, "cpu")
    rows: list[dict[str, Image.Image]] = []
    for seed in SEEDS["held-out"][:EDITS]:
        case = drawn_case("posture", seed, editor.config.image_size)
        found = editor.edit(case.image, case.prompt, pictures="all").images
        rows.append({"input": case.image, **found, "right answer": case.answer})
        watch("edits", len(rows), EDITS)
    return columns_sheet([[*row.values()] for row in rows], [*rows[0]])


def methods(weights: Path, watch: Count = nobody) -> Image.Image:
    """One picture, the first held-out one, and an edit of it of each kind, by every method that tunes no network, with
    its defaults in 20 steps."""
    editor, names = load(weights, "cpu"), [name for name, method in METHODS.items() if not method.copies]
    rows = []
    for kind in KINDS:
        case = drawn_case(kind, SEEDS["held-out"][0], editor.config.image_size)
        work = compare(editor, case.image, case.prompt, case.source_prompt, names, steps=20)
        rows.append([case.image, case.answer, *(found.image for found in run_to_end(work).results.values())])
        watch("methods", len(rows), len(KINDS))
    return columns_sheet(rows, ["input", "right answer", *names])


def sheet(weights: Path, watch: Count = nobody) -> Image.Image:
    """The README's example."""
    result = load(weights, "cpu").edit(MINIATURE_FOLDER / "examples" / EXAMPLE, EXAMPLE_TEXT, pictures="all")
    return edit_sheet(result, EXAMPLE_TEXT)


def curves(weights: Path, watch: Count = nobody, runs: Path | None = None) -> Image.Image:
    """The training, from curves.json beside the weights; `runs` has logs to bring it up to date with."""
    found = plots.keep_curves(runs, weights / "curves.json")
    if not found:
        raise InputError(f"there is no training log in {runs}, and no curves.json in {weights}")
    return picture(plots.training(found))


PICTURES = {
    "samples": samples,
    "edits": edits,
    "methods": methods,
    "sheet": sheet,
    "curves": curves,
}
