"""The table of what was measured, the sweep and the curves: without networks, and going on where they stopped."""

import dataclasses
import json
import os
import sys

import numpy as np
import pytest
import torch

from minibaret.errors import InputError
from minibaret.miniature import curves, edits, sweep, table
from minibaret.miniature.charts import FINE, plain, scatter, ticks
from minibaret.miniature.edits import Edit, Kept, score_edits
from minibaret.miniature.table import Row, as_json, as_text, edit_rows
from minibaret.miniature.workers import ENVIRONMENT, in_workers
from minibaret.miniature.world import tasks
from minibaret.miniature.world.distortions import DISTORTIONS
from minibaret.miniature.world.fingerprint import fingerprint
from minibaret.miniature.world.scene import MEASURED_SEEDS, SWEEP_SEEDS
from minibaret.miniature.world.tasks import KINDS
from minibaret.progress import ProgressBars
from minibaret.settings import Settings
from minibaret.weights import MINIATURE_FOLDER
from minibaret.weights.folder import MERGES

CHEAP = {"vae_psnr": 30.0, "inner_iterations": 10.0, "seconds": 1.0}


class Stub:
    """An editor that has settings and nothing else."""

    def settings(self, **changes) -> Settings:
        return Settings(**changes)


@pytest.fixture
def made(monkeypatch) -> list[Edit]:
    """Scores edits by their seeds, at once; the list is of those that were scored. Seed 13 stops the work."""
    done = []

    def figures(edit: Edit) -> dict[str, float]:
        if edit.seed == 13:
            raise KeyboardInterrupt
        done.append(edit)
        success = float(edit.seed % 2 == 0 and edit.distortion != "noise")
        background = 25.0 + edit.settings.guidance
        return {"success": success, "background_psnr": background, "reconstruction_psnr": 39.0, **CHEAP}

    def at_once(_function, arguments, _workers):
        for _, group in arguments:
            yield [figures(edit) for edit in group]

    monkeypatch.setattr(edits, "in_workers", at_once)
    return done


def test_edits_that_are_kept_are_not_made_again(tmp_path, made):
    wanted = [Edit("posture", seed, Settings()) for seed in range(5)]
    path = tmp_path / "new" / "kept.jsonl"
    with pytest.raises(KeyboardInterrupt):
        score_edits([*wanted[:2], Edit("posture", 13, Settings()), *wanted[2:]], tmp_path, Kept(path, "w"), workers=1)
    assert len(path.read_text().splitlines()) == 2 == len(made)
    with open(path, "a") as file:
        file.write('{"of": {"weights": "w", "ki')  # killed while it wrote
    again = score_edits(wanted, tmp_path, Kept(path, "w"), workers=1)
    assert made == wanted and [scores["success"] for scores in again] == [1, 0, 1, 0, 1]
    assert [json.loads(line)["of"]["seed"] for line in path.read_text().splitlines()] == [0, 1, 2, 3, 4]
    score_edits(wanted, tmp_path, Kept(path, "w"), workers=1)
    assert len(made) == 5


def test_edits_share_an_inversion_if_they_differ_only_in_what_comes_after_it(tmp_path, monkeypatch):
    after = [{}, {"self_steps": 0.1}, {"rigid": True, "cross_steps": 0.2}, {"transition": (0.5, 0.5), "rows": "both"}]
    other = [{"guidance": 3.0}, {"inversion_text": "null"}, {"tolerance": (0.0, 0.0)}]
    wanted = [Edit("posture", seed, Settings(**changes)) for changes in (*after, *other) for seed in (0, 1)]
    groups = []

    def in_order(_function, arguments, _workers):
        for _, group in arguments:
            groups.append(group)
            yield [{"of": edit} for edit in group]

    monkeypatch.setattr(edits, "in_workers", in_order)
    scores = score_edits([*wanted, Edit("colour", 0, Settings())], tmp_path, Kept(None, "w"), 1)
    assert [group[0].seed for group in groups] == [0, 1] * 4 + [0]
    assert [len(group) for group in groups] == [4, 4, 1, 1, 1, 1, 1, 1, 1]
    assert [scored["of"] for scored in scores[:-1]] == wanted


