"""Everything the miniature is judged by, in one table: what was measured, the bar, and whether it is met."""

import dataclasses
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import torch

from ..editor import Editor
from ..evaluation import means
from ..models.image_encoder import ImageTower
from ..progress import Count, nobody
from .edits import Edit, Kept, score_edits
from .networks import measure
from .world.distortions import DISTORTIONS
from .world.drawing import render
from .world.scene import MEASURED_SEEDS
from .world.tasks import KIND_SETTINGS, KINDS, task_of

BARS = {
    **dict.fromkeys([f"zero_shot_{name}" for name in KINDS], 0.98),
    **{f"caption_distance_{name}": 0.4 for name in KINDS if name != "addition"},
    "vae_psnr": 32.0,
    **{"generated_animal": 0.95, "generated_colour": 0.95, "generated_ground": 0.95},
    **{"generated_posture": 0.92, "generated_addition": 0.90},
    **{f"{kind}_success": 0.80 for kind in KINDS},
    "posture_background_psnr": 25.0,
    "posture_reconstruction_psnr": 38.0,
    "megabytes": 40.0,
    "seconds": 60.0,
}
AT_MOST = {"megabytes", "seconds"}
MAY_FALL = {"success": 0.10, "reconstruction_psnr": 6.0}  # under a distortion, against the same edits without


@dataclasses.dataclass(frozen=True)
class Row:
    name: str
    value: float
    bar: float | None = None
    trials: int = 0  # of a share: how many scenes it is over

    @property
    def met(self) -> bool | None:
        """None where there is no bar."""
        if self.bar is None:
            return None
        return self.value <= self.bar if self.name in AT_MOST else self.value >= self.bar - 1e-9

    @property
    def interval(self) -> tuple[float, float] | None:
        """Of a share: Wilson's 95 % interval, what the true share may be after so few trials."""
        if not self.trials:
            return None
        z = 1.96
        middle = (self.value + z**2 / (2 * self.trials)) / (1 + z**2 / self.trials)
        spread = (self.value * (1 - self.value) / self.trials + (z / (2 * self.trials)) ** 2) ** 0.5
        half = z * spread / (1 + z**2 / self.trials)
        return max(middle - half, 0.0), min(middle + half, 1.0)


def table(
    editor: Editor,
    tower: ImageTower,
    weights: Path,
    scenes: int,
    edits: int,
    distorted: int,
    kept: Kept,
    workers: int,
    watch: Count = nobody,
) -> list[Row]:
    """Every row, over the first measured scenes: `scenes` of them for the networks by themselves, `edits` for each kind
    of edit, `distorted` for each distortion."""
    return [
        *network_rows(editor, tower, scenes, kept, watch),
        *edit_rows(editor, weights, edits, distorted, kept, workers, watch),
        Row("megabytes", sum(path.stat().st_size for path in weights.glob("*.safetensors")) / 1e6, BARS["megabytes"]),
        Row("seconds", seconds_of_an_edit(editor), BARS["seconds"]),
    ]


def network_rows(editor: Editor, tower: ImageTower, scenes: int, kept: Kept, watch: Count = nobody) -> list[Row]:
    of = {"networks": scenes, "guidance": editor.settings().guidance}
    if kept.get(of) is None:
        kept.add(of, measure(editor, tower, scenes, watch))
    shares = ("zero_shot_", "generated_")
    return [
        Row(name, value, BARS.get(name), scenes if name.startswith(shares) else 0)
        for name, value in kept.get(of).items()
    ]


def edit_rows(
    editor: Editor,
    weights: Path,
    count: int,
    distorted: int,
    kept: Kept,
    workers: int,
    watch: Count = nobody,
) -> list[Row]:
    """Each kind of edit on `count` drawings; posture edits of `distorted` of them, which may not be more, under each
    distortion, against the same ones without."""
    edits = {
        (kind, distortion): [
            Edit(kind, seed, editor.settings(**KIND_SETTINGS[kind]), distortion)
            for seed in MEASURED_SEEDS[: distorted if distortion else count]
        ]
        for kind, distortion in (*((kind, None) for kind in KINDS), *(("posture", name) for name in DISTORTIONS))
    }
    made = iter(score_edits([edit for group in edits.values() for edit in group], weights, kept, workers, watch))
    scores = {group: list(islice(made, len(members))) for group, members in edits.items()}
    straight, rows = means(scores["posture", None][:distorted]), []
    for (kind, distortion), scored in scores.items():
        values = means(scored)
        for name in ("success", "background_psnr", "reconstruction_psnr"):
            row = f"{distortion or kind}_{name}"
            bar = straight[name] - MAY_FALL[name] if distortion and name in MAY_FALL else BARS.get(row)
            rows.append(Row(row, values[name], bar, len(scored) if name == "success" else 0))
    return rows


def seconds_of_an_edit(editor: Editor) -> float:
    """Of one whole posture edit, by itself, on the threads that PyTorch has."""
    task = task_of("posture", MEASURED_SEEDS[0])
    picture = render(task.before, editor.config.image_size)
    begin = time.perf_counter()
    editor.edit(picture, task.after.caption(), editor.settings(), pictures=())
    return time.perf_counter() - begin


def as_text(rows: Sequence[Row]) -> str:
    """The table in Markdown."""
    lines = [("what", "measured", "bar", ""), ("---",) * 4]
    for row in rows:
        bar = "" if row.bar is None else f"{'≤' if row.name in AT_MOST else '≥'} {_figure(row, row.bar)}"
        measured = _figure(row, row.value)
        if row.interval:
            measured += " ({:.1f} to {:.1f})".format(*(100 * end for end in row.interval))
        lines.append((_title(row.name), measured, bar, {True: "met", False: "**missed**", None: ""}[row.met]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def as_json(rows: Sequence[Row]) -> dict[str, dict]:
    return {
        row.name: {
            "value": round(row.value, 4),
            "bar": None if row.bar is None else round(row.bar, 4),
            "met": row.met,
            **({"interval": [round(end, 4) for end in row.interval], "scenes": row.trials} if row.trials else {}),
        }
        for row in rows
    }


def _figure(row: Row, value: float) -> str:
    if row.trials:
        return f"{100 * value:.1f} %"
    unit = {"psnr": "dB", "megabytes": "MB", "seconds": "s"}.get(row.name.split("_")[-1])
    return f"{value:.1f} {unit}" if unit else f"{value:.2f}"


def _title(name: str) -> str:
    if name == "seconds":
        return f"a whole edit, threads: {torch.get_num_threads()}"
    if name == "megabytes":
        return "all weights, as they are stored"
    return name.replace("psnr", "PSNR").replace("_", " ")
