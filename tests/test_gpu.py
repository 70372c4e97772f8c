"""On a real GPU: whole edits, and what they ask of memory, streams and graphs. The kernel's tests are in
test_gpu_attention.py."""

import dataclasses

import pytest
import torch

import minibaret
from minibaret import METHODS, Savings
from minibaret.bench import gpu_parts
from minibaret.bench.random_weights import TINY, random_model
from minibaret.images import psnr

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU here")]
FEW = {"steps": 4, "inner_steps": 1, "embedding_steps": 2, "unet_steps": 2, "tuning_steps": 2}
PROMPT = "a brown dog lying down on grass"


@pytest.fixture(autouse=True)
def whole_float32(monkeypatch):
    """PyTorch computes convolutions in TF32 unless it is told not to."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


WAYS = {
    "as it is": {},
    "saving": {"savings": Savings(on_demand=True, tiled_vae=True, checkpointing=True)},
    "streamed": {"savings": Savings(on_demand=True, checkpointing=True, streamed=True)},
    "limited": {"memory_limit": "2G"},
    "compiled": {"compile": True},
}


@pytest.mark.parametrize("way", WAYS)
def test_an_edit_is_the_cpus(picture, way):
    cpu = minibaret.load(device="cpu", dtype="float32").edit(picture, PROMPT, steps=3, inner_steps=1)
    gpu = minibaret.load(device="cuda", dtype="float32", **WAYS[way]).edit(picture, PROMPT, steps=3, inner_steps=1)
    assert psnr(gpu.image, cpu.image) > 50 and psnr(gpu.images["reconstruction"], cpu.images["reconstruction"]) > 50
    assert gpu.seconds.keys() - {"warm-up"} == cpu.seconds.keys() and gpu.peak_memory > 0


def test_an_edit_goes_on_from_a_file(picture, tmp_path):
    editor, file = minibaret.load(device="cuda"), tmp_path / "dog.safetensors"
    whole = editor.edit(picture, PROMPT, steps=3, inner_steps=1)
    editor.invert(picture, PROMPT, steps=3, inner_steps=1, file=file)
    again = editor.edit(picture, PROMPT, inversion=minibaret.load_inversion(file))
    assert again.counts.gradient_passes == 0 and psnr(again.image, whole.image) > 50


@pytest.mark.parametrize("name", METHODS)
def test_every_method_shows_what_it_shows_on_the_cpu(picture, name):
    has = {entry.name for entry in dataclasses.fields(METHODS[name].knobs)}
    knobs = {knob: count for knob, count in FEW.items() if knob in has}
    pictures = []
    for device in ("cpu", "cuda"):
        editor = minibaret.load(device=device, dtype="float32")
        source = "a brown dog standing on grass"
        pictures.append(editor.edit(picture, PROMPT, name, source_prompt=source, size=(64, 64), **knobs).image)
    assert psnr(*pictures) > 45


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
