"""An edit on a real GPU."""

import pytest
import torch

import minibaret
from minibaret import Savings
from minibaret.images import psnr
from minibaret.miniature.world.drawing import render
from minibaret.miniature.world.scene import Scene

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU here"),
]


@pytest.mark.parametrize("savings", [Savings(), Savings(True, True, True, max_rows=2)])
def test_an_edit_is_the_cpus(savings):
    dog = render(Scene(1, "dog", "standing", "brown", "grass"))
    editors = [minibaret.load(device=device, savings=savings) for device in ("cpu", "cuda")]
    settings = editors[0].settings(steps=3, inner_steps=1)
    cpu, gpu = (editor.edit(dog, "a brown dog lying down on grass", settings) for editor in editors)
    assert psnr(gpu.image, cpu.image) > 35 and psnr(gpu.reconstruction, cpu.reconstruction) > 35
    assert sum(gpu.seconds.values()) > 0 and gpu.peak_memory > 20e6
