"""`python -m minibaret.weights.miniature`, on next to no scenes, steps and hours."""

import json
import sys
from concurrent.futures.process import BrokenProcessPool

import pytest

from minibaret.evaluation import scoring
from minibaret.weights import MINIATURE_FOLDER
from minibaret.weights.miniature import __main__ as command
from minibaret.weights.miniature import networks, table
from minibaret.weights.miniature.world.scene import SWEEP_SEEDS

INSTANT = "0.000001"  # hours: one step


def run(monkeypatch, *arguments) -> int:
    """The exit code."""
    monkeypatch.setattr(sys, "argv", ["python -m minibaret.weights.miniature", *map(str, arguments)])
    try:
        command.main()
    except SystemExit as end:
        return end.code
    return 0


@pytest.fixture
def hasty(monkeypatch):
    """A table of one trial, of edits that take no time; in this process, as workers know nothing of it."""
    short = {"steps": 2, "inner_steps": 1}
    monkeypatch.setattr(table, "TRIALS", {"quality": {"BARET": table.Trial("baret", short)}})
    monkeypatch.setattr(networks, "STEPS", 1)
    monkeypatch.setattr(table, "seconds_of_an_edit", lambda _: 14.0)
    monkeypatch.setattr(
        scoring, "in_workers", lambda function, jobs, _: (each for each in enumerate(map(function, jobs)))
    )


def test_measure_prints_the_table_and_goes_on(hasty, tmp_path, monkeypatch, capsys):
    kept = tmp_path / "kept.jsonl"
    small = ("--scenes", 1, "--edits", 2, "--seeds", "sweep")
    assert run(monkeypatch, "measure", *small, "--keep", kept, "--json") == 0
    first = capsys.readouterr().out.splitlines()
    found = json.loads(first[-1])
    assert found["seeds"] == "sweep" and {row["part"] for row in found["rows"]} == {"networks", "quality"}
    assert first[0] == "| networks | measured |" and any(line.startswith("| BARET | ") for line in first)
    lines = kept.read_text()
    kept_of = [json.loads(line)["of"] for line in lines.splitlines()]
    assert [of.get("networks, scene") or of["case"] for of in kept_of] == [
        SWEEP_SEEDS[0],
        *(f"posture/{seed}" for seed in SWEEP_SEEDS[:2]),
    ]
    assert run(monkeypatch, "measure", *small, "--keep", kept, "--json") == 0
    assert capsys.readouterr().out.splitlines() == first and kept.read_text() == lines


def test_pictures_are_drawn_by_name(tmp_path, monkeypatch, capsys):
    (tmp_path / "curves.json").write_text(
        json.dumps({"vae": {"1": [{"pictures": n, "seconds": n, "loss": 1 / n, "psnr": n} for n in (10, 20)]}})
    )
    assert run(monkeypatch, "pictures", "curves", "--weights", tmp_path, "--folder", tmp_path) == 0
    assert [path.name for path in tmp_path.glob("*.png")] == ["curves.png"]
    assert run(monkeypatch, "pictures", "portrait", "--folder", tmp_path) == 2
    assert "a picture must be one of samples, edits" in capsys.readouterr().err


def test_training_leaves_a_folder_that_edits(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    once = ("--hours", INSTANT, "--workers", 1, "--scenes", 2)
    assert run(monkeypatch, "train", "unet", *once, "--start", MINIATURE_FOLDER) == 0
    assert (tmp_path / "runs" / "unet-000001.png").exists()
    weights = tmp_path / "runs" / "weights"
    trained, shipped = (folder / "unet.safetensors" for folder in (weights, MINIATURE_FOLDER))
    assert trained.stat().st_size == shipped.stat().st_size and trained.read_bytes() != shipped.read_bytes()
    assert run(monkeypatch, "train", "vae", *once) == 2
    assert "holds a unet" in capsys.readouterr().err
    assert run(monkeypatch, "train", "vae", *once, "--weights", tmp_path / "other") == 0
    assert (tmp_path / "runs" / "vae-000001.png").exists() and (tmp_path / "other" / "vae.safetensors").exists()
    drawn = run(monkeypatch, "pictures", "curves", "--runs", "runs", "--weights", weights, "--folder", tmp_path)
    assert drawn == 2 and "no training log" in capsys.readouterr().err  # a step is too few for the log


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("measure", "--scenes", "0"), "a whole number, at least 1, was wanted, got '0'"),
        (("measure", "--weights", "nowhere"), "nowhere"),
        (("measure", "--edits", "none"), "a whole number, at least 0"),
        (("train", "unet", "--hours", "1", "--start", "nowhere"), "no folder nowhere"),
    ],
)
def test_what_is_wrong_is_one_sentence(arguments, said, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, *arguments) == 2
    error = capsys.readouterr().err
    assert said in error.splitlines()[-1] and "Traceback" not in error


def test_a_worker_that_is_killed_is_said(monkeypatch, capsys):
    def broken(_):
        raise BrokenProcessPool("A process in the process pool was terminated abruptly")

    monkeypatch.setattr(command, "_measure", broken)
    assert run(monkeypatch, "measure") == 2
    assert "a worker process was killed, probably because memory ran out; with --keep FILE" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "file"), [("curves", "curves.json")])
def test_what_is_kept_and_damaged_or_missing_is_said(name, file, monkeypatch, capsys, tmp_path):
    drawing = ("pictures", name, "--weights", tmp_path, "--folder", tmp_path)
    assert run(monkeypatch, *drawing) == 2 and file in capsys.readouterr().err
    (tmp_path / file).write_text('[{"weights": ')
    assert run(monkeypatch, *drawing) == 2
    assert f"{file} is damaged: JSON was wanted there" in capsys.readouterr().err


def test_ctrl_c_says_how_to_go_on(monkeypatch, capsys):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "_measure", interrupted)
    assert run(monkeypatch, "measure") == 130
    assert "stopped; with --keep FILE" in capsys.readouterr().err