def test_a_shared_inversion_changes_no_figure(one_thread):
    short = Settings(steps=3, inner_steps=2)
    rigid = dataclasses.replace(short, rigid=True, self_steps=1.0, cross_steps=1.0)
    wanted = [Edit("posture", 5, short), Edit("posture", 5, rigid)]
    together = edits._score(MINIATURE_FOLDER, wanted)
    apart = [edits._score(MINIATURE_FOLDER, [edit])[0] for edit in wanted]
    for scores in (*together, *apart):
        assert scores.pop("seconds") > 0
    assert together == apart and apart[0] != apart[1]


def test_a_file_that_keeps_something_else_is_left_alone(tmp_path):
    path = tmp_path / "notes.txt"
    for notes in ("first line\nsecond, without an end", '{"of": 3}\n', "[1, 2]\n", '[{"guidance": 5.0}]', "{}"):
        path.write_text(notes)
        with pytest.raises(InputError, match=r"notes.txt should hold kept results"):
            Kept(path, "w")
        assert path.read_text() == notes


@pytest.mark.parametrize("length", [1, 4, len(edits.LINE), 30])
def test_a_last_line_that_was_cut_short_is_dropped(length, tmp_path, made):
    path = tmp_path / "kept.jsonl"
    score_edits([Edit("posture", 0, Settings()), Edit("posture", 1, Settings())], tmp_path, Kept(path, "w"), 1)
    whole = path.read_bytes()
    second = whole.index(b"\n") + 1
    path.write_bytes(whole[: second + length])
    assert len(Kept(path, "w").results) == 1 and path.read_bytes() == whole[:second]


@pytest.mark.parametrize(
    "other",
    [
        Edit("colour", 0, Settings()),
        Edit("posture", 1, Settings()),
        Edit("posture", 0, Settings(guidance=3.0)),
        Edit("posture", 0, Settings(), "noise"),
    ],
)
def test_what_is_kept_is_of_one_edit_alone(tmp_path, made, other):
    path = tmp_path / "kept.jsonl"
    score_edits([Edit("posture", 0, Settings())], tmp_path, Kept(path, "w"), 1)
    score_edits([other], tmp_path, Kept(path, "w"), 1)
    score_edits([other], tmp_path, Kept(path, "other weights"), 1)
    assert len(made) == 3


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


def test_the_fingerprint_follows_the_world_the_tasks_and_the_distortions(monkeypatch):
    shipped, task_of = fingerprint(MINIATURE_FOLDER), tasks.task_of
    module = sys.modules[fingerprint.__module__]
    for name, other in (
        ("world_fingerprint", lambda: "another world"),
        ("task_of", lambda kind, seed: task_of(kind, seed + 1)),
        ("distort", lambda picture, name, seed: picture),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, other)
            assert fingerprint(MINIATURE_FOLDER) != shipped, name
    assert fingerprint(MINIATURE_FOLDER) == shipped


def threads(number: int) -> tuple[int, int, dict[str, str]]:
    return number, torch.get_num_threads(), {name: os.environ[name] for name in ENVIRONMENT}


def test_workers_have_one_thread_and_answer_in_order():
    before = dict(os.environ)
    assert list(in_workers(threads, [(5,), (3,), (4,)], workers=2)) == [(n, 1, ENVIRONMENT) for n in (5, 3, 4)]
    assert dict(os.environ) == before


def test_the_table_of_edits_has_every_kind_and_every_distortion(tmp_path, made):
    rows = {row.name: row for row in edit_rows(Stub(), tmp_path, 4, 2, Kept(None, "w"), workers=1)}
    assert len(made) == 4 * len(KINDS) + 2 * len(DISTORTIONS)
    assert {edit.seed for edit in made} == {*MEASURED_SEEDS[:4]}
    assert {edit.seed for edit in made if edit.distortion} == {*MEASURED_SEEDS[:2]}
    assert rows["jpeg_success"].trials == 2 and rows["posture_success"].trials == 4
    assert set(rows) == {
        f"{group}_{figure}"
        for group in (*KINDS, *DISTORTIONS)
        for figure in ("success", "background_psnr", "reconstruction_psnr")
    }
    for kind in KINDS:
        assert rows[f"{kind}_success"].value == 0.5 and rows[f"{kind}_success"].bar == 0.8
    assert rows["jpeg_success"].bar == pytest.approx(0.4) and rows["jpeg_success"].met
    assert not rows["noise_success"].met
    assert rows["shift_reconstruction_psnr"].bar == 33.0 and rows["shift_reconstruction_psnr"].met
    assert rows["posture_background_psnr"].met and rows["colour_background_psnr"].met is None


