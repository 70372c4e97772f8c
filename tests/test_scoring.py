"""Scores that are kept as they come, the processes that make them, and the command."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from runs import refused

from minibaret.cli import main
from minibaret.errors import InputError
from minibaret.evaluation import scoring
from minibaret.evaluation.cases import LazyCase
from minibaret.evaluation.networks import Networks
from minibaret.evaluation.scoring import Edit, Laboratory, ScoreFile, Scorer
from minibaret.images import psnr
from minibaret.sheet import PAPER
from minibaret.weights.miniature.cases import drawn_case, lazy_case
from minibaret.workers import ENVIRONMENT, in_workers

INTERRUPTS = 13  # a seed


def edit(seed: int = 0, kind: str = "posture", method: str = "baret", **knobs) -> Edit:
    return Edit(lazy_case(kind, seed, 128), method, knobs)


def seed_of(one: Edit) -> int:
    return int(one.case.name.split("/")[1])


@pytest.fixture
def made(monkeypatch) -> list[list[Edit]]:
    """Scores edits by their seeds, at once; the groups that were scored."""
    groups = []

    def at_once(_laboratory, group):
        if seed_of(group[0]) == INTERRUPTS:
            raise KeyboardInterrupt
        groups.append(group)
        seeds = [(seed_of(one), one.knobs.get("a", 0)) for one in group]
        return [{"success": seed % 2 == 0, "background_psnr": seed + a} for seed, a in seeds]

    monkeypatch.setattr(scoring, "_edits", at_once)
    return groups


def scorer(path=None, weights: str = "w") -> Scorer:
    return Scorer(Laboratory(), ScoreFile(path, weights))


def test_scores_that_are_kept_are_not_made_again(tmp_path, made):
    path, wanted = tmp_path / "new" / "kept.jsonl", [edit(seed) for seed in range(5)]
    with pytest.raises(KeyboardInterrupt):
        scorer(path).edits([*wanted[:2], edit(INTERRUPTS), *wanted[2:]])
    assert len(path.read_text().splitlines()) == 2 == len(made)
    with open(path, "a") as file:
        file.write('{"of": {"weights": "w", "ca')  # killed while it wrote
    assert [scores["success"] for scores in scorer(path).edits(wanted)] == [True, False, True, False, True]
    cases = [json.loads(line)["of"]["case"] for line in path.read_text().splitlines()]
    assert cases == [f"posture/{seed}" for seed in range(5)] and len(made) == 5
    scorer(path).edits([*wanted, wanted[0]])
    assert len(made) == 5


@pytest.mark.parametrize(
    "other",
    [edit(1), edit(kind="colour"), edit(method="sdedit"), edit(guidance=3.0)],
)
def test_what_is_kept_is_of_one_edit_and_one_folder_of_weights(other, tmp_path, made):
    path = tmp_path / "kept.jsonl"
    for wanted in (edit(), other, other):
        scorer(path).edits([wanted])
    assert len(made) == 2
    with pytest.raises(InputError, match=r"kept.jsonl has scores of other weights or networks: name another file"):
        scorer(path, "other weights")


def test_a_file_that_keeps_something_else_is_left_alone(tmp_path):
    path = tmp_path / "notes.txt"
    good = '{"of": {"case": "a"}, "scores": {}}\n'
    for notes, said in (
        ("first line\nsecond, without an end", "line 1 holds"),
        ("one line", "holds"),
        ('{"of": 3}\n', "line 1 holds"),
        ("[1, 2]\n", "line 1 holds"),
        (good + good[:20] + "\n" + good, "line 2 holds"),
        ("\n", "line 1 holds"),
    ):
        path.write_text(notes)
        with pytest.raises(InputError, match=f"notes.txt should hold kept scores, but {said} something else"):
            ScoreFile(path, "w")
        assert path.read_text() == notes


def test_edits_of_one_case_by_one_method_are_made_together_and_each_once(made):
    wanted = [edit(seed, a=a) for a in (1, 2) for seed in (0, 1)]
    scores = scorer().edits([*wanted, edit(0, method="sdedit"), edit(0, "colour"), wanted[0]])
    assert [[(seed_of(one), one.knobs.get("a")) for one in group] for group in made] == [
        [(0, 1), (0, 2)],
        [(1, 1), (1, 2)],
        *[[(0, None)]] * 2,
    ]
    assert [each["background_psnr"] for each in scores] == [1, 2, 2, 3, 0, 0, 1]


def test_tuning_is_shared_changes_no_score_and_costs_are_of_whole_edits(small, monkeypatch, one_thread):
    monkeypatch.setattr(Laboratory, "open", lambda _: (small, Networks()))
    several = [{"self_steps": 0.0}, {"self_steps": 1.0, "cross_steps": 1.0}, {"inner_steps": 1}, {"self_steps": 0.5}]
    knobs = [
        vars(small.settings("baret", **{"steps": 3, "inner_steps": 2, "tolerance": (0.0, 0.0), **c})) for c in several
    ]
    source = LazyCase("posture/5", partial(drawn_case, "posture", 5, 32))
    # as JSON gives them back
    wanted = [Edit(source, "baret", json.loads(json.dumps(values))) for values in knobs]
    together = list(scoring._edits(Laboratory(), wanted))
    apart = [next(scoring._edits(Laboratory(), [one])) for one in wanted]
    assert [scores.get("gradient_passes") for scores in together] == [6, None, 3, None]
    for a, b in zip(together, apart):
        assert ("row_forwards" in a) == ("seconds" in a) == ("gradient_passes" in a)
        assert a.get("row_forwards", b["row_forwards"]) == b["row_forwards"]
        for cost in ("seconds", "row_forwards", "gradient_passes"):
            a.pop(cost, None), b.pop(cost)
    assert together == apart
    assert [scores["inner_iterations"] for scores in together] == [6, 6, 3, 6]


def test_evaluation_does_not_know_the_world():
    code = (
        "import sys; from minibaret.evaluation import cases, curves, report, rows, scoring\n"
        "sys.exit(any(name.startswith('minibaret.weights.miniature') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def threads(number: int) -> tuple[int, int, dict[str, str]]:
    return number, torch.get_num_threads(), {name: os.environ[name] for name in ENVIRONMENT}


def test_workers_have_one_thread_and_say_whose_answer_it_is():
    before = dict(os.environ)
    found = dict(in_workers(threads, [5, 3, 4], workers=2))
    assert found == {place: (n, 1, ENVIRONMENT) for place, n in enumerate((5, 3, 4))}
    assert dict(os.environ) == before


def pid_after(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


def test_answers_come_when_they_are_there_and_workers_end_when_nobody_waits():
    answers = in_workers(pid_after, [600, 0, 0], workers=2)
    found = [next(answers) for _ in range(2)]
    assert sorted(place for place, _ in found) == [1, 2]
    begin = time.monotonic()
    answers.close()
    assert time.monotonic() - begin < 60 and not multiprocessing.active_children()


def test_workers_end_with_a_parent_that_was_killed():
    code = (
        "import os, signal; from test_scoring import pid_after; from minibaret.workers import in_workers\n"
        "for _, pid in in_workers(pid_after, [0, 600], workers=1): print(pid, flush=True); os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", code], cwd=os.path.dirname(__file__), stdout=subprocess.PIPE)
    command, deadline = Path(f"/proc/{int(killed.stdout)}/cmdline"), time.monotonic() + 60
    while command.exists() and command.read_bytes():  # a process that ended has none
        assert time.monotonic() < deadline, "the worker outlived its parent"
        time.sleep(0.2)


# The command, on the shipped miniature with very few steps.

QUICK = ("--steps", "2", "--device", "cpu")


def evaluate(*arguments) -> int:
    return main(["evaluate", *map(str, arguments)])


def without_seconds(path) -> list[dict]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        line["scores"].pop("seconds", None)
    return lines


def test_two_runs_give_the_same_numbers_in_this_process_and_in_others(tmp_path, one_thread, capsys):
    asked = ("--methods", "encode-decode,baret+inner-steps=1", "--cases", "drawn:posture:1", "drawn:colour:1", *QUICK)
    for name, jobs in (("a", 1), ("b", 1), ("c", 2)):
        assert evaluate(*asked, "-o", tmp_path / f"{name}.jsonl", "--jobs", jobs) == 0
    a, b, c = (without_seconds(tmp_path / f"{name}.jsonl") for name in "abc")
    assert (
        a == b == sorted(c, key=a.index)
        and [line["of"]["case"] for line in a] == ["posture/2001000"] * 2 + ["colour/2001000"] * 2
    )
    assert len(capsys.readouterr().out.split("| all kinds: the edit |")) == 4
    pictures = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.png"))
    assert len(pictures) == 4 + 2 + 2
    shown = drawn_case("colour", 2001000, 128)
    assert Image.open(tmp_path / "a" / "input" / "colour" / "2001000.png").tobytes() == shown.image.tobytes()
    assert Image.open(tmp_path / "a" / "answer" / "colour" / "2001000.png").tobytes() == shown.answer.tobytes()
    edited = Image.open(next((tmp_path / "a").glob("encode-decode-*/colour/*.png")))
    assert psnr(edited, shown.answer) == a[2]["scores"]["answer_psnr"]


def test_a_killed_run_goes_on(tmp_path):
    output = tmp_path / "r.jsonl"
    asked = ["evaluate", "--methods", "encode-decode", "--cases", "drawn:posture:2", *QUICK, "-o", str(output)]
    code = (
        "import os, signal, sys; from minibaret import cli; from minibaret.evaluation import scoring\n"
        "add = scoring.ScoreFile.add\n"
        "def once(self, of, scores): add(self, of, scores); os.kill(os.getpid(), signal.SIGKILL)\n"
        f"scoring.ScoreFile.add = once; cli.main({asked!r})"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    first = output.read_text()
    assert len(first.splitlines()) == 1
    assert main(asked) == 0
    assert output.read_text().startswith(first) and len(output.read_text().splitlines()) == 2


def test_what_was_done_before_ctrl_c_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Scorer, "edits", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    output = tmp_path / "r.jsonl"
    asked = ("-o", output, "--cases", "drawn:posture:1", *QUICK)
    assert evaluate(*asked) == 130 and capsys.readouterr().err == "minibaret: stopped; nothing was written\n"
    output.touch()
    said = f"minibaret: stopped; {output} has what was done; run the same command again to go on\n"
    assert evaluate(*asked) == 130 and capsys.readouterr().err == said


def test_results_are_shown_and_what_is_damaged_is_named(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    output = tmp_path / "r.jsonl"
    asked = ("--methods", "encode-decode,sdedit", "--cases", "sweep:posture:2", *QUICK)
    assert evaluate(*asked, "--sweep", "encode-decode.ratio", "-o", output) == 0
    assert evaluate("--show", output, "--against", "encode-decode") == 0
    capsys.readouterr()
    table = json.loads((tmp_path / "r.json").read_text())
    rows = {row["label"]: row for row in table["rows"]}
    assert len(rows) == 7 + 1 and {row["cases"] for row in rows.values()} == {2}
    assert "answer_psnr" in rows["sdedit"]["over"] and not rows["encode-decode"]["over"]
    assert "| sdedit, over encode-decode |" in (tmp_path / "r.md").read_text()
    assert Image.open(tmp_path / "r-curves.png").width == 1200
    assert Image.open(tmp_path / "r.png").width == 8 + 6 * (128 + 8)  # two cases
    assert "r.md exists already; pass --force" in refused(capsys, "evaluate", "--show", output)
    (tmp_path / "other.md").write_text(output.read_text())  # which a table would overwrite
    said = refused(capsys, "evaluate", "--show", tmp_path / "other.md", "--force")
    assert said.endswith("the name of results must end in .jsonl, got other.md")
    best = ("evaluate", "--methods", "encode-decode", "--best-of", tmp_path / "r.json", "--cases", "drawn:posture:1")
    assert main([*map(str, best), *QUICK, "-o", str(tmp_path / "b.jsonl")]) == 0
    capsys.readouterr()
    mine = [row for row in rows.values() if row["method"] == "encode-decode"]
    wanted = max(mine, key=lambda row: row["figures"]["earned"]["value"])["knobs"]
    assert json.loads((tmp_path / "b.jsonl").read_text().splitlines()[-1])["of"]["knobs"] == wanted
    show = ("evaluate", "--show", output, "--force")
    said = refused(capsys, *show, "--against", "imagic")
    assert "a row to compare with must be one of encode-decode; encode-decode, ratio 0.4; " in said
    picture = next((tmp_path / "r").glob("sdedit-*/posture/1000000.png"))
    picture.unlink()
    assert main([*map(str, show)]) == 0  # with an empty place
    missing = f"needs {'/'.join(picture.parts[-3:])}"
    assert missing in capsys.readouterr().out and missing in (tmp_path / "r.md").read_text()
    lines = output.read_text().splitlines(keepends=True)
    output.write_text("".join([*lines[:2], lines[2][:50] + "\n", *lines[3:]]))
    assert f"{output} should hold kept scores, but line 3 holds something else" in refused(capsys, *show)
    go_on = refused(capsys, "evaluate", *asked, "-o", output)
    assert f"{output} should hold kept scores, but line 3 holds something else" in go_on


@pytest.mark.parametrize(
    "arguments, said",
    [
        (
            ["--cases", "drawn:dancing:4"],
            "drawn: and sweep: must be followed by posture|colour|ground",
        ),
        (["--cases", "drawn:posture"], "got posture"),
        (["--cases", "drawn:posture:0"], "got posture:0"),
        (["--cases", "photos:x"], "cases must be drawn:…, sweep:…, pie:FOLDER or folder:PATH, got photos:x"),
        (["--cases", "pie:nowhere"], "there is no file nowhere/mapping_file.json"),
        (["--cases", "folder:nowhere"], "a folder with one CSV file was wanted, but nowhere has 0"),
        (["--methods", "magic"], "a method must be one of baret"),
        (["--methods", "baret+colour=1"], "baret has no colour; what it has: steps, guidance"),
        (["--methods", "baret+steps=many"], "invalid int value: 'many'"),
        (["--sweep", "baret.rows"], "knobs to sweep must be among baret.guidance"),
        (["--sweep", "sine.guidance"], "got sine.guidance"),
        (["--jobs", "0"], "jobs must be at least 1, got 0"),
        (["--cases", "drawn:posture:1000000"], "there are 99,000 drawn scenes, too few for posture:1000000"),
        (["--sweep", "masactrl.first-step", "baret.self-steps"], "got masactrl.first-step, baret.self-steps"),
        (["--against", "sdedit"], "a row to compare with must be one of baret, got sdedit"),
        (["--best-of", "nowhere.json"], "there is no file nowhere.json"),
        (["--networks", "nowhere"], "networks must be a folder"),
        (["-o", "r.txt"], "the name of results must end in .jsonl, got r.txt"),
        (["--show", "nowhere.jsonl"], "there are no results at nowhere.jsonl"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(arguments, said, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert said in refused(capsys, "evaluate", *arguments)
    assert not list(tmp_path.iterdir())


def test_a_sheet_of_a_row_whose_pictures_are_known(tmp_path):
    from minibaret.evaluation import report

    scored = report.Scored(report.Row("sdedit", {}), {})
    for number, value in enumerate((3.0, 1.0, 2.0)):
        scored.scores[f"k/{number}"] = {"input_psnr": value}
        case = drawn_case("posture", number, 128)
        grey = Image.fromarray(np.full((128, 128, 3), 50 * number, np.uint8))
        of = {"case": f"k/{number}", "method": "sdedit", "knobs": {}}
        scoring.leave_pictures(tmp_path, of, case, grey)
    sheet = np.asarray(report.sheet([scored], tmp_path))
    middles = [8 + 64 + (128 + 8) * column for column in (1, 3, 5)]
    assert [sheet[8 + 64, middle].tolist() for middle in middles] == [[0] * 3, [100] * 3, [50] * 3]
    for scores in scored.scores.values():
        scores["input_psnr"] = "needs a judge"
    sheet = np.asarray(report.sheet([scored], tmp_path))  # in the order that they came in
    assert [sheet[8 + 64, middle].tolist() for middle in middles] == [[0] * 3, [50] * 3, [100] * 3]
    scoring.picture_path(tmp_path, {**of, "case": "k/1"}).unlink()
    sheet = np.asarray(report.sheet([scored], tmp_path))
    assert (sheet[8 : 8 + 128, middles[1]] == PAPER).all() and sheet[8 + 64, middles[2]].tolist() == [100] * 3


def test_pictures_of_a_folder_are_evaluated_by_methods_that_need_no_source_prompt(tmp_path, capsys):
    (tmp_path / "set").mkdir()
    drawn_case("posture", 3, 128).image.resize((96, 64)).save(tmp_path / "set" / "a.png")
    (tmp_path / "set" / "list.csv").write_text("image,prompt\na.png,a brown dog lying down on grass\n")
    asked = ("evaluate", "--cases", f"folder:{tmp_path / 'set'}", *QUICK, "-o", tmp_path / "r.jsonl", "--methods")
    assert main([*map(str, asked), "encode-decode,prompt-to-prompt"]) == 0
    said = capsys.readouterr().out
    assert "left out where there is no source prompt: prompt-to-prompt\n" in said and "set: the edit" in said
    scores = json.loads((tmp_path / "r.jsonl").read_text())["scores"]
    assert {"clip", "input_psnr", "structure"} <= scores.keys() and not {"success", "background_psnr"} & scores.keys()
    assert main(["evaluate", "--show", str(tmp_path / "r.jsonl")]) == 0
    assert Image.open(tmp_path / "r.png").width == 8 + 2 * (128 + 8)  # one case
    capsys.readouterr()
    assert "cases with source prompts were wanted for prompt-to-prompt" in refused(capsys, *asked, "prompt-to-prompt")
