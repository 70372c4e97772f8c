"""Tasks with a right answer, pictures that do not come straight from the generator, and how an edit is scored."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from PIL import Image

from minibaret.cli import options
from minibaret.errors import InputError
from minibaret.evaluation.cases import Case, unchanged
from minibaret.evaluation.intervals import Figure, difference, mean, means, paired, student, wilson
from minibaret.evaluation.metrics import success
from minibaret.evaluation.networks import Networks
from minibaret.evaluation.scoring import score
from minibaret.images import FITS, fit_image, psnr
from minibaret.methods import METHODS
from minibaret.pipeline import Counts
from minibaret.weights.miniature.cases import SEEDS, drawn_case
from minibaret.weights.miniature.training.data import attributes
from minibaret.weights.miniature.world.drawing import render
from minibaret.weights.miniature.world.scene import HELD_OUT_SEEDS, MEASURED_SEEDS, SWEEP_SEEDS, TRAINING_SEEDS, Scene
from minibaret.weights.miniature.world.tasks import KINDS, task_of

PLACES = ("animal", "posture", "colour", "ground", "addition")  # of `attributes`


@pytest.mark.parametrize("kind", KINDS)
def test_a_task_changes_exactly_one_attribute(kind):
    for seed in range(200):
        task = task_of(kind, seed)
        pairs = zip(PLACES, attributes(task.before), attributes(task.after))
        assert [name for name, before, after in pairs if before != after] == [kind]
        assert task.before == Scene.random(seed) and task.after.seed == seed
        assert task.before in task.candidates and task.candidates.count(task.after) == 1
        assert task_of(kind, seed) == task


@pytest.mark.parametrize("kind", KINDS)
def test_every_value_of_an_attribute_is_asked_for(kind):
    place = PLACES.index(kind)
    asked = {attributes(task_of(kind, seed).after)[place] for seed in range(200)}
    assert len(asked) == len(task_of(kind, 0).candidates)


def test_the_command_line_knows_every_choice():
    assert options.KINDS == KINDS and options.FITS == FITS
    with pytest.raises(InputError, match=f"must be one of {', '.join(options.PRESETS)}, got 'slow'"):
        METHODS["baret"].preset("slow")


def test_measured_scenes_are_held_out_and_not_the_ones_that_settings_were_chosen_by():
    assert not {*MEASURED_SEEDS} & {*TRAINING_SEEDS, *SWEEP_SEEDS, *HELD_OUT_SEEDS[:40]}
    assert {*MEASURED_SEEDS} < {*HELD_OUT_SEEDS}
    assert SEEDS == {"held-out": MEASURED_SEEDS, "sweep": SWEEP_SEEDS}


def test_a_drawn_case_is_the_scene_and_its_right_answer():
    for kind in KINDS:
        task, case = task_of(kind, 9), drawn_case(kind, 9, 128)
        assert case.image.tobytes() == render(task.before).tobytes()
        assert case.answer.tobytes() == render(task.after).tobytes()
        assert (case.source_prompt, case.prompt) == (task.before.caption(), task.after.caption())
        assert len(case.answers) == len(task.candidates)  # no two have the same caption
        case = case.fitted((128, 128))
        assert {picture.size for picture in (case.image, *case.answers.values())} == {(128, 128)}
        for prompt, picture in case.answers.items():
            assert success(case, picture, Networks()) == (prompt == case.prompt)
        where = unchanged(case.image, case.answer)
        assert np.array_equal(case.changing, ~where) and case.kind == kind
        assert 0.05 < where.mean() < 1
        assert psnr(case.image, case.answer, where) > 100 > psnr(case.image, case.answer)


class Stub:
    """An editor that gives back prepared pictures, and whose VAE makes everything brighter by two."""

    memory_limit = None

    def __init__(self, edited=None, reconstruction=None):
        self.edited, self.reconstruction, self.asked, self.sd = edited, reconstruction, [], self

    def edit(self, image, prompt, method, **options):
        self.asked.append((image, prompt, method, options))
        found = fit_image(image, (128, 128)) if image.width > 3 else image
        images = {"edit": self.edited or found}
        if self.reconstruction:
            images["reconstruction"] = self.reconstruction
        return Result(found, images)

    def encode(self, picture):
        return picture

    def decode(self, picture):
        return Image.fromarray((np.asarray(picture).astype(int) + 2).clip(0, 255).astype(np.uint8))


class Result:
    tuned, seconds, counts = (), {"encode": 1.0, "edit": 2.5}, Counts(10, 3)

    def __init__(self, given, images):
        self.input, self.images, self.image = given, images, images["edit"]

    @property
    def reconstruction_psnr(self):
        return psnr(self.images["reconstruction"], self.input) if "reconstruction" in self.images else None


@pytest.mark.parametrize("kind", KINDS)
def test_a_right_edit_succeeds_and_one_that_does_nothing_fails(kind):
    case = drawn_case(kind, 4, 128)
    lazy, _ = score(Stub(), case)
    assert lazy["success"] is False and lazy["background_psnr"] > 100 > lazy["answer_psnr"]
    assert lazy["vae_psnr"] == pytest.approx(20 * math.log10(255 / 2), abs=0.2)
    assert lazy["seconds"] == 3.5 and (lazy["row_forwards"], lazy["gradient_passes"]) == (10, 3)
    assert "reconstruction_psnr" not in lazy and "inner_iterations" not in lazy
    right, _ = score(Stub(case.answer), case)
    assert right["success"] is True and right["background_psnr"] > 100


def test_a_case_is_edited_as_it_was_asked_for():
    editor, case = Stub(), drawn_case("posture", 4, 128)
    score(editor, case, "baret", {"guidance": 3.0})
    image, prompt, method, options = editor.asked[0]
    assert image is case.image and (prompt, method) == (case.prompt, "baret")
    assert options["source_prompt"] == case.source_prompt and options["guidance"] == 3.0


@pytest.mark.parametrize("name", METHODS)
def test_every_method_can_be_scored(name, small):
    tuning = [field.name for field in dataclasses.fields(METHODS[name].knobs) if field.name.endswith("_steps")]
    knobs = {"steps": 2, **dict.fromkeys(tuning, 1)}
    scores, _ = score(small, drawn_case("colour", 3, 32), name, knobs)
    assert {"success", "background_psnr", "answer_psnr", "vae_psnr", "seconds"} <= scores.keys()
    assert scores["row_forwards"] > 0


@pytest.mark.parametrize("right, cases, low, high", [(20, 40, 0.352, 0.648), (24, 24, 0.862, 1.0), (0, 10, 0.0, 0.278)])
def test_the_interval_of_a_share_is_wilsons(right, cases, low, high):
    found = mean([True] * right + [False] * (cases - right))
    assert found == wilson(right, cases) and found.value == right / cases and found.cases == cases
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-3)


def test_the_interval_of_a_mean_is_nearly_the_normal_one():
    values = np.random.default_rng(1).normal(20.0, 3.0, 400)
    found, half = mean(values.tolist()), 1.96 * values.std() / 400**0.5
    assert found.value == pytest.approx(values.mean()) and found == mean(values.tolist())
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.04)


def test_the_interval_of_a_mean_holds_the_true_one_as_often_as_it_says():
    numbers = np.random.default_rng(2)
    for cases in (2, 3, 6, 40):
        found = [mean(numbers.normal(20.0, 3.0, cases)) for _ in range(1000)]
        assert 0.93 < np.mean([one.low <= 20 <= one.high for one in found]) < 0.97, cases
    assert (student(1), student(9)) == pytest.approx((12.7062, 2.26216), rel=1e-5)
    assert mean([3.0]) == Figure(3.0, 3.0, 3.0, 1)


def test_the_interval_of_a_paired_difference_holds_the_true_one_as_often_as_it_says():
    numbers = np.random.default_rng(2)
    for cases, (ours, theirs) in itertools.product((3, 6, 40), ((0.5, 0.5), (0.8, 0.4), (0.5, 0.0))):
        drawn = (numbers.random((1000, cases, 2)) < (ours, theirs)).tolist()
        held = [one.low <= ours - theirs <= one.high for one in map(paired, drawn)]
        assert np.mean(held) > 0.93, (cases, ours, theirs)
    assert paired([(True, True)] * 3).high > 0.5


def test_means_are_over_the_cases_that_have_a_score():
    found = means(
        [{"success": True, "seconds": 1.0, "loss": 3, "clip": "needs clip"}, {"success": False, "seconds": 2.0}]
    )
    assert {name: (figure.value, figure.cases) for name, figure in found.items()} == {
        "success": (0.5, 2), "seconds": (1.5, 2), "loss": (3, 1),
    }  # fmt: skip


def test_a_difference_is_taken_case_by_case():
    ours = [
        {"success": True, "seconds": 1.0, "clip": "needs clip"},
        {"success": False, "seconds": 5.0, "clip": 1.0, "loss": 2},
    ]
    theirs = [{"success": False, "seconds": 0.5}, {"success": False, "seconds": 3.5}]
    won = paired([(True, False), (False, False)])
    assert difference(ours, theirs) == {"success": won, "seconds": mean([0.5, 1.5])}
    assert difference(ours, theirs)["seconds"].value == 1.0


def test_a_figure_is_said_with_its_interval():
    assert str(Figure(0.25, 0.125, 0.5, 8).times(100)) == "25 (12.5 to 50)" and str(Figure(1.5, 1.5, 1.5, 1)) == "1.5"


def test_a_reconstruction_is_measured_against_the_input_and_the_vaes():
    def grey(value: int) -> Image.Image:
        return Image.new("RGB", (128, 128), (value,) * 3)

    scores, _ = score(Stub(reconstruction=grey(103)), Case(grey(100), "a dog"))
    apart = {name: 255 / 10 ** (scores[name] / 20) for name in scores if name.endswith(("vae_psnr", "tion_psnr"))}
    assert apart == pytest.approx({"vae_psnr": 2, "reconstruction_psnr": 3, "reconstruction_vae_psnr": 1})
