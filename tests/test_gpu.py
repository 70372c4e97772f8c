"""On a real GPU: whole edits, and what they ask of memory, streams and graphs. The kernel's tests are in
test_gpu_attention.py."""

import dataclasses

import pytest
import torch

import minibaret
from minibaret import Savings
from minibaret.bench import gpu_parts
from minibaret.bench.random_weights import TINY, random_model
from minibaret.images import psnr

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU here")]
PROMPT = "a brown dog lying down on grass"


@pytest.mark.parametrize("savings", [Savings(), Savings(on_demand=True, tiled_vae=True, checkpointing=True)], ids=str)
def test_an_edit_is_the_cpus(picture, savings):
    editors = [minibaret.load(device=device, dtype="float32", savings=savings) for device in ("cpu", "cuda")]
    cpu, gpu = (editor.edit(picture, PROMPT, steps=3, inner_steps=1) for editor in editors)
    assert psnr(gpu.image, cpu.image) > 35 and psnr(gpu.images["reconstruction"], cpu.images["reconstruction"]) > 35
    assert gpu.seconds.keys() == cpu.seconds.keys() and gpu.peak_memory > 0


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_shows_the_same(picture, dtype):
    """On a CPU, bfloat16 comes within 51 dB."""
    single, half = (minibaret.load(device="cuda", dtype=kind) for kind in ("float32", dtype))
    pictures = [editor.edit(picture, PROMPT, steps=3, inner_steps=1).image for editor in (single, half)]
    assert psnr(*pictures) > 35


def test_peak_memory_is_that_of_the_edit(picture):
    editor = minibaret.load(device="cuda")
    large, small = (editor.edit(picture, PROMPT, steps=2, inner_steps=1, size=(side, side)) for side in (256, 64))
    assert small.peak_memory < large.peak_memory


def test_sampling_never_makes_the_cpu_wait(picture):
    """The launches of one step overlap with the work of the step before."""
    editor = minibaret.load(device="cuda")
    steps = editor.steps(picture, PROMPT, steps=4, inner_steps=1, pictures=())
    next(step for step in steps if step.stage == "edit")  # what is made once has been made
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert next(steps).index == 1
    finally:
        torch.cuda.set_sync_debug_mode("default")
        steps.close()


def test_an_inner_iteration_as_a_graph_is_the_eager_one():
    at = dataclasses.replace(gpu_parts.REAL, config=TINY)
    unet = random_model(TINY, at.device).unet
    eager = gpu_parts.inner_iteration(unet, at)
    losses = [eager().item() for _ in range(5)]
    graphed = gpu_parts.graph(gpu_parts.inner_iteration(unet, at), at.device)  # after three iterations
    for loss in losses[3:]:
        assert abs(graphed().item() - loss) < 0.05 * (losses[0] - losses[4])
