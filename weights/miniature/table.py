"""What the miniature is judged by. Calibration: do methods act on it as on Stable Diffusion? Quality: of its networks,
and of BARET's edits."""

import time
from collections.abc import Mapping, Sequence
from math import inf
from pathlib import Path
from typing import NamedTuple

from minibaret.editor import Editor
from minibaret.evaluation.intervals import Figure, mean, means
from minibaret.evaluation.metrics import METRICS
from minibaret.evaluation.scoring import Edit, Scorer, Scores

from . import networks
from .cases import drawn_case, lazy_case
from .world.tasks import KINDS

PAPER = "paper"  # the preset: every method's own knobs, whatever the weights' config says


class Trial(NamedTuple):
    """Edits by one method."""

    method: str
    changes: Mapping[str, object] = {}  # of its knobs, from the published ones
    over: str = ""  # another trial, whose background is compared with this one's
    least: float = -inf  # dB of background wanted over the other's
    published: float | None = None  # dB over the other's, of Stable Diffusion 1.4 on PIE-Bench


_PIE_BENCH = {"self_steps": 0.6, "cross_steps": 0.4}  # of prompt-to-prompt, in the published runs (PnPInversion)
_SIGNS = {"solver": "signs", "inner_steps": 1}  # what the tuning does by default, where the published one is Adam's
_PLAIN = {"self_steps": 0.0, "cross_steps": 0.0}  # the edit takes nothing: plain sampling from the inversion's noise
TRIALS = {
    "calibration": {
        "plain": Trial("prompt-to-prompt", _PLAIN),
        "self maps, first 0.4": Trial("prompt-to-prompt", {"self_steps": 0.4, "cross_steps": 0.0}, "plain", 2.0),
        "DDIM + p2p": Trial("prompt-to-prompt", _PIE_BENCH, "plain"),
        "null-text + p2p": Trial("null-text", _PIE_BENCH, "DDIM + p2p", 0.0, 9.2),
        "null-text by signs + p2p": Trial("null-text", {**_PIE_BENCH, **_SIGNS}, "DDIM + p2p"),
        "direct + p2p": Trial("direct", _PIE_BENCH, "DDIM + p2p", 0.0, 9.4),
        "MasaCtrl": Trial("masactrl", {}, "DDIM + p2p", 0.0, 4.3),
        "plug-and-play": Trial("plug-and-play", {}, "DDIM + p2p", 0.0, 4.4),
    },
    "quality": {
        "plain, from BARET's noise": Trial("baret", _PLAIN),
        "prompt-tuning": Trial("prompt-tuning", {}, "plain, from BARET's noise"),
        "BARET": Trial("baret", {}, "plain, from BARET's noise"),
        "BARET by signs": Trial("baret", _SIGNS, "BARET"),
    },
}
CASES = {"calibration": KINDS, "quality": ("posture",)}  # PIE-Bench's figures are of every kind of edit
SHOWN = ("success", "background_psnr", "answer_psnr")
GENERATED = {"animal": 95, "colour": 95, "ground": 95, "posture": 92, "addition": 90}  # % wanted, at guidance 7.5


class Row(NamedTuple):
    part: str  # of the table
    name: str  # of a trial, or of what was measured
    metric: str  # with its unit
    figure: Figure
    least: float = -inf  # what is wanted
    most: float = inf
    published: float | None = None  # of Stable Diffusion

    @property
    def met(self) -> bool | None:
        """None where nothing is wanted."""
        return None if (self.least, self.most) == (-inf, inf) else self.least <= self.figure.value <= self.most


def edit_rows(editor: Editor, scorer: Scorer, seeds: Sequence[int]) -> list[Row]:
    """Of every trial, on its part's kinds of edit of the seeds."""
    edits = {
        (part, name): edits_of(editor, trial, CASES[part], seeds)
        for part, trials in TRIALS.items()
        for name, trial in trials.items()
    }
    made = iter(scorer.edits([edit for group in edits.values() for edit in group]))
    scores = {key: [next(made) for _ in group] for key, group in edits.items()}
    return [row for key, found in scores.items() if found for row in trial_rows(*key, scores)]


def edits_of(editor: Editor, trial: Trial, kinds: Sequence[str], seeds: Sequence[int]) -> list[Edit]:
    knobs = vars(editor.settings(trial.method, PAPER, **trial.changes))
    side = editor.config.image_size
    return [Edit(lazy_case(kind, seed, side), trial.method, knobs) for kind in kinds for seed in seeds]


