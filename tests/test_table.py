"""The table that the miniature is judged by, the scores it is made of, and the charts: mostly without networks."""

import json
import sys

import pytest

from minibaret import charts
from minibaret.errors import InputError
from minibaret.evaluation.intervals import Figure
from minibaret.weights import MINIATURE_FOLDER
from minibaret.weights.folder import MERGES, load_image_encoder
from minibaret.weights.miniature import networks, plots, table
from minibaret.weights.miniature.table import TRIALS, Row, Trial, as_json, as_text, edit_rows, network_rows
from minibaret.weights.miniature.world import tasks
from minibaret.weights.miniature.world.fingerprint import fingerprint
from minibaret.weights.miniature.world.tasks import KINDS


def test_every_trial_can_be_made(editor):
    for trials in TRIALS.values():
        for name, trial in trials.items():
            assert trial.over in ("", *trials) and trial.over != name
            editor.settings(trial.method, "paper", **trial.changes)
    assert table.CASES.keys() == TRIALS.keys()
    edits = table.edits_of(editor, Trial("sdedit"), table.CASES["calibration"], [7, 8])
    assert [edit.case.name for edit in edits] == [f"{kind}/{seed}" for kind in KINDS for seed in (7, 8)]


FOUR = {  # by trial: success and background of four seeds
    "plain": [(True, 20.0), (False, 22.0), (True, 24.0), (True, 26.0)],
    "BARET": [(True, 22.0), (False, 23.0), (False, 27.0), (True, 28.0)],
}


@pytest.fixture
def trials(monkeypatch, editor):
    """Edits by the trials of a small table, of scores known beforehand; which seeds each had."""
    monkeypatch.setattr(table, "TRIALS", {
        "quality": {
            "plain": Trial("baret", {"self_steps": 0.0}),
            "BARET": Trial("baret", {}, "plain", 2.5, 9.2),
        },
    })  # fmt: skip
    asked = {}

    class Known:
        def edits(self, edits):
            for one in edits:
                assert one.method == "baret" and one.knobs["guidance"] == 7.5  # the paper's, not the shipped default
                seed = int(one.case.name.removeprefix("posture/"))
                asked.setdefault(one.knobs["self_steps"], []).append(seed)
                success, background = FOUR["plain" if one.knobs["self_steps"] == 0 else "BARET"][seed]
                more = {"answer_psnr": 18.0, "vae_psnr": 33.0, "reconstruction_psnr": 32.5, "inner_iterations": 90}
                yield {"success": success, "background_psnr": background, **more}

    def rows(count=4):
        return edit_rows(editor, Known(), range(count)), asked

    return rows


def test_trials_are_compared_pair_by_pair(trials):
    rows, asked = trials()
    assert asked == {0.0: [0, 1, 2, 3], 0.3: [0, 1, 2, 3]}
    found = {(row.part, row.name, row.metric): row for row in rows}
    assert {key[:2] for key in found} == {("quality", "plain"), ("quality", "BARET")}
    plain, baret = (found["quality", name, "success, %"].figure for name in ("plain", "BARET"))
    assert (plain.value, baret.value, baret.cases) == (75, 50, 4) and plain.low < 75 < plain.high
    assert found["quality", "BARET", "background, dB"].figure.value == 25.0
    gain = found["quality", "BARET", "background over plain, dB"]
    assert gain.figure.value == pytest.approx((2 + 1 + 3 + 2) / 4) and gain.figure.low < 1 < 3 < gain.figure.high
    assert gain.met is False and gain.published == 9.2
    lost = found["quality", "BARET", "reconstruction below the VAE's, dB"]
    assert lost.figure.value == 0.5 and lost.met is True
    assert found["quality", "BARET", "inner iterations"].figure.value == 90
    assert trials(0)[0] == []


def test_the_table_says_what_is_wanted_and_published(trials):
    rows, _ = trials()
    text = as_text(rows)
    assert "| quality | success, % | background, dB | right answer, dB |" in text
    assert "| plain | 75 (30.1 to 95.4) | 23 (" in text
    gain = next(row for row in rows if row.least == 2.5)
    low, high = (f"{end:.3g}" for end in gain.figure[1:3])
    assert f"| 2 ({low} to {high}), ≥ 2.5 **missed**, published 9.2 |" in text
    assert as_text([Row("p", "n", "m", Figure(0.66, 0.66, 0.66, 1), 0.4)]).splitlines()[-1] == "| n | 0.66, ≥ 0.4 met |"
    values = as_json(rows)
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    line = next(line for line in values if line["least"] == 2.5)
    assert line["figure"]["value"] == 2 and line["most"] is None and line["met"] is False and line["published"] == 9.2


