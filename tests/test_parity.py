"""The networks, the schedule and sampling compute what diffusers and transformers compute from the same files.

Each test runs on narrow networks always, and at the full size of Stable Diffusion 1.5 with `pytest -m full`; weights
are random in both.
"""

import gc
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoints import (
    MERGES,
    TINY,
    full_merges,
    ldm_tensors,
    random_weights,
    write_configs,
    write_hugging_face,
    write_single,
)
from runs import drain, error

from minibaret.models.configs import SD15
from minibaret.pipeline import StableDiffusion
from minibaret.sampler import Branch, Schedule, invert, sample
from minibaret.weights import load_model

pytest.importorskip("diffusers", reason="parity is measured against diffusers and transformers")
pytest.importorskip("transformers", reason="parity is measured against diffusers and transformers")
import diffusers
import transformers
from eager import SCHEDULER

SIZES = [pytest.param((TINY, MERGES), id="tiny"), pytest.param(SD15, id="full", marks=pytest.mark.full)]


@pytest.fixture(scope="module", params=SIZES)
def files(request, tmp_path_factory):
    """The same random weights as a Hugging Face folder and as a single file → (folder, file, sizes)."""
    config, merges = (SD15, full_merges()) if request.param is SD15 else request.param
    folder = write_configs(tmp_path_factory.mktemp(config.name) / "folder", config, merges)
    weights = random_weights(config)
    write_hugging_face(folder, weights, old_attention=True)
    single = write_single(folder.parent / "single.safetensors", ldm_tensors(weights))
    del weights
    gc.collect()
    return folder, single, config


@pytest.fixture(scope="module")
def model(files):
    folder, _, config = files
    return load_model(folder, sizes=config)


@pytest.fixture
def reference(files):
    """diffusers' or transformers' network of the folder, by the name of its part."""
    classes = {
        "unet": diffusers.UNet2DConditionModel,
        "vae": diffusers.AutoencoderKL,
        "text_encoder": transformers.CLIPTextModel,
    }
    return lambda part: classes[part].from_pretrained(files[0] / part).requires_grad_(False).eval()


def test_every_layout_has_the_same_bits(files, model):
    folder, single, config = files
    other = load_model(single, tokenizer=folder, sizes=config)
    for part in ("unet", "vae", "text_encoder"):
        a, b = getattr(model, part).state_dict(), getattr(other, part).state_dict()
        assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_parameters_are_those_of_the_reference(files, model, reference):
    """Name by name and bit by bit, after each side read the files in its own way."""
    for part in ("unet", "vae", "text_encoder"):
        ours, theirs = getattr(model, part).state_dict(), reference(part).state_dict()
        theirs = {name.removeprefix("text_model."): value for name, value in theirs.items()}
        theirs.pop("embeddings.position_ids", None)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_unet(files, model, reference, within):
    other, config = reference("unet"), files[2]
    for size, timesteps in (((64, 64), (1, 481, 981)), ((32, 48), (481,))):
        latents, context = torch.randn(2, 4, *size), torch.randn(2, 77, config.unet.context_width)
        for timestep in timesteps:
            with torch.no_grad():
                ours = model.unet(latents, torch.tensor(timestep), context)
                theirs = other(latents, timestep, context).sample
            what = f"{config.name}: UNet, {size[0]}×{size[1]} latents, batch 2, t {timestep}"
            within(what, error(ours, theirs), 1e-5)


def test_gradient_of_the_text(files, model, reference, within):
    other, config = reference("unet"), files[2]
    latents, goal = torch.randn(2, 1, 4, 32, 48)
    text = torch.randn(1, 77, config.unet.context_width)
    gradients = []
    for predict in (lambda e: model.unet(latents, torch.tensor(481), e), lambda e: other(latents, 481, e).sample):
        embedding = text.clone().requires_grad_()
        (predict(embedding) - goal).square().mean().backward()
        gradients.append(embedding.grad)
    within(f"{config.name}: UNet, gradient of the text embedding, 32×48 latents", error(*gradients), 1e-5)