def trial_rows(part: str, name: str, scores: Mapping[tuple[str, str], Sequence[Scores]]) -> list[Row]:
    found, trial = scores[part, name], TRIALS[part][name]
    figures = means(found)
    rows = [Row(part, name, METRICS[metric].title, figures[metric].times(METRICS[metric].scale)) for metric in SHOWN]
    other = scores.get((part, trial.over))
    if other:
        gain = mean(a["background_psnr"] - b["background_psnr"] for a, b in zip(found, other))
        rows.append(Row(part, name, f"background over {trial.over}, dB", gain, trial.least, published=trial.published))
    if trial.method == "baret" and name.startswith("BARET"):
        lost = mean(one["vae_psnr"] - one["reconstruction_psnr"] for one in found)
        rows.append(Row(part, name, "reconstruction below the VAE's, dB", lost, most=1.0))
        rows.append(Row(part, name, "inner iterations", figures["inner_iterations"]))
    return rows


def network_rows(editor: Editor, weights: Path, found: Sequence[Scores]) -> list[Row]:
    """What the networks can do by themselves; found: by `networks.kept_scores`."""
    figures, drawn = means(found), mean(scores["drawn_saturation"] for scores in found).value
    gain = mean((scores["saturation"] - scores["drawn_saturation"]) / drawn for scores in found)
    megabytes = sum(path.stat().st_size for path in weights.glob("*.safetensors")) / 1e6
    distances = networks.caption_distances(editor)
    measured = [
        *(
            (f"{kind} drawn as the caption says, %", figures[f"generated_{kind}"].times(100), GENERATED[kind])
            for kind in KINDS
        ),
        ("all drawn as the caption says, %", figures["wholly_right"].times(100)),
        ("all drawn as the caption says, at guidance 1, %", figures["wholly_right_at_1"].times(100), -inf, 70),
        ("saturation over the drawn world's, %", gain.times(100), -5, 5),
        *((f"{kind} named by the CLIP pair, %", figures[f"zero_shot_{kind}"].times(100), 98) for kind in KINDS),
        ("reconstruction by the VAE, dB", figures["vae_psnr"], 32),
        *((f"distance of captions that differ in {kind}", exactly(least), 0.4) for kind, least in distances.items()),
        ("all weights, MB", exactly(megabytes), -inf, 40),
        ("an edit by BARET, s", exactly(seconds_of_an_edit(editor)), -inf, 15),
    ]
    return [Row("networks", name, "measured", *rest) for name, *rest in measured]


def exactly(value: float) -> Figure:
    return Figure(value, value, value, 1)


def seconds_of_an_edit(editor: Editor) -> float:
    """Of one whole posture edit, by itself, on the threads that PyTorch has."""
    case = drawn_case("posture", 0, editor.config.image_size)
    begin = time.perf_counter()
    editor.edit(case.image, case.prompt)
    return time.perf_counter() - begin


def as_text(rows: Sequence[Row]) -> str:
    """A table in Markdown for each part, a line for each name, a column for each metric."""
    lines = []
    for part in dict.fromkeys(row.part for row in rows):
        cells: dict[str, dict[str, str]] = {}
        for row in rows:
            if row.part == part:
                cells.setdefault(row.name, {})[row.metric] = said(row)
        metrics = list(dict.fromkeys(metric for line in cells.values() for metric in line))
        lines += ["", f"| {part} | {' | '.join(metrics)} |", "|---" * (len(metrics) + 1) + "|"]
        lines += [f"| {name} | {' | '.join(line.get(m, '') for m in metrics)} |" for name, line in cells.items()]
    return "\n".join(lines[1:])


def said(row: Row) -> str:
    """A figure with its interval, what is wanted, and what is published."""
    text = str(row.figure)
    text += "".join(f", {word} {end:g}" for word, end in (("≥", row.least), ("≤", row.most)) if abs(end) < inf)
    text += {True: " met", False: " **missed**", None: ""}[row.met]
    return text if row.published is None else f"{text}, published {row.published:g}"


def as_json(rows: Sequence[Row]) -> list[dict]:
    """The rows as plain values."""
    values = [{**row._asdict(), "figure": row.figure._asdict(), "met": row.met} for row in rows]
    return [{name: None if value in (inf, -inf) else value for name, value in line.items()} for line in values]
