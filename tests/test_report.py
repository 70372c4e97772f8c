"""Tables, sweeps and curves, of scores known beforehand."""

import json

import pytest

from minibaret.charts import picture
from minibaret.cli.options import method_with_knobs, names_in
from minibaret.errors import InputError
from minibaret.evaluation import curves, report, rows
from minibaret.evaluation.report import Scored
from minibaret.evaluation.rows import RANGES, Row, best, labels, sweep
from minibaret.methods import METHODS


def row(method: str, **changes) -> Row:
    return Row(method, vars(METHODS[method].knobs())).changed(**changes)


BARET, SDEDIT = row("baret", steps=4), row("sdedit", steps=4)


def test_a_sweep_is_along_one_knob():
    found = sweep([BARET, SDEDIT])
    assert len(found) == len(RANGES["self_steps"]) + len(RANGES["strength"])
    assert [one.knobs["self_steps"] for one in found[:7]] == [*RANGES["self_steps"]]
    assert all({**one.knobs, "self_steps": 0.3} == BARET.knobs for one in found[:7])
    named = sweep([BARET, SDEDIT], ["baret.cross-steps", "sdedit.guidance"])
    assert [one.knobs["cross_steps"] for one in named[:6]] == [*RANGES["cross_steps"]] and len(named) == 6 + 4


def test_every_methods_own_knob_can_be_swept():
    for method in METHODS:
        assert len(sweep([row(method)])) >= 5
    assert {one.knobs["first_step"] for one in sweep([row("direct", editor="masactrl")])} == {*RANGES["first_step"]}


def test_a_method_with_knobs_is_read():
    assert method_with_knobs("sdedit") == ("sdedit", {})
    assert method_with_knobs("baret+rigid+transition=0.6:0.2+steps=9") == (
        "baret",
        {"rigid": True, "transition": (0.6, 0.2), "steps": 9},
    )
    assert [*map(method_with_knobs, names_in("sdedit, direct+blend=dog hat"))] == [
        ("sdedit", {}),
        ("direct", {"blend": "dog hat"}),
    ]
    assert method_with_knobs("baret+no-rigid") == ("baret", {"rigid": False})
    for text in ("direct+editor=magic", "baret+steps"):
        with pytest.raises(InputError, match=r"a method with knobs must be like direct\+editor=masactrl"):
            method_with_knobs(text)
    for text in ("sdedit+rigid", "sdedit+step=3", "sdedit+"):
        with pytest.raises(InputError, match=r"sdedit has no .*; what it has: steps, guidance"):
            method_with_knobs(text)


def test_a_label_says_what_differs_and_what_is_shared_is_said_once():
    texts, shared = labels([BARET, SDEDIT, SDEDIT.changed(strength=0.5), BARET.changed(transition=(0.6, 0.1))])
    assert texts == ["baret", "sdedit", "sdedit, strength 0.5", "baret, transition 0.6:0.1"] and shared == "steps 4"
    assert labels([SDEDIT]) == (["sdedit, steps 4"], "")


SCORES = {  # by case: success, background, and what is missing
    "baret": {"posture/1": (True, 30.0), "posture/2": (False, 20.0), "colour/1": (True, 25.0)},
    "sdedit": {"posture/1": (False, 28.0), "posture/2": (False, 19.0)},
}
SCORED = [
    Scored(one, {
        case: {"success": right, "background_psnr": value, "clip": "needs clip", "loss": 2e-5, "vae_psnr": 33.0}
        for case, (right, value) in SCORES[one.method].items()
    })
    for one in (BARET, SDEDIT)
]  # fmt: skip


