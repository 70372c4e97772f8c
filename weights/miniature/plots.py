"""Charts of the training, from the logs of its stages, thinned to what a chart can show and kept beside the weights. A
stage may have had several runs, each begun with the weights of the one before it."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from minibaret.charts import figure
from minibaret.files import read_json, write_whole

from .training.stages import STAGES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURES = {  # drawn of each stage
    "clip": {"loss": "loss", "right": "share of captions found"},
    "vae": {"loss": "loss", "psnr": "PSNR of the training pictures, dB"},
    "unet": {"error": "squared error of the noise", "noisy": "squared error, of the noisier half"},
}
LINES = 200  # kept of a run

Curves = dict[str, dict[str, list[dict]]]  # lines of the log by stage, then by run: when it began


def training(curves: Curves) -> "Figure":
    """A row of charts for each stage: its figures against the pictures seen, all its runs after one another."""
    drawn = figure(len(curves), 2)
    for row, (stage, runs) in enumerate(curves.items()):
        hours = sum(run[-1]["seconds"] for run in runs.values()) / 3600
        for axes, (name, title) in zip(drawn.axes[2 * row :], FIGURES[stage].items()):
            before = 0.0
            for run in runs.values():
                points = [(before + line["pictures"], line[name]) for line in run if name in line]
                axes.plot(*zip(*points), color="C0")
                before += run[-1]["pictures"]
            axes.set(title=f"{stage}: {title} ({hours:.1f} hours)", xlabel="pictures", yscale="log")
    return drawn


def keep_curves(runs: Path | None, path: Path) -> Curves:
    """The curves in `path`, brought up to date with the logs that are in `runs` and written back where there are any.

    Without a file or a log there are none.
    """
    curves: Curves = read_json(path) if path.exists() else {}
    logs = {stage: runs / f"{stage}.jsonl" for stage in STAGES if runs and (runs / f"{stage}.jsonl").exists()}
    for stage, log in logs.items():
        for run, lines in read_runs(log).items():
            every = -(-len(lines) // LINES)
            curves.setdefault(stage, {})[run] = lines[::-1][::every][::-1]  # the last is among them
    if logs:
        write_whole(path, (json.dumps(curves) + "\n").encode())
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
