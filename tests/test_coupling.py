"""The noise that the UNet is trained with tells the layout, and is normally distributed all the same."""

import pytest
import torch
from torch.nn.functional import avg_pool2d

from minibaret.miniature.training.coupling import NUMBERS, couple, layout_numbers, read_numbers
from minibaret.miniature.training.data import attributes
from minibaret.miniature.world.scene import Layout, Scene

COUNT = 4000
CHANCE = 5 / COUNT**0.5  # five standard deviations of a mean, or of a correlation, that is nothing but chance


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [Scene.random(seed) for seed in range(COUNT)]


@pytest.fixture(scope="module")
def layouts(scenes) -> list[Layout]:
    return [scene.layout() for scene in scenes]


@pytest.fixture(scope="module")
def numbers(scenes) -> torch.Tensor:
    return layout_numbers(scenes)


def test_a_layout_becomes_independent_normal_numbers(numbers):
    assert numbers.shape == (COUNT, len(NUMBERS))
    normal = torch.distributions.Normal(0, 1).cdf(numbers).sort(dim=0).values
    uniform = (torch.arange(COUNT) + 0.5) / COUNT
    assert (normal - uniform[:, None]).abs().max() < 2.5 / COUNT**0.5  # Kolmogorov-Smirnov, one in 10^5 for each number
    none = torch.eye(len(NUMBERS)) == 0
    for values in (numbers, numbers.square()):
        assert torch.corrcoef(values.T)[none].abs().max() < CHANCE


def test_a_ball_kept_in_the_frame_does_not_tie_its_number_to_the_facing(numbers):
    facing, x, ball = (numbers[:, NUMBERS.index(name)] for name in ("facing", "x", "ball x"))
    assert (facing.sign() * x * ball).mean().abs() < CHANCE


def test_the_numbers_tell_the_layout(layouts, numbers):
    number = dict(zip(NUMBERS, numbers.T, strict=True))
    assert (number["facing"].sign() == torch.tensor([layout.facing for layout in layouts])).all()
    assert (number["sun side"].sign() == torch.tensor([layout.sun_x - 0.5 for layout in layouts]).sign()).all()
    for name in ("x", "scale", "horizon", "hill height", "cloud y", "warmth"):
        values = torch.tensor([getattr(layout, name.replace(" ", "_")) for layout in layouts])
        assert (values[number[name].argsort()].diff() >= 0).all()


def test_every_part_of_the_layout_is_told(layouts, numbers):
    whole = torch.tensor([[*_flat(layout)] for layout in layouts], dtype=torch.float64)
    told = torch.distributions.Normal(0, 1).cdf(numbers.double())  # what was drawn, of which a layout is made
    told = torch.cat([told, (told > 0.5).double(), _products(told)], 1)
    rest = whole - told @ torch.linalg.lstsq(told, whole).solution
    assert (rest.var(0) / whole.var(0)).max() < 0.05


def test_the_numbers_tell_nothing_that_a_caption_names(scenes, numbers):
    named = torch.tensor([attributes(scene) for scene in scenes])
    for values in named.T:
        for value in values.unique():
            chosen = numbers[values == value]
            assert chosen.mean(0).abs().max() < 5 / len(chosen) ** 0.5


def test_coupled_noise_is_normal_noise_with_the_numbers_in_its_blocks(numbers):
    noise = torch.randn(COUNT, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    coupled = couple(noise, numbers)
    count = numbers.shape[1]
    assert torch.allclose(read_numbers(coupled), numbers, atol=1e-5)
    assert torch.allclose(read_numbers(coupled, 64)[:, count:], read_numbers(noise, 64)[:, count:], atol=1e-5)
    within = [part - avg_pool2d(part, 4).repeat_interleave(4, 2).repeat_interleave(4, 3) for part in (noise, coupled)]
    assert torch.allclose(*within, atol=1e-5)
    blocks = torch.cov(read_numbers(coupled, 64).T)
    assert (blocks - torch.eye(64)).abs().max() < 1.5 * CHANCE
    latents = torch.cov(coupled.flatten(1)[:, :384].T)  # over all blocks that were moved, and some that were not
    assert (latents - torch.eye(384)).abs().max() < 1.5 * CHANCE
    assert coupled.mean(0).abs().max() < CHANCE


def _flat(layout: Layout):
    for value in vars(layout).values():
        if isinstance(value, tuple):
            yield from (number for stone in value for number in (stone.x, stone.y, stone.radius))
        else:
            yield value


def _products(told: torch.Tensor) -> torch.Tensor:
    """What a side, the horizon or the animal's place is multiplied with, and 1."""
    column = {name: told[:, index] for index, name in enumerate(NUMBERS)}
    facing, sun = (column[name] > 0.5 for name in ("facing", "sun side"))
    pairs = [(facing, "ball x"), (sun, "sun x"), (sun, "cloud x")]
    stones = [column["horizon"] * column[f"{side} stone y"] for side in ("left", "right")]
    return torch.stack([*(sign * column[name] for sign, name in pairs), *stones, torch.ones(len(told))], 1)
