import copy
import dataclasses
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "2")

import pytest
import torch
from PIL import Image

import minibaret
from minibaret.bench import random_weights
from minibaret.models.configs import UNetConfig
from minibaret.models.unet import UNet
from minibaret.weights import Model
from minibaret.weights.miniature.world.drawing import render
from minibaret.weights.miniature.world.scene import Scene

TINY = UNetConfig(channels=(16, 32), attention=(True, False), layers_per_block=1, heads=2, context_width=24, groups=8)
SMALL = dataclasses.replace(TINY, context_width=128)  # reads the miniature's text


@pytest.fixture(autouse=True)
def same_random_numbers():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def gpu_only_where_it_is_tested(request, monkeypatch):
    """So that the other tests ask for the same on every machine; their processes see none either."""
    if not request.node.get_closest_marker("gpu"):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture
def one_thread():
    """With two, the sums of a gradient may differ in their last bits from run to run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def unet() -> UNet:
    """A UNet of SD1.5's shape small enough for a test, frozen, with random weights."""
    return UNet(TINY).requires_grad_(False).eval()


@pytest.fixture(scope="session")
def editor() -> minibaret.Editor:
    """The miniature that ships."""
    return minibaret.load(device="cpu")


@pytest.fixture(scope="session")
def louder(editor) -> Model:
    """The miniature whose embeddings are ten times as large, as Stable Diffusion's: its UNet was trained on a tenth,
    which others, of random weights, would hardly hear."""
    text_encoder = copy.deepcopy(editor.model.text_encoder)
    for value in text_encoder.final_layer_norm.parameters():
        value.mul_(10)
    defaults = {"guidance": 2.0, "baret": {"learning_rate": 1e-2, "inversion_prompt": "null"}}
    config = dataclasses.replace(editor.config, defaults=defaults)
    return dataclasses.replace(editor.model, text_encoder=text_encoder, config=config)


@pytest.fixture
def small(louder) -> minibaret.Editor:
    """The miniature with a UNet of random weights that takes a hundredth of the time, on pictures of 32×32."""
    config = dataclasses.replace(louder.config, unet=SMALL, image_size=32)
    unet = UNet(SMALL).requires_grad_(False).eval()
    return minibaret.Editor(dataclasses.replace(louder, config=config, unet=unet))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """A folder in float32 of every block of Stable Diffusion 1.5, narrow, with random weights. Not to be written to."""
    return random_weights.write_folder(tmp_path_factory.mktemp("tiny"), random_weights.TINY)


@pytest.fixture
def picture() -> Image.Image:
    return render(Scene(1, "dog", "standing", "brown", "grass"))


@pytest.fixture
def calls(small) -> list:
    """Grows by one with every forward of the UNet."""
    found = []
    small.model.unet.register_forward_hook(lambda *_: found.append(1))
    return found


FIGURES: list[str] = []


@pytest.fixture
def within():
    """Asserts that a measured figure is at most its limit, and has it printed at the end of the run."""

    def check(what: str, value: float, limit: float) -> None:
        FIGURES.append(f"{what:<64} {value:9.2e}  of {limit:.2g}")
        assert value <= limit, FIGURES[-1]

    return check


def pytest_terminal_summary(terminalreporter):
    if FIGURES:
        terminalreporter.section("measured, and the limit")
        terminalreporter.write("\n".join(FIGURES) + "\n")


@pytest.fixture
def dog(tmp_path) -> Path:
    path = tmp_path / "dog.png"
    render(Scene(1, "dog", "standing", "brown", "grass")).save(path)
    return path