def test_a_table_is_of_each_kind_and_of_all():
    lines = report.table(SCORED, "sdedit")
    assert [(line.kind, line.label, line.cases) for line in lines] == [
        ("all kinds", "baret", 3), ("all kinds", "sdedit", 2), ("posture", "baret", 2), ("posture", "sdedit", 2),
        ("colour", "baret", 1),
    ]  # fmt: skip
    first = lines[0]
    assert first.figures["success"].value == pytest.approx(200 / 3) and first.figures["background_psnr"].value == 25
    assert first.figures["loss"].value == pytest.approx(2) and first.absent == {"clip": "needs clip"}
    assert "vae_psnr" not in first.figures and not lines[1].over and not lines[4].over
    over = first.over  # on the two cases that both have
    assert over["background_psnr"].value == 1.5 and over["background_psnr"].cases == 2
    assert over["success"].value == 50
    assert report.table([*SCORED, Scored(BARET.changed(rigid=True), SCORED[0].scores)], "baret")[1].over  # a label
    several = [Scored(BARET.changed(rigid=True, self_steps=value), SCORED[0].scores) for value in (0.2, 0.4)]
    with pytest.raises(InputError, match=r"one of baret, self-steps 0.2; .* 0.4, got baret, the method of several"):
        report.table(several, "baret")
    with pytest.raises(InputError, match="a row to compare with must be one of baret; sdedit, got sine"):
        report.table(SCORED, "sine")


def test_a_table_as_markdown_and_as_json():
    lines = report.table(SCORED, "sdedit", lambda one: 12.5 if one.row.method == "baret" else "needs torchmetrics")
    text = report.as_text(lines, "sdedit").splitlines()
    assert text[0] == "Means over cases, 95 % intervals in brackets. All: steps 4."
    assert text[2] == "| all kinds: the edit | cases | success, % | CLIP | FID |" and text[3] == "|---|---|---|---|---|"
    assert text[4] == "| baret | 3 | 66.7 (20.8 to 93.9) | needs clip | 12.5 |"
    assert text[5].endswith("| needs clip | needs torchmetrics |")
    assert text[6] == "| baret, over sdedit | 2 | 50 (-56.3 to 100) |  |  |"
    assert "| all kinds: what is kept of the input | cases | background, dB |" in text
    kinds = text.index("| by kind: background, dB | posture | colour |")
    assert text[kinds + 1] == "|---|---|---|" and text[kinds + 2] == "| baret | 25 (-38.5 to 88.5) | 25 |"
    assert text[kinds + 3] == "| sdedit | 23.5 (-33.7 to 80.7) |  |"
    alone = report.as_text(report.table(SCORED[:1]))  # what the label says is not said above it once more
    assert alone.startswith("Means over cases, 95 % intervals in brackets.\n") and "| baret, steps 4 | 3 |" in alone
    values = report.as_json(lines, "sdedit")
    plain = json.loads(json.dumps(values, allow_nan=False))["rows"][0]
    assert plain["method"] == "baret" and plain["knobs"]["transition"] == [0.8, 0.1] and plain["kind"] == "all kinds"
    assert plain["figures"]["background_psnr"]["value"] == 25 and plain["over"]["background_psnr"]["cases"] == 2


def test_a_figure_of_fewer_cases_says_so_and_json_has_no_nan():
    scores = {"posture/1": {"seconds": 2.0, "loss": float("nan")}, "posture/2": {"clip": 70.0, "loss": 1e-5}}
    lines = report.table([Scored(BARET, scores)])
    text = report.as_text(lines)
    assert "| baret, steps 4 | 2 | 70, 1 case |" in text and "| baret, steps 4 | 2 | 2, 1 case | nan" in text
    assert "own CLIP pair" in text and "own CLIP pair" not in report.as_text(report.table([SCORED[1]]))
    (plain,) = json.loads(json.dumps(report.as_json(lines), allow_nan=False))["rows"]
    assert plain["figures"]["loss"] == {"value": None, "low": None, "high": None, "cases": 2}


def test_results_of_two_models_or_of_something_else_are_refused(tmp_path):
    path = tmp_path / "r.jsonl"
    of = {"weights": "w", "case": "posture/1", "method": "sdedit", "knobs": SDEDIT.knobs}

    def write(*entries):
        path.write_text("".join(json.dumps({"of": entry, "scores": {"input_psnr": 1.0}}) + "\n" for entry in entries))

    write(of, {**of, "case": "posture/2"}, {**of, "method": "baret", "knobs": BARET.knobs})
    found = report.read(path)
    assert [one.row for one in found] == [BARET, SDEDIT] and [*found[1].scores] == ["posture/1", "posture/2"]
    write(of, {**of, "weights": "others"})
    with pytest.raises(InputError, match="must hold scores of one model's weights, it holds those of 2"):
        report.read(path)
    for other, missing in ({"weights": "w", "networks, scene": 3}, "case"), ({**of, "method": ["sdedit"]}, "method"):
        write(of, other)
        with pytest.raises(InputError, match=f"must be what `minibaret evaluate` wrote, but line 2 has no {missing}"):
            report.read(path)
    write()
    with pytest.raises(InputError, match="holds no scores"):
        report.read(path)


