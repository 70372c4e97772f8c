"""The drawn world: captions, seeds, and the promise that an edit leaves everything else alone."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from minibaret.weights.miniature.world.animals import SIZES, body, hat
from minibaret.weights.miniature.world.drawing import BALL_RADIUS, render
from minibaret.weights.miniature.world.scene import (
    ADDITIONS,
    ANIMALS,
    COLOURS,
    GROUNDS,
    HELD_OUT_SEEDS,
    POSTURES,
    SWEEP_SEEDS,
    TRAINING_SEEDS,
    Scene,
)
from minibaret.weights.miniature.world.tasks import KINDS, task_of

SIZE = 128
SEEDS = range(5)
GENEROUS, STRICT = ImageFilter.MaxFilter(3), ImageFilter.MinFilter(3)  # a third of a pixel more, or less


def outlines(scene: Scene, layers) -> list[np.ndarray]:
    """Every outer polygon of the layers, as points (n, 2) in fractions of the frame."""
    layout = scene.layout()
    unit = SIZES[scene.animal] * layout.scale
    stretch, feet = np.array([layout.facing * unit, -unit]), np.array([layout.x, layout.y])
    polygons = [polygon for layer in layers for part in layer.parts for polygon in part.grown]
    polygons += [polygon for layer in layers for part in layer.details for polygon in part.polygons]
    return [polygon * stretch + feet for polygon in polygons]


def cover(scene: Scene, layers, edge=GENEROUS) -> np.ndarray:
    """How much of each pixel the layers cover, 0 to 255, drawn without `drawing`, its edge moved as said."""
    mask = Image.new("L", (3 * SIZE, 3 * SIZE))
    for polygon in outlines(scene, layers):
        ImageDraw.Draw(mask).polygon((polygon * 3 * SIZE).ravel().tolist(), fill=255)
    return np.asarray(mask.filter(edge).reduce(3))


def animal_cover(scene: Scene, edge=GENEROUS) -> np.ndarray:
    return cover(scene, body(scene.animal, scene.posture), edge)


def box(x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    """The pixels touched by a box given in fractions of the frame."""
    mask = np.zeros((SIZE, SIZE), dtype=bool)
    left, top = (max(int(SIZE * low), 0) for low in (x0, y0))
    right, bottom = (int(SIZE * high) + 1 for high in (x1, y1))
    mask[top:bottom, left:right] = True
    return mask


def shadow_box(scene: Scene) -> np.ndarray:
    layout = scene.layout()
    return box(layout.x - 0.42, layout.y - 0.04, layout.x + 0.42, layout.y + 0.04)


def changed(before: Scene, after: Scene) -> np.ndarray:
    return (np.asarray(render(before, SIZE)) != np.asarray(render(after, SIZE))).any(axis=2)


def every_body(seed: int, **attributes) -> list[Scene]:
    attributes = {"colour": "brown", "ground": "grass"} | attributes
    return [Scene(seed, animal, posture, **attributes) for animal in ANIMALS for posture in POSTURES[animal]]


@pytest.mark.parametrize("size", [64, 128, 200])
def test_the_same_scene_is_the_same_picture(size):
    first, second = render(Scene.random(3), size), render(Scene.random(3), size)
    assert first.mode == "RGB" and first.size == (size, size)
    assert first.tobytes() == second.tobytes()
    assert first.tobytes() != render(Scene.random(4), size).tobytes()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_colour_edit_changes_the_animal_and_nothing_else(seed):
    for scene in every_body(seed):
        difference = changed(scene, replace(scene, colour="white"))
        assert not (difference & (animal_cover(scene) == 0)).any()
        assert difference.sum() > 0.5 * (animal_cover(scene) == 255).sum()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_posture_edit_changes_the_two_bodies_and_their_shadow_and_nothing_else(seed):
    for scene in every_body(seed, addition="a blue ball"):
        before = replace(scene, posture="standing")
        allowed = (animal_cover(before) > 0) | (animal_cover(scene) > 0) | shadow_box(scene)
        difference = changed(before, scene)
        assert not (difference & ~allowed).any()
        assert difference.any() == (scene.posture != "standing")


@pytest.mark.parametrize("seed", SEEDS)
def test_a_ground_edit_keeps_the_sky_and_the_animal(seed):
    for scene in every_body(seed, addition="a red hat"):
        difference = changed(scene, replace(scene, ground="snow"))
        sky = box(0, 0, 1, scene.layout().horizon - 2 / SIZE)
        assert not (difference & (sky | (animal_cover(scene, STRICT) == 255))).any()
        assert difference.sum() > 0.15 * SIZE**2


@pytest.mark.parametrize("seed", SEEDS)
def test_an_addition_changes_its_own_place_and_nothing_else(seed):
    for scene in every_body(seed):
        with_hat = changed(scene, replace(scene, addition="a red hat"))
        assert with_hat.any()
        assert not (with_hat & (cover(scene, hat(scene.animal, scene.posture)) == 0)).any()

        x, y, r = scene.layout().ball_x, scene.layout().ball_y, BALL_RADIUS
        with_ball = changed(scene, replace(scene, addition="a blue ball"))
        assert with_ball.sum() > 3 * (r * SIZE) ** 2
        assert not (with_ball & ~box(x - 1.4 * r, y - 2.1 * r, x + 1.4 * r, y + 0.05)).any()


def named_by(kind: str, scene: Scene) -> np.ndarray:
    """Where the attribute `kind` of a scene may show: bool (SIZE, SIZE)."""
    layout, layers = scene.layout(), body(scene.animal, scene.posture)
    hats = hat(scene.animal, scene.posture) if scene.addition == "a red hat" else ()
    if kind == "colour":
        return animal_cover(scene) > 0
    if kind == "ground":
        return ~(box(0, 0, 1, layout.horizon - 2 / SIZE) | (cover(scene, layers + hats, STRICT) == 255))
    if kind == "addition":
        x, y, r = layout.ball_x, layout.ball_y, BALL_RADIUS
        ball = box(x - 1.4 * r, y - 2.1 * r, x + 1.4 * r, y + 0.05) & (scene.addition == "a blue ball")
        return (cover(scene, hats) > 0) | ball
    return (cover(scene, layers + hats) > 0) | shadow_box(scene)


@pytest.mark.parametrize("kind", KINDS)
def test_a_task_changes_what_it_names_and_nothing_else(kind):
    for seed in range(60):
        task = task_of(kind, seed)
        difference = changed(task.before, task.after)
        assert difference.sum() > 20
        assert not (difference & ~(named_by(kind, task.before) | named_by(kind, task.after))).any(), task


def test_the_animal_and_its_hat_lie_inside_the_frame():
    for seed in range(300):
        for scene in every_body(seed):
            layers = body(scene.animal, scene.posture) + hat(scene.animal, scene.posture)
            points = np.concatenate(outlines(scene, layers))
            assert points.min() > 0 and points.max() < 1, scene


def test_the_animal_is_large():
    for scene in every_body(0):
        extent = np.ptp(np.concatenate(outlines(scene, body(scene.animal, scene.posture))), axis=0)
        assert extent.max() / scene.layout().scale > 0.33, scene


def test_what_no_caption_names_is_of_the_seed_alone():
    for seed in range(20):
        layouts = {scene.layout() for scene in every_body(seed)} | {Scene.random(seed).layout()}
        assert len(layouts) == 1


def test_stones_lie_on_the_ground_and_shades_are_at_either_end():
    layouts = [Scene.random(seed).layout() for seed in range(300)]
    for layout in layouts:
        assert all(stone.y - stone.radius > layout.horizon for stone in layout.stones)
        assert min(stone.radius for stone in layout.stones[:2]) >= 0.05
    assert 5 < np.mean([len(layout.stones) for layout in layouts]) < 7
    for name in ("stone_shade", "hill_tint"):
        shades = np.array([getattr(layout, name) for layout in layouts])
        assert ((shades < 0.35) | (shades > 0.65)).all() and shades.min() >= 0 and shades.max() <= 1
        assert 0.4 < (shades < 0.5).mean() < 0.6


def test_the_ball_is_clear_of_the_face():
    for seed in range(300):
        layout = Scene.random(seed).layout()
        assert BALL_RADIUS < layout.ball_x < 1 - BALL_RADIUS and layout.ball_y < 1
        assert layout.facing * (layout.x - layout.ball_x) > 0.2, "the ball lies behind the animal's back"


def test_every_pose_differs_clearly_from_the_others():
    for animal in ANIMALS:
        scenes = [Scene(1, animal, posture, "brown", "grass") for posture in POSTURES[animal]]
        masks = [animal_cover(scene) > 127 for scene in scenes]
        for i, first in enumerate(masks):
            for second in masks[:i]:
                assert (first & second).sum() < 0.75 * (first | second).sum()


def test_random_scenes_use_every_value():
    scenes = [Scene.random(seed) for seed in range(400)]
    named = {"animal": ANIMALS, "colour": COLOURS, "ground": GROUNDS, "addition": ADDITIONS}
    for field, values in named.items():
        assert {getattr(scene, field) for scene in scenes} == set(values)
    assert {(s.animal, s.posture) for s in scenes} == {(a, p) for a in ANIMALS for p in POSTURES[a]}
    assert 0.4 < np.mean([scene.addition is None for scene in scenes]) < 0.6


@pytest.mark.parametrize(
    "scene, caption",
    [
        (Scene(0, "dog", "lying down", "brown", "grass"), "a brown dog lying down on grass"),
        (Scene(0, "cat", "sitting", "orange", "snow"), "an orange cat sitting on snow"),
        (
            Scene(0, "cat", "sitting", "grey", "snow", "a red hat"),
            "a grey cat sitting on snow with a red hat",
        ),
        (
            Scene(0, "dog", "jumping", "grey", "sand", "a blue ball"),
            "a grey dog jumping on sand with a blue ball",
        ),
    ],
)
def test_captions(scene, caption):
    assert scene.caption() == caption


def test_the_seed_ranges_share_no_seed():
    ranges = sorted([TRAINING_SEEDS, SWEEP_SEEDS, HELD_OUT_SEEDS], key=lambda seeds: seeds.start)
    assert all(earlier.stop <= later.start for earlier, later in pairwise(ranges))


@pytest.mark.parametrize(
    "wrong",
    [
        {"animal": "fish"},
        {"posture": "flying"},
        {"colour": "blue"},
        {"ground": "water"},
        {"addition": "a hat"},
        {"seed": -1},
        {"seed": 0.5},
    ],
)
def test_a_wrong_value_is_named_in_a_sentence(wrong):
    good = {"seed": 0, "animal": "dog", "posture": "sitting", "colour": "brown", "ground": "grass"}
    with pytest.raises(ValueError, match=r"^The .* must be .*, not .*\.$"):
        Scene(**good | wrong)
