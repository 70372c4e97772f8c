"""Tasks with a right answer, pictures that do not come straight from the generator, and how an edit is scored."""

import numpy as np
import pytest
from PIL import Image

from minibaret import cli
from minibaret.evaluation import nearest, score, unchanged
from minibaret.images import fit_image, psnr
from minibaret.miniature.training.data import attributes
from minibaret.miniature.world import distortions
from minibaret.miniature.world.distortions import DISTORTIONS, distort
from minibaret.miniature.world.drawing import render
from minibaret.miniature.world.scene import HELD_OUT_SEEDS, MEASURED_SEEDS, SWEEP_SEEDS, TRAINING_SEEDS, Scene
from minibaret.miniature.world.tasks import KIND_SETTINGS, KINDS, task_of
from minibaret.settings import Settings

SCENE = Scene(3, "cat", "sitting", "orange", "snow", "a red hat")
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


def test_every_kind_has_its_settings_and_the_command_line_knows_it():
    assert set(KIND_SETTINGS) == set(KINDS) and cli.KINDS == KINDS
    assert tuple(DISTORTIONS) == cli.DISTORTIONS
    for changes in KIND_SETTINGS.values():
        Settings(**changes)


def test_measured_scenes_are_held_out_and_not_the_ones_that_settings_were_chosen_by():
    assert not {*MEASURED_SEEDS} & {*TRAINING_SEEDS, *SWEEP_SEEDS, *HELD_OUT_SEEDS[:40]}
    assert {*MEASURED_SEEDS} < {*HELD_OUT_SEEDS}


def test_the_shipped_weights_edit(editor):
    """The first posture edit of the sweep's scenes at the shipped defaults, some dB below what it gives."""
    scores, _ = score(editor, editor.settings(), task_of("posture", SWEEP_SEEDS[0]))
    assert scores["success"] == 1
    assert scores["background_psnr"] > 22 and scores["answer_psnr"] > 17 and scores["reconstruction_psnr"] > 31


@pytest.mark.parametrize("name", DISTORTIONS)
def test_a_distortion_is_the_same_each_time_and_can_be_fitted_back(name):
    picture = render(SCENE)
    before = picture.tobytes()
    once, again = distort(picture, name, 5), distort(picture, name, 5)
    assert once.tobytes() == again.tobytes() and once.mode == "RGB" and picture.tobytes() == before
    back = fit_image(once, picture.size, "stretch")
    assert back.size == picture.size and 15 < psnr(back, picture) < 60


def test_what_each_distortion_does():
    picture = render(SCENE)
    values = np.asarray(picture).astype(float)
    assert distort(picture, None, 0) is picture
    assert distort(picture, "400x300", 0).size == (400, 300) and distort(picture, "1024x768", 0).size == (1024, 768)
    assert np.array_equal(np.asarray(distort(picture, "shift", 0))[3:, 3:], np.asarray(picture)[:-3, :-3])
    grey = Image.new("RGB", (128, 128), (128, 128, 128))
    noise = np.asarray(distort(grey, "noise", 1)).astype(float) - 128
    assert noise.std() == pytest.approx(distortions.NOISE, rel=0.02) and abs(noise.mean()) < 0.1
    assert distort(grey, "noise", 1).tobytes() != distort(grey, "noise", 2).tobytes()
    tinted = np.asarray(distort(picture, "tint", 0)).astype(float)
    expected = values[64, 64] * distortions.TINT_GAIN + distortions.TINT_OFFSET
    assert np.abs(tinted[64, 64] - expected).max() < 1.5
    corner = values[0, 0] * distortions.TINT_GAIN + distortions.TINT_OFFSET
    assert np.abs(tinted[0, 0] - corner * (1 - distortions.VIGNETTE)).max() < 1.5


@pytest.mark.parametrize("name", [None, *DISTORTIONS])
def test_the_right_answer_is_nearest_to_itself_and_the_background_is_where_it_equals_the_input(name):
    for kind in KINDS:
        task = task_of(kind, 9)
        answers = {s: fit_image(distort(render(s), name, 9), (128, 128), "stretch") for s in task.candidates}
        for scene, picture in answers.items():
            assert nearest(picture, answers) == scene
        where = unchanged(answers[task.before], answers[task.after])
        assert 0.05 < where.mean() < 1
        assert psnr(answers[task.before], answers[task.after], where) > 100
        assert psnr(answers[task.before], answers[task.after]) < 60


class Stub:
    """An editor that gives back a prepared picture, and whose VAE loses nothing."""

    def __init__(self, answer=None):
        self.answer, self.config = answer, type("Config", (), {"image_size": 128})

    def edit(self, image, text, settings, *, fit, pictures, inversion):
        self.text, self.given = text, image
        found = fit_image(image, (128, 128), fit)
        record = type("Record", (), {"iterations": [2, 3]})
        made = {"image": self.answer or found, "input": found, "reconstruction": found, "transition": None}
        return type("Result", (), {**made, "record": record})

    def encode(self, picture):
        return picture

    def decode(self, picture):
        return picture


@pytest.mark.parametrize("kind", KINDS)
def test_a_right_edit_succeeds_and_one_that_does_nothing_fails(kind):
    task = task_of(kind, 4)
    lazy, right = Stub(), Stub(render(task.after))
    scores, pictures = score(lazy, Settings(), task)
    assert scores["success"] == 0 and scores["background_psnr"] > 100 > scores["answer_psnr"]
    assert scores["inner_iterations"] == 5
    assert lazy.text == task.after.caption() and lazy.given.tobytes() == render(task.before).tobytes()
    assert pictures[0].tobytes() == lazy.given.tobytes() and pictures[4].tobytes() == render(task.after).tobytes()
    scores, _ = score(right, Settings(), task)
    assert scores["success"] == 1 and scores["background_psnr"] > 100


def test_the_reconstruction_is_compared_with_the_vaes_and_that_one_with_the_input():
    def brighter(picture: Image.Image, by: int) -> Image.Image:
        return Image.fromarray((np.asarray(picture).astype(int) + by).clip(0, 255).astype(np.uint8))

    class Lossy(Stub):
        def edit(self, *arguments, **options):
            result = super().edit(*arguments, **options)
            result.reconstruction = brighter(result.input, -4)
            return result

        def decode(self, picture):
            return brighter(picture, 2)

    task = task_of("posture", 4)
    given = render(task.before)
    scores, _ = score(Lossy(), Settings(), task)
    assert scores["vae_psnr"] == pytest.approx(psnr(brighter(given, 2), given))
    assert scores["reconstruction_psnr"] == pytest.approx(psnr(brighter(given, -4), brighter(given, 2)))
    assert abs(scores["vae_psnr"] - scores["reconstruction_psnr"]) > 5


@pytest.mark.parametrize("name", DISTORTIONS)
def test_a_distorted_picture_is_compared_with_answers_distorted_alike(name):
    task = task_of("posture", 4)
    answer = fit_image(distort(render(task.after), name, 4), (128, 128), "stretch")
    editor = Stub(answer)
    scores, pictures = score(editor, Settings(), task, name)
    assert editor.given.tobytes() == distort(render(task.before), name, 4).tobytes()
    assert scores["success"] == 1 and scores["answer_psnr"] > 100 and scores["background_psnr"] > 100
    assert pictures[4].tobytes() == answer.tobytes()