def test_the_whole_table_says_what_is_met(tmp_path, made, monkeypatch):
    networks = {f"zero_shot_{kind}": 0.99 for kind in KINDS} | {"caption_distance_animal": 0.3, "vae_psnr": 31.9}
    measured = []
    monkeypatch.setattr(table, "measure", lambda *arguments: measured.append(arguments) or networks)
    monkeypatch.setattr(table, "seconds_of_an_edit", lambda _: 59.0)
    (tmp_path / "unet.safetensors").write_bytes(bytes(41_000_000))
    for _ in range(2):
        kept = Kept(tmp_path / "kept.jsonl", "w")
        rows = table.table(Stub(), None, tmp_path, scenes=200, edits=2, distorted=1, kept=kept, workers=1)
    assert len(measured) == 1  # the second time it was kept
    found = as_json(rows)
    assert json.loads(json.dumps(found)) == found
    assert found["zero_shot_colour"]["met"] and found["zero_shot_colour"]["scenes"] == 200
    assert not found["caption_distance_animal"]["met"] and not found["vae_psnr"]["met"]
    assert found["megabytes"] == {"value": 41.0, "bar": 40.0, "met": False} and found["seconds"]["met"]
    text = as_text(rows)
    assert "| zero shot animal | 99.0 % (96.4 to 99.7) | ≥ 98.0 % | met |" in text
    assert "| vae PSNR | 31.9 dB | ≥ 32.0 dB | **missed** |" in text
    assert "41.0 MB | ≤ 40.0 MB | **missed**" in text
    assert len(text.splitlines()) == len(rows) + 2


@pytest.mark.parametrize(
    "share, trials, low, high", [(0.5, 40, 0.352, 0.648), (1.0, 24, 0.862, 1.0), (0.0, 10, 0.0, 0.278)]
)
def test_the_interval_is_wilsons(share, trials, low, high):
    assert Row("", share, trials=trials).interval == pytest.approx((low, high), abs=1e-3)


def test_the_sweep_goes_on_where_it_stopped(tmp_path, made):
    tried = [{}, {"guidance": 3.0}, {"self_steps": 0.1}]

    def run(which, kind="posture", weights="w"):
        return sweep.sweep(Stub(), tmp_path, kind, which, 4, Kept(None, weights), 1, ProgressBars().count)

    first = run(tried[:2])
    assert len(made) == 8 and {edit.seed for edit in made} == {*SWEEP_SEEDS[:4]}
    lines = run([*tried, {"guidance": 7.5}])  # the last is the default again
    assert len(made) == 12 and lines[:2] == first and len(lines) == 3
    assert [line["settings"]["self_steps"] for line in lines] == [0.3, 0.3, 0.1]
    assert lines[1]["success"] == 0.5 and lines[1]["background_psnr"] == 28.0
    assert json.loads((tmp_path / "sweep.json").read_text()) == lines
    before = (tmp_path / "sweep.png").read_bytes()
    run([{}], kind="colour")
    assert made[-1].settings.rigid and (tmp_path / "sweep.png").read_bytes() != before
    run(tried[:1], weights="other")
    assert len(made) == 20 and len(json.loads((tmp_path / "sweep.json").read_text())) == 5
    (tmp_path / "sweep.png").unlink()
    assert run(tried) == lines[:3] and len(made) == 20
    assert (tmp_path / "sweep.png").exists()  # drawn anew: which settings are in use may have changed


def test_which_settings_are_tried():
    start = Settings(guidance=5.0)
    singly = sweep.one_at_a_time(start)
    assert singly[0] == {} and all(len(changes) == 1 for changes in singly[1:])
    assert {"guidance": 3.0} in singly and {"guidance": 5.0} not in singly
    drawn = sweep.at_random(20, seed=1)
    assert drawn == sweep.at_random(20, seed=1) != sweep.at_random(20, seed=2)
    with pytest.raises(InputError, match=r"there are \d+ combinations to try at random, got 1000000"):
        sweep.at_random(1_000_000, seed=1)
    assert len({str(changes) for changes in drawn}) == 20
    for changes in singly + drawn:
        Settings(**changes)
    assert not any("transition" in changes for changes in sweep.one_at_a_time(Settings(rigid=True)))