def test_the_best_row_of_each_method_is_taken(tmp_path):
    path = tmp_path / "r.json"
    several = [SDEDIT, SDEDIT.changed(strength=0.5), BARET, SDEDIT.changed(strength=0.3)]
    scored = [Scored(one, {"posture/1": {rows.JUDGE: value}}) for one, value in zip(several, (9.0, 12.0, 7.0, 11.0))]
    path.write_text(json.dumps(report.as_json(report.table(scored))))
    assert best(path, ["sdedit", "baret", "sdedit"]) == [several[1], BARET]
    with pytest.raises(InputError, match=r"r.json must be what --show wrote of a --sweep.*missing: 'sine'"):
        best(path, ["sine"])
    path.write_text("[]")
    with pytest.raises(InputError, match="must be what --show wrote"):
        best(path, ["sdedit"])


def test_rows_that_differ_in_one_knob_are_a_curve():
    pytest.importorskip("matplotlib")
    along, across = (sweep([BARET], [f"baret.{knob}"]) for knob in ("self-steps", "cross-steps"))
    several = [*along, *(one for one in across if one not in along), *sweep([SDEDIT])[:2]]
    scored = [
        Scored(one, {f"posture/{n}": {"background_psnr": 20.0 + at + n, "success": n < at} for n in range(4)})
        for at, one in enumerate(several)
    ]
    found = curves.curves(report.table(scored))
    assert {name: [text for text, _ in curve] for name, curve in found.items()} == {
        "baret, self-steps": ["0.0", "0.2", "0.3", "0.4", "0.6", "0.8", "1.0"],  # along its own knob
        "baret, cross-steps": ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"],
    }  # two points of sdedit are none
    drawn = curves.charts(found)
    (axes,) = drawn.axes  # of the four only this has figures
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("background, dB", "success, %")
    assert [*axes.lines[0].get_xdata()] == [21.5 + at for at in range(7)]
    assert [*axes.lines[0].get_ydata()] == [0, 25, 50, 75, 100, 100, 100]
    assert axes.get_title() == "posture, 4 cases"
    assert [text.get_text() for text in drawn.legends[0].get_texts()] == [*found]
    assert [text.get_text() for text in axes.texts].count("0.3") == 1 and axes.texts[0].get_color() == "C0"
    assert picture(drawn).width == 1200


def test_points_that_coincide_have_one_text():
    pytest.importorskip("matplotlib")
    scored = [
        Scored(one, {"posture/1": {"background_psnr": 20.0 + place, "success": True}})
        for guidance in (3.0, 5.0)
        for place, one in enumerate(sweep([BARET.changed(guidance=guidance)], ["baret.self-steps"]))
    ]
    found = curves.curves(report.table(scored))
    assert len(found) == 2 and len(curves.charts(found).axes[0].texts) == 7


def test_convergence_is_a_curve_along_the_inner_steps():
    pytest.importorskip("matplotlib")
    scored = [
        Scored(one, {"posture/1": {"gradient_passes": 4 * n, "reconstruction_psnr": 20.0 + n, "loss": 1e-3 / n}})
        for n, one in enumerate(sweep([BARET], ["baret.inner_steps"]), 1)
    ]
    drawn = curves.charts(curves.curves(report.table(scored)))
    psnrs, losses = drawn.axes
    assert [*psnrs.lines[0].get_xdata()] == [4, 8, 12, 16, 20, 24] and [*psnrs.lines[0].get_ydata()][:2] == [21, 22]
    assert losses.get_yscale() == "log" and losses.get_ylim()[0] > 10
    assert losses.lines[0].get_ydata()[1] == pytest.approx(50)