def test_what_the_networks_can_do(editor, monkeypatch, tmp_path):
    monkeypatch.setattr(table, "seconds_of_an_edit", lambda _: 14.0)
    monkeypatch.setattr(networks, "STEPS", 1)
    (tmp_path / "unet.safetensors").write_bytes(bytes(41_000_000))
    found = networks.scores(editor, load_image_encoder(), [7, 8])
    assert all(isinstance(found[0][f"{what}_{kind}"], bool) for what in ("zero_shot", "generated") for kind in KINDS)
    assert all(scores["zero_shot_posture"] for scores in found)
    assert not all(scores[f"generated_{kind}"] for scores in found for kind in KINDS)  # a step leaves much noise
    assert 30 < found[0]["vae_psnr"] < 40
    again = networks.scores(editor, load_image_encoder(), [8])[0]
    assert again == pytest.approx(found[1], rel=1e-3)  # a picture's noise is its scene's
    known = [{**found[0], "saturation": s, "drawn_saturation": d} for s, d in ((0.5, 0.4), (0.3, 0.4))]
    rows = {row.name: row for row in network_rows(editor, tmp_path, known)}
    saturation = rows["saturation over the drawn world's, %"]
    assert saturation.figure.value == pytest.approx(0, abs=1e-6) and saturation.met
    assert saturation.figure.high == pytest.approx(25 * 12.706, rel=1e-4)  # Student's, of two
    assert rows["posture named by the CLIP pair, %"].figure.value == 100
    assert rows["all weights, MB"].figure.value == 41 and rows["all weights, MB"].met is False
    assert rows["an edit by BARET, s"].met and rows["all drawn as the caption says, %"].met is None
    assert 0.4 < rows["distance of captions that differ in colour"].figure.value < 2


def test_saturation_is_that_of_hsv():
    from PIL import Image

    half = Image.new("RGB", (2, 1), (200, 100, 100))  # (max − min) / max
    half.putpixel((1, 0), (90, 90, 90))
    assert networks.saturation(half) == pytest.approx(0.25, abs=0.01)


def test_the_fingerprint_follows_the_weights_and_not_their_defaults(tmp_path):
    for path in (*MINIATURE_FOLDER.glob("*.safetensors"), MINIATURE_FOLDER / "config.json", MINIATURE_FOLDER / MERGES):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    shipped = fingerprint(MINIATURE_FOLDER)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "defaults": {"steps": 3}}))
    assert fingerprint(tmp_path) == shipped
    weights = bytearray((tmp_path / "unet.safetensors").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "unet.safetensors").write_bytes(weights)
    assert fingerprint(tmp_path) != shipped


def test_the_fingerprint_follows_the_world_and_the_tasks(monkeypatch):
    shipped, task_of = fingerprint(MINIATURE_FOLDER), tasks.task_of
    module = sys.modules[fingerprint.__module__]
    for name, other in (
        ("world_fingerprint", lambda: "another world"),
        ("task_of", lambda kind, seed: task_of(kind, seed + 1)),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, other)
            assert fingerprint(MINIATURE_FOLDER) != shipped, name
    assert fingerprint(MINIATURE_FOLDER) == shipped


def log(run, steps, start=0.2) -> str:
    figures = [{"pictures": 8 * s, "seconds": s / 2, "loss": start / s, "psnr": 30 + s / 1e3} for s in steps]
    lines = [{"run": run, "step": s, **found} for s, found in zip(steps, figures)]
    return "".join(json.dumps(line) + "\n" for line in lines)


def test_a_log_is_split_into_its_runs(tmp_path):
    path = tmp_path / "vae.jsonl"
    path.write_text(
        log("1", range(20, 101, 20)) + log("1", range(80, 201, 20)) + log("2", range(20, 61, 20)) + '{"step": 8'
    )
    steps = {run: [line["step"] for line in lines] for run, lines in plots.read_runs(path).items()}
    assert steps == {"1": [20, 40, 60, 80, 100, 120, 140, 160, 180, 200], "2": [20, 40, 60]}


def test_curves_are_thinned_kept_and_drawn_again_without_the_log(tmp_path):
    runs, kept = tmp_path / "runs", tmp_path / "curves.json"
    assert plots.keep_curves(runs, kept) == {} and not kept.exists()
    runs.mkdir()
    (runs / "vae.jsonl").write_text(log("2", range(20, 20_001, 20)))
    plots.keep_curves(runs, kept)
    (runs / "vae.jsonl").write_text(log("1", range(20, 201, 20)) + log("3", range(20, 4_001, 20), start=0.1))
    found = plots.keep_curves(runs, kept)  # the log of the second run is gone
    first, second, third = found["vae"].values()
    assert [len(run) for run in (first, second, third)] == [10, 200, 200]
    assert second[-1]["pictures"] == 160_000 and third[-1]["pictures"] == 32_000  # the ends are always there
    assert plots.keep_curves(tmp_path / "gone", kept) == found
    loss, psnr = plots.training(found).axes
    assert "3.4 hours" in loss.get_title() and "PSNR" in psnr.get_title()  # (100 + 10000 + 2000) seconds
    ends = [line.get_xdata()[-1] for line in loss.lines]
    assert ends == [1_600, 161_600, 193_600]  # one run after another
    assert loss.lines[0].get_ydata()[0] == pytest.approx(0.2 / 20)


def test_a_chart_is_a_picture_or_says_what_it_needs(monkeypatch):
    assert charts.picture(charts.figure(1, 2)).size == (1200, 408)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(
        InputError, match=r"charts need matplotlib, which is not here: pip install 'minibaret\[plots\]'"
    ):
        charts.figure(1, 1)
