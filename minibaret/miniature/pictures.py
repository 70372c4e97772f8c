"""The pictures of the card, chosen by seed order and not by taste: samples, edits, and the training curves."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from PIL import Image

from ..evaluation import SHEET_LABELS, SHEET_ROWS
from ..loading import load
from ..progress import Count, nobody
from ..sheet import columns_sheet, edit_sheet
from ..weights import MINIATURE_FOLDER
from .curves import draw_curves, keep_curves
from .edits import Edit, edit_pictures
from .networks import BATCH, generate
from .world.scene import MEASURED_SEEDS, Scene
from .world.tasks import KIND_SETTINGS, KINDS

SAMPLES, ACROSS = 24, 8
EXAMPLE, EXAMPLE_TEXT = "dog.png", "a brown dog lying down on grass"  # of the README


def card_pictures(
    weights: Path, runs: Path | None, workers: int, watch: Count = nobody
) -> Iterator[tuple[str, Image.Image]]:
    """Every picture by its file's name, as it is done.

    samples.png: from the captions of the first 24 measured scenes. edits.png: the first twelve posture edits.
    others.png: the first three edits of each other kind. sheet.png: the README's example. curves.png: the training,
    where the weights' folder has curves.json, or `runs` has logs to bring it up to date with.
    """
    curves = keep_curves(runs, weights / "curves.json")
    if curves:
        yield "curves.png", draw_curves(curves)
    editor = load(weights, "cpu")
    made = []
    # a whole batch, as `measure` samples it: the noise of a smaller one is other noise
    for picture in islice(generate(editor, [Scene.random(seed) for seed in MEASURED_SEEDS[:BATCH]]), SAMPLES):
        made.append(picture)
        watch("samples", len(made), SAMPLES)
    yield "samples.png", columns_sheet([made[start : start + ACROSS] for start in range(0, SAMPLES, ACROSS)])
    result = editor.edit(MINIATURE_FOLDER / "examples" / EXAMPLE, EXAMPLE_TEXT)
    yield "sheet.png", edit_sheet(result, EXAMPLE_TEXT)
    others = [kind for kind in KINDS if kind != "posture"]
    for name, kinds in (("edits.png", ["posture"]), ("others.png", others)):
        edits = [
            Edit(kind, seed, editor.settings(**KIND_SETTINGS[kind]))
            for kind in kinds
            for seed in MEASURED_SEEDS[: SHEET_ROWS // len(kinds)]
        ]
        rows = []
        for row in edit_pictures(edits, weights, workers):
            rows.append(row)
            watch(name, len(rows), len(edits))
        yield name, columns_sheet(rows, SHEET_LABELS)
