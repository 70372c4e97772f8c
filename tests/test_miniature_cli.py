"""`python -m minibaret.miniature`, on next to no scenes, steps and hours."""

import json
import shutil
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

from minibaret.miniature import __main__ as command
from minibaret.miniature import table
from minibaret.weights import MINIATURE_FOLDER

INSTANT = "0.000001"  # hours: one step


def run(monkeypatch, *arguments) -> int:
    """The exit code."""
    monkeypatch.setattr(sys, "argv", ["python -m minibaret.miniature", *map(str, arguments)])
    try:
        command.main()
    except SystemExit as end:
        return end.code
    return 0


@pytest.fixture
def hasty(tmp_path) -> Path:
    """The shipped weights, with defaults that take no time."""
    weights = tmp_path / "weights"
    shutil.copytree(MINIATURE_FOLDER, weights, ignore=shutil.ignore_patterns("examples", "*.png"))
    config = json.loads((weights / "config.json").read_text())
    config["defaults"] |= {"steps": 2, "inner_steps": 1}
    (weights / "config.json").write_text(json.dumps(config))
    return weights


def test_measure_prints_the_table_and_goes_on(hasty, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(table, "seconds_of_an_edit", lambda _: 14.0)
    kept = tmp_path / "kept.jsonl"
    counts = ("--scenes", 1, "--edits", 1, "--distorted", 1, "--workers", 1)
    assert run(monkeypatch, "measure", *counts, "--keep", kept, "--weights", hasty, "--json") == 0
    first = capsys.readouterr().out.splitlines()
    found = json.loads(first[-1])["table"]
    assert {*table.BARS} <= {*found} and all(set(row) >= {"value", "bar", "met"} for row in found.values())
    assert found["zero_shot_animal"]["scenes"] == found["jpeg_success"]["scenes"] == 1
    assert len(first) == len(found) + 3 and first[-2].startswith("| a whole edit, threads: ")
    lines = kept.read_text()
    assert len(lines.splitlines()) == 1 + 5 + 6
    assert run(monkeypatch, "measure", *counts, "--keep", kept, "--weights", hasty, "--json") == 0
    assert capsys.readouterr().out.splitlines() == first and kept.read_text() == lines


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
    assert run(monkeypatch, "curves", "-o", tmp_path / "curves.png") == 2  # a step is too few for the log
    assert "no training log" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("measure", "--edits", "2", "--distorted", "3"), "--distorted must be at most --edits, got 3 and 2"),
        (("measure", "--weights", "nowhere"), "nowhere"),
        (("sweep", "--scenes", "none"), "a whole number, at least 1"),
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


@pytest.mark.parametrize("name", ["sweep", "curves"])
def test_what_is_kept_and_damaged_is_said(name, hasty, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    (hasty / f"{name}.json").write_text('[{"weights": ')
    assert run(monkeypatch, name, "--weights", hasty) == 2
    assert f"{name}.json is damaged: JSON was wanted there" in capsys.readouterr().err


def test_ctrl_c_says_how_to_go_on(monkeypatch, capsys):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "_measure", interrupted)
    assert run(monkeypatch, "measure") == 130
    assert "stopped; with --keep FILE" in capsys.readouterr().err