@torch.no_grad()
def test_vae(files, model, reference, within):
    other, config = reference("vae"), files[2]
    for height, width in ((256, 256), (192, 320)):
        size = f"{config.name}: VAE, {width}×{height} pixels"
        pixels = torch.rand(1, 3, height, width) * 2 - 1
        mean, logvar = model.vae.moments(pixels)
        theirs = other.encode(pixels).latent_dist
        within(f"{size}, encode, mean", error(mean, theirs.mean), 2e-6)
        within(f"{size}, encode, log-variance", error(logvar, theirs.logvar), 2e-6)
        latents = torch.randn(1, 4, height // 8, width // 8)
        decoded = other.decode(latents / 0.18215).sample
        within(f"{size}, decode", error(model.vae.decode(latents), decoded), 2e-6)


TEXTS = {
    "empty": "",
    "words": "a dog, lying down on grass",
    "punctuation": "don't: 'quoted' (well…) #1!",
    "accents": "crème brûlée, naïve café",
    "77 long": "a b c d e " * 15,
}


@torch.no_grad()
def test_text_encoder(files, model, reference, within):
    other, config = reference("text_encoder"), files[2]
    for name, text in TEXTS.items():
        ids = torch.tensor([model.tokenizer(text)])
        ours, theirs = model.text_encoder(ids), other(ids).last_hidden_state
        within(f"{config.name}: text encoder, {name}", error(ours, theirs), 5e-6)


@torch.no_grad()
def test_inversion_and_guided_sampling(files, model, reference, within):
    """DDIM inversion at guidance 1, then ten steps of DDIM at guidance 7.5: each side with its own tokenizer, text
    encoder, UNet, schedule and loop."""
    folder, _, config = files
    tokenizer, other = transformers.CLIPTokenizer.from_pretrained(folder / "tokenizer"), reference("unet")
    ids = tokenizer(["", TEXTS["words"]], padding="max_length", max_length=77, return_tensors="pt").input_ids
    context = reference("text_encoder")(ids).last_hidden_state
    start = theirs = torch.randn(1, 4, 32, 32)
    sd, steps = StableDiffusion(model), 10
    null, prompt = sd.embed(""), sd.embed(TEXTS["words"])
    trajectory, scheduler = [start], ddim(inverse=True)
    drain(invert(sd, trajectory, null, Schedule(steps), count=3))
    scheduler.set_timesteps(steps)
    for timestep in scheduler.timesteps[:3]:
        theirs = scheduler.step(other(theirs, timestep, context[:1]).sample, timestep, theirs).prev_sample
    within(f"{config.name}: DDIM inversion, 3 steps, 32×32 latents", error(trajectory[-1], theirs), 1e-5)
    theirs, scheduler = start, ddim()
    _, found = drain(sample(sd, [Branch("edit", start, prompt, null)], Schedule(steps), 7.5))
    scheduler.set_timesteps(steps)
    for timestep in scheduler.timesteps:
        uncond, cond = other(torch.cat([theirs] * 2), timestep, context).sample.chunk(2)
        theirs = scheduler.step(uncond + 7.5 * (cond - uncond), timestep, theirs).prev_sample
    within(f"{config.name}: guided sampling, 10 steps, 32×32 latents", error(found["edit"], theirs), 1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_low_precision(files, model, within, dtype):
    """Against our own float32, from the same files; float16 is slow on a CPU and only tried where it is small."""
    folder, _, config = files
    if dtype == torch.float16 and config is SD15:
        pytest.skip("float16 convolutions on a CPU take minutes")
    low = load_model(folder, dtype=dtype, sizes=config)
    latents, context = torch.randn(1, 4, 32, 32), torch.randn(1, 77, config.unet.context_width)
    ids, pixels = torch.tensor([model.tokenizer("a dog")]), torch.rand(1, 3, 128, 128) * 2 - 1
    t = torch.tensor(981)
    pairs = {
        "UNet": (low.unet(latents.to(dtype), t, context.to(dtype)), model.unet(latents, t, context)),
        "text encoder": (low.text_encoder(ids), model.text_encoder(ids)),
        "VAE encode": (low.vae.encode(pixels.to(dtype)), model.vae.encode(pixels)),
        "VAE decode": (low.vae.decode(latents.to(dtype)), model.vae.decode(latents)),
    }
    limit = 3e-2 if dtype == torch.bfloat16 else 5e-3
    for name, (ours, exact) in pairs.items():
        assert ours.dtype == dtype
        within(f"{config.name}: {name}, {str(dtype)[6:]} against float32", error(ours.float(), exact), limit)


@pytest.mark.parametrize("files", SIZES[1:], indirect=True)
@pytest.mark.parametrize(("which", "dtype"), [("folder", "float32"), ("folder", "bfloat16"), ("single", "float16")])
def test_peak_memory(files, within, which, dtype):
    """Of a process that loads and then reads a number of every page: the weights in their final dtype and 15 %."""
    path = files[0] if which == "folder" else files[1]
    command = [sys.executable, Path(__file__).with_name("peak_of_loading.py"), path, dtype]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    weights = 1_066_235_307 * getattr(torch, dtype).itemsize
    within(f"full: peak memory over weights, {which}, float32 → {dtype}", int(done.stdout) / weights, 1.15)


def ddim(inverse: bool = False):
    return (diffusers.DDIMInverseScheduler if inverse else diffusers.DDIMScheduler)(**SCHEDULER)


@pytest.mark.parametrize("steps", [50, 30, 20, 10])
@pytest.mark.parametrize("inverse", [False, True], ids=["forwards", "backwards"])
def test_schedule(steps, inverse, within):
    scheduler, schedule = ddim(inverse), Schedule(steps)
    scheduler.set_timesteps(steps)
    timesteps = schedule.timesteps[::-1] if inverse else schedule.timesteps
    assert scheduler.timesteps.tolist() == timesteps
    ours = theirs = start = torch.randn(2, 4, 8, 8)
    step = schedule.inverse_step if inverse else schedule.step
    for timestep in timesteps:
        noise = torch.randn(2, 4, 8, 8)
        alone = error(step(theirs, noise, timestep), scheduler.step(noise, timestep, theirs).prev_sample)
        assert alone < 2e-5, timestep
        ours, theirs = step(ours, noise, timestep), scheduler.step(noise, timestep, theirs).prev_sample
    noised = ddim().add_noise(start, ours, torch.tensor(timesteps[3:4]))
    assert error(schedule.add_noise(start, ours, timesteps[3]), noised) < 2e-6
    name = "DDIMInverseScheduler" if inverse else "DDIMScheduler"
    within(f"{steps} steps in a row against {name}", error(ours, theirs), 1e-4)


def test_ldm_names_are_those_that_diffusers_reads():
    """The tables of these tests against diffusers' own conversion of single files."""
    from diffusers.loaders import single_file_utils as convert

    weights = random_weights(TINY)
    ldm = ldm_tensors(weights)
    config = {"layers_per_block": 2, "class_embed_type": None, "addition_embed_type": None}
    unet = convert.convert_ldm_unet_checkpoint(dict(ldm), config=config)
    vae = convert.convert_ldm_vae_checkpoint(
        dict(ldm), config={"down_block_types": [""] * 4, "up_block_types": [""] * 4}
    )
    for part, theirs in (("unet", unet), ("vae", vae)):
        assert theirs.keys() == weights[part].keys()
        for name, value in weights[part].items():
            assert torch.equal(theirs[name].reshape(value.shape), value), name
