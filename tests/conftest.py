import os

os.environ.setdefault("OMP_NUM_THREADS", "2")

import pytest
import torch

import minibaret
from minibaret.models.configs import UNetConfig
from minibaret.models.unet import UNet

TINY = UNetConfig(channels=(16, 32), attention=(True, False), layers_per_block=1, heads=2, context_width=24, groups=8)


@pytest.fixture(autouse=True)
def same_random_numbers():
    torch.manual_seed(0)


@pytest.fixture
def unet() -> UNet:
    """A UNet of SD1.5's shape small enough for a test, frozen, with random weights."""
    return UNet(TINY).requires_grad_(False).eval()


@pytest.fixture(scope="session")
def editor() -> minibaret.Editor:
    """The miniature that ships."""
    return minibaret.load()
