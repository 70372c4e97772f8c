"""The noise that the UNet is trained with tells the layout, and is normally distributed all the same."""

import pytest
import torch
from torch.nn.functional import avg_pool2d

from minibaret.miniature.coupling import couple, layout_numbers
from minibaret.miniature.data import attributes
from minibaret.miniature.scene import Scene

COUNT = 4000
CHANCE = 5 / COUNT**0.5  # five standard deviations of a mean, or of a correlation, that is nothing but chance


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [Scene.random(seed) for seed in range(COUNT)]


@pytest.fixture(scope="module")
def numbers(scenes) -> torch.Tensor:
    return layout_numbers([scene.layout() for scene in scenes])


def test_a_layout_becomes_independent_normal_numbers(numbers):
    quantiles = torch.distributions.Normal(0, 1).icdf((torch.arange(COUNT) + 0.5) / COUNT)
    assert torch.allclose(numbers.sort(dim=0).values, quantiles[:, None].expand_as(numbers), atol=1e-4)
    none = torch.eye(numbers.shape[1]) == 0
    assert torch.corrcoef(numbers.T)[none].abs().max() < CHANCE
    assert torch.corrcoef(numbers.square().T)[none].abs().max() < CHANCE


def test_the_numbers_tell_the_layout(scenes, numbers):
    layouts = [scene.layout() for scene in scenes]
    right = torch.tensor([layout.facing > 0 for layout in layouts])
    assert numbers[~right, 3].max() < 0.1 and numbers[right, 3].min() > -0.1
    assert numbers[~right, 3].max() < numbers[right, 3].min()
    assert (numbers[:, 0].argsort() == torch.tensor([layout.x for layout in layouts]).argsort()).all()


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
    blocks = 4 * avg_pool2d(coupled, 4).flatten(1)
    assert torch.allclose(blocks[:, :count], numbers, atol=1e-5)
    assert torch.allclose(blocks[:, count:], 4 * avg_pool2d(noise, 4).flatten(1)[:, count:], atol=1e-5)
    within = [part - avg_pool2d(part, 4).repeat_interleave(4, 2).repeat_interleave(4, 3) for part in (noise, coupled)]
    assert torch.allclose(*within, atol=1e-5)
    covariance = torch.cov(coupled.flatten(1)[:, :300].T)  # over all blocks that were moved, and some that were not
    assert (covariance - torch.eye(300)).abs().max() < 1.5 * CHANCE
    assert coupled.mean(0).abs().max() < CHANCE