def test_a_list_of_settings_is_read_or_refused(tmp_path):
    path = tmp_path / "settings.json"
    path.write_text('[{"guidance": 5.0, "transition": [0.6, 0.1]}]')
    assert sweep.listed(path, "posture", "w") == [{"guidance": 5.0, "transition": (0.6, 0.1)}]
    lines = [("w", "colour", {"rigid": True}), ("w", "animal", {"steps": 9}), ("others", "animal", {"steps": 8})]
    path.write_text(json.dumps([{"weights": w, "kind": k, "settings": changes} for w, k, changes in lines]))
    assert sweep.listed(path, "animal", "w") == [{"steps": 9}] and sweep.listed(path, "ground", "w") == []
    for wrong, said in (('{"guidance": 5}', "a JSON list"), ("[1]", "a JSON list"), ('[{"size": 3}]', "sets 'size'")):
        path.write_text(wrong)
        with pytest.raises(InputError, match=said):
            sweep.listed(path, "posture", "w")


def log(run, steps, start=0.2) -> str:
    figures = [{"pictures": 8 * s, "seconds": s / 2, "loss": start / s, "psnr": 30 + s / 1e3} for s in steps]
    lines = [{"run": run, "step": s, **found} for s, found in zip(steps, figures)]
    return "".join(json.dumps(line) + "\n" for line in lines)


def test_a_log_is_split_into_its_runs(tmp_path):
    path = tmp_path / "vae.jsonl"
    path.write_text(
        log("1", range(20, 101, 20)) + log("1", range(80, 201, 20)) + log("2", range(20, 61, 20)) + '{"step": 8'
    )
    steps = {run: [line["step"] for line in lines] for run, lines in curves.read_runs(path).items()}
    assert steps == {"1": [20, 40, 60, 80, 100, 120, 140, 160, 180, 200], "2": [20, 40, 60]}


def test_curves_are_thinned_kept_and_drawn_again_without_the_log(tmp_path):
    runs, kept = tmp_path / "runs", tmp_path / "curves.json"
    assert curves.keep_curves(runs, kept) == {} and not kept.exists()
    runs.mkdir()
    (runs / "vae.jsonl").write_text(log("2", range(20, 20_001, 20)))
    curves.keep_curves(runs, kept)
    (runs / "vae.jsonl").write_text(log("1", range(20, 201, 20)) + log("3", range(20, 4_001, 20), start=0.1))
    found = curves.keep_curves(runs, kept)  # the log of the second run is gone
    first, second, third = found["vae"].values()
    assert [len(run["loss"]) for run in (first, second, third)] == [10, 200, 200]
    assert second["pictures"][-1] == 160_000 and third["pictures"][-1] == 32_000  # the ends are always there
    drawn = curves.draw_curves(found)
    assert np.asarray(drawn).std() > 5
    assert curves.draw_curves(curves.keep_curves(tmp_path / "gone", kept)).tobytes() == drawn.tobytes()


def test_ticks_are_round_and_inside():
    assert ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert [plain(tick) for tick in ticks(20.9, 27.3)] == ["22", "24", "26"]
    assert [plain(tick) for tick in ticks(0, 390_000)] == ["0", "100k", "200k", "300k"]


def test_a_point_lies_where_its_values_are():
    from minibaret.miniature.charts import ACCENT, Axes, canvas

    image, draw = canvas(300, 200, "title")
    axes = Axes(draw, (50, 40, 280, 150), (0.0, 10.0), (0.0, 1.0), "y", "x")
    left, bottom = axes.place(0.0, 0.0)
    right, top = axes.place(10.0, 1.0)
    assert 50 * FINE < left < right < 280 * FINE and 40 * FINE < top < bottom < 150 * FINE
    assert axes.place(5.0, 0.5) == pytest.approx(((left + right) / 2, (top + bottom) / 2))
    axes.dot(5.0, 0.5, filled=True)
    assert image.getpixel(tuple(map(round, axes.place(5.0, 0.5)))) == ACCENT
    picture = scatter([(1.0, 2.0), (3.0, 4.0)], ["a", "b"], "title", "x", "y", (0, 5), marked=1)
    assert picture.size == (860, 550)
