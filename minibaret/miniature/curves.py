"""Training curves: the logs of the stages, thinned to what a chart can show and kept beside the weights, and the chart.

A stage may have had several runs, each begun with the weights of the one before it; they are drawn one after the other,
a thin line between them.
"""

import json
from pathlib import Path

from PIL import Image

from ..files import read_json, write_text_whole
from .charts import FINE, Axes, canvas
from .training.stages import STAGES

FIGURES = {"clip": ("loss", "right"), "vae": ("loss", "psnr"), "unet": ("error", "layout")}  # drawn of each stage
TITLES = {
    "right": "share of captions found",
    "psnr": "PSNR of the training pictures, dB",
    "error": "squared error of the noise",
    "layout": "squared error of the layout",
}
LINES = 200  # kept of a run
WIDTH, HEIGHT = 470, 260  # pixels, a chart

Columns = dict[str, list[float | None]]  # a run's figures, one list each, "pictures" among them; None: not logged yet
Curves = dict[str, dict[str, Columns]]  # by stage, then by run: when it began


def keep_curves(runs: Path | None, path: Path) -> Curves:
    """The curves in `path`, brought up to date with the logs that are in `runs` and written back where there are any.

    Without a file or a log there are none.
    """
    curves: Curves = read_json(path) if path.exists() else {}
    logs = {stage: runs / f"{stage}.jsonl" for stage in STAGES if runs and (runs / f"{stage}.jsonl").exists()}
    for stage, log in logs.items():
        for run, lines in read_runs(log).items():
            every = -(-len(lines) // LINES)
            curves.setdefault(stage, {})[run] = columns(lines[::-1][::every][::-1], FIGURES[stage])
    if logs:
        write_text_whole(path, json.dumps(curves) + "\n")
    return {stage: dict(sorted(curves[stage].items())) for stage in STAGES if stage in curves}


def read_runs(log: Path) -> dict[str, list[dict]]:
    """The lines of a log by run.

    A run that was stopped goes on from its last checkpoint, some steps back: what it had logged beyond is dropped.
    """
    text = log.read_text(encoding="utf-8")
    found: dict[str, list[dict]] = {}
    for line in map(json.loads, text[: text.rfind("\n") + 1].splitlines()):
        lines = found.setdefault(line["run"], [])
        while lines and lines[-1]["step"] >= line["step"]:
            lines.pop()
        lines.append(line)
    return found


def columns(run: list[dict], figures: tuple[str, ...]) -> Columns:
    logged = {name for line in run for name in line}
    return {name: [line.get(name) for line in run] for name in ("pictures", "seconds", *figures) if name in logged}


def draw_curves(curves: Curves) -> Image.Image:
    """A row of charts for each stage: its figures against the pictures seen, all its runs after one another."""
    image, draw = canvas(2 * WIDTH, 50 + len(curves) * HEIGHT, "training curves")
    for row, (stage, runs) in enumerate(curves.items()):
        split, starts = list(runs.values()), [0.0]
        for run in split:
            starts.append(starts[-1] + run["pictures"][-1])
        for column, figure in enumerate(FIGURES[stage]):
            values = sorted(y for run in split for y in run.get(figure, []) if y is not None)
            if not values:
                continue
            left, top = column * WIDTH, 50 + row * HEIGHT
            hours = sum(run["seconds"][-1] for run in split) / 3600
            title = f"{stage}: {TITLES.get(figure, figure)} ({hours:.1f} hours)"
            box = (left + 70, top + 30, left + WIDTH - 20, top + HEIGHT - 55)
            axes = Axes(draw, box, (0, starts[-1]), range_of(values), title, "pictures")
            for start, run in zip(starts, split):
                if start:
                    axes.upright(start)
                points = [(start + x, y) for x, y in zip(run["pictures"], run.get(figure, [])) if y is not None]
                if len(points) > 1:
                    axes.line(points)
    return image.reduce(FINE)


def range_of(values: list[float]) -> tuple[float, float]:
    """The range of sorted values worth showing: without the fiftieth at either end, where a run begins or jumps."""
    return values[len(values) // 50], values[-1 - len(values) // 50]
