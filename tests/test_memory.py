"""Less memory, the same edit."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import minibaret
from minibaret import InputError, Savings, tiled_vae
from minibaret.bench.common import peak_bytes
from minibaret.cli import main
from minibaret.images import to_pixels
from minibaret.inversion import ddim_invert, tune_text
from minibaret.memory import Work, estimate, in_words, parse_limit, peak_memory, plan
from minibaret.miniature.world.drawing import render
from minibaret.miniature.world.scene import Scene
from minibaret.models.configs import MINIATURE, SD15, VAEConfig
from minibaret.models.unet import UNet
from minibaret.models.vae import VAE
from minibaret.prediction import predict
from minibaret.schedule import Schedule
from minibaret.settings import Settings
from minibaret.weights import MINIATURE_FOLDER, OnDemandModel

CPU = torch.device("cpu")
NUMBERS = {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480}
TEXT = "a brown dog lying down on grass"


def dog(width: int, height: int) -> Image.Image:
    return render(Scene(1, "dog", "standing", "brown", "grass"), 128).resize((width, height), Image.Resampling.BICUBIC)


# The VAE in tiles


@pytest.mark.parametrize("size", [(256, 192), (64, 416), (512, 512)])
@torch.no_grad()
def test_tiles_change_the_picture_by_less_than_can_be_seen(editor, within, size):
    vae, pixels = editor.model.vae, to_pixels(dog(*size))
    latents = vae.encode(pixels)
    error = (tiled_vae.encode(vae, pixels) - latents).abs().max() / latents.std()
    within(f"tiled VAE, latents at {size[0]}×{size[1]}, of their deviation", error.item(), 1e-4)
    error = (tiled_vae.decode(vae, latents) - vae.decode(latents)).abs().max() * 127.5
    within(f"tiled VAE, picture at {size[0]}×{size[1]}, of 255", error.item(), 0.01)


@pytest.mark.parametrize("strip", [1, 1000, 2**14])
@torch.no_grad()
def test_tiles_of_any_height_and_norms_that_matter(monkeypatch, strip):
    """One row a strip to several, odd ones at the end; random weights, so that nothing is near its average."""
    monkeypatch.setattr(tiled_vae, "STRIP", strip)
    vae = VAE(VAEConfig(channels=(8, 16, 24, 24), groups=4)).eval()
    for weight in vae.parameters():
        weight.normal_(1.0 if weight.dim() == 1 else 0.0, 0.5 if weight.dim() == 1 else weight[0].numel() ** -0.5)
    pixels = torch.randn(2, 3, 88, 40)
    before = pixels.clone()
    latents = vae.encode(pixels)
    assert torch.allclose(tiled_vae.encode(vae, pixels), latents, rtol=1e-4, atol=1e-4 * latents.std())
    picture = vae.decode(latents)
    assert torch.allclose(tiled_vae.decode(vae, latents), picture, rtol=1e-4, atol=1e-4 * picture.std())
    assert torch.equal(pixels, before)  # what is overwritten is its own


@torch.no_grad()
def test_tiles_of_a_whole_network_would_show_where_these_do_not(editor):
    """The limit of 2/255 is one that a network run over two halves does not keep."""
    vae = editor.model.vae
    latents = vae.encode(to_pixels(dog(256, 256)))
    whole = vae.decode(latents)
    halves = torch.cat([vae.decode(latents[:, :, :24])[:, :, :128], vae.decode(latents[:, :, 8:])[:, :, 64:]], dim=2)
    assert (halves - whole).abs().max() * 127.5 > 2
    assert (tiled_vae.decode(vae, latents) - whole).abs().max() * 127.5 < 0.01


@torch.no_grad()
def test_tiles_take_less_memory(monkeypatch):
    vae = VAE(VAEConfig(channels=(32, 64, 64, 64), groups=8)).eval()
    pixels, latents = torch.randn(1, 3, 256, 256), torch.randn(1, 4, 32, 32)
    monkeypatch.setattr(tiled_vae, "STRIP", 2**17)
    for whole, tiles in (
        (lambda: vae.encode(pixels), lambda: tiled_vae.encode(vae, pixels)),
        (lambda: vae.decode(latents), lambda: tiled_vae.decode(vae, latents)),
    ):
        assert peak_bytes(tiles, CPU) < 0.6 * peak_bytes(whole, CPU)


# Checkpointing, and half precision, in target-text inversion


def tune(unet: UNet, settings: Settings, schedule: Schedule):
    torch.manual_seed(1)
    start, target, null = torch.randn(1, 4, 16, 16), torch.randn(1, 5, 24), torch.randn(1, 5, 24)
    trajectory = [start, *ddim_invert(unet, start, target, schedule)]
    return list(tune_text(unet, trajectory, target, null, schedule, settings))


SHORT = Settings(steps=3, inner_steps=2, guidance=3.0, learning_rate=1e-2, tolerance=(0.0, 0.0))


def test_checkpointing_finds_the_same_texts_in_less_memory(unet):
    def run() -> None:
        found.append(tune(unet, SHORT, Schedule(SHORT.steps)))

    found, peaks = [], []
    for on in (False, True):
        unet.set_checkpointing(on)
        peaks.append(peak_bytes(run, CPU))
    assert peaks[1] < 0.7 * peaks[0]
    for plain, checkpointed in zip(*found):
        assert torch.allclose(plain.embedding, checkpointed.embedding, rtol=0, atol=1e-6)
        assert torch.allclose(plain.latents, checkpointed.latents, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_the_text_is_still_tuned_in_float32(unet, dtype):
    plain = tune(unet, SHORT, Schedule(SHORT.steps))
    half = tune(unet.to(dtype), SHORT, Schedule(SHORT.steps))
    for a, b in zip(plain, half):
        assert b.embedding.dtype == b.latents.dtype == torch.float32
        assert (a.latents - b.latents).norm() < 0.05 * a.latents.norm()
    step = half[0].embedding.sub(half[1].embedding).abs()
    assert (
        0 < step.median() <= 2.5e-2
    )  # Adam's steps are learning rates; bfloat16 texts near 1 would move by 2⁻⁸ or not


def test_small_losses_have_a_gradient_in_float16(editor):
    """The gradient of a mean squared error of 1e-5 is below what float16 can hold."""
    gradients = []

    def watched(unet, latents, timestep, text, *more):
        if torch.is_grad_enabled():
            text.register_hook(gradients.append)
        return predict(unet, latents, timestep, text, *more)

    settings, schedule = dataclasses.replace(SHORT, steps=50, inner_steps=1, guidance=7.5), Schedule(50)
    timestep = schedule.timesteps[0]
    target, null = editor.embed(TEXT), editor.embed("", allow_empty=True)
    latents = torch.randn(1, 4, 16, 16)
    with torch.no_grad():
        noise = editor.model.unet(latents.repeat(2, 1, 1, 1), torch.tensor(timestep), torch.cat([null, target]))
    goal = schedule.step(latents, noise[:1] + 7.5 * (noise[1:] - noise[:1]), timestep)
    goal += 3e-3 * torch.randn(1, 4, 16, 16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minibaret.inversion.predict", watched)
        for dtype in (torch.float32, torch.float16):
            unet = UNet(editor.config.unet).to(dtype).requires_grad_(False).eval()
            unet.load_state_dict(editor.model.unet.state_dict())
            assert next(tune_text(unet, [latents, goal, latents], target, null, schedule, settings)).losses[0] < 2e-5
    plain, half = (gradient.flatten() for gradient in gradients)
    assert torch.nn.functional.cosine_similarity(plain, half, dim=0) > 0.97


# Networks on demand


def test_networks_are_read_when_used_and_freed():
    model = OnDemandModel(MINIATURE_FOLDER)
    networks = {part: model._networks[part] for part in ("unet", "vae", "text_encoder")}

    def there() -> set[str]:
        return {part for part, network in networks.items() if not next(network.parameters()).is_meta}

    assert there() == set()
    before = model.vae.decoder.conv_in.weight.clone()
    assert model.unet.conv_in.weight.dtype == torch.float32 and there() == {"unet", "vae"}
    model.free_all_but("text_encoder")
    assert there() == set()
    assert torch.equal(model.vae.decoder.conv_in.weight, before) and there() == {"vae"}
    model.set_dtype("unet", torch.bfloat16)
    assert model.unet.conv_in.weight.dtype == torch.bfloat16 and model.vae.quant_conv.weight.dtype == torch.float32
    assert not any(weight.requires_grad for weight in model.unet.parameters())


RELEASED = """
import torch, sys
from pathlib import Path
from safetensors.torch import save_file
from minibaret.weights.files import open_tensors
def resident():
    return int(Path("/proc/self/status").read_text().partition("RssFile:")[2].split()[0]) // 1024
path = Path(sys.argv[1])
save_file({"a": torch.arange(16 * 2**20, dtype=torch.float32)}, path)
stored = open_tensors(path)["a"]
before = resident()
tensor = stored.read()
total = tensor.sum().item()
used = resident()
stored.release()
freed = resident()
assert used - before > 50 and freed - before < 10, (before, used, freed)
assert tensor.sum().item() == total
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_released_pages_leave_the_resident_set_and_come_back(tmp_path):
    subprocess.run([sys.executable, "-c", RELEASED, str(tmp_path / "a.safetensors")], check=True)


def test_savings_leave_the_edit_as_it_was(editor):
    settings = editor.settings(steps=2, inner_steps=1)
    plain = editor.edit(dog(128, 128), TEXT, settings)
    saving = minibaret.load(savings=Savings(on_demand=True, tiled_vae=True, checkpointing=True, max_rows=2))
    for _ in range(2):  # the second finds everything freed
        result = saving.edit(dog(128, 128), TEXT, settings)
        assert (to_pixels(result.image) - to_pixels(plain.image)).abs().max() * 127.5 <= 2
        assert saving.model._here == {"vae"}
    assert str(result.savings) == "networks on demand, tiled VAE, rows 2 at a time, gradient checkpointing"


def test_a_preview_between_two_steps_leaves_the_edit_as_it_was(editor):
    settings = editor.settings(steps=2, inner_steps=1)
    plain = editor.edit(dog(128, 128), TEXT, settings)
    saving = minibaret.load(savings=Savings(on_demand=True))
    previews = []
    whole = saving.edit(dog(128, 128), TEXT, settings, watch=lambda step: previews.append(saving.decode(step.latents)))
    assert len(previews) == 6 and whole.image.tobytes() == plain.image.tobytes() == previews[-1].tobytes()
    inversion = saving.invert(dog(128, 128), TEXT, settings, watch=lambda step: saving.decode(step.latents))
    assert len(inversion.tuned) == 2


def test_a_system_that_does_not_tell_the_peak_spoils_no_edit(monkeypatch):
    assert peak_memory(CPU) > 100e6
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "VmSize:\t 5 kB\nVmRSS:\t 4 kB\n")
    assert peak_memory(CPU) > 100e6  # by another call


# The limit


@pytest.mark.parametrize(
    ("text", "size"),
    [("4G", 4e9), ("900M", 9e8), ("3.5g", 3.5e9), ("4GB", 4e9), ("4GiB", 2**32), (" 5 G ", 5e9), (4e9, 4e9), (7, 7)],
)
def test_limits_are_read(text, size):
    assert parse_limit(text) == size


@pytest.mark.parametrize(
    "text", ["", "G", "4X", "-4G", "4,5G", "0G", "many", "1..2G", "nan", "inf", "4GG", "1e999", "9e307G", True, 0]
)
def test_nonsense_is_no_limit(text):
    with pytest.raises(InputError, match="a memory limit such as 4G or 900M was wanted, got"):
        parse_limit(text)


WORK = Work(SD15, NUMBERS, (512, 512), 5, True, torch.float32, CPU)


@pytest.mark.parametrize("config", [SD15, MINIATURE])
def test_the_limit_that_a_refusal_names_is_enough(config):
    work = dataclasses.replace(WORK, config=config, size=(config.image_size, config.image_size))
    if config is MINIATURE:
        work = dataclasses.replace(work, parameters=OnDemandModel(MINIATURE_FOLDER).parameter_counts())
    with pytest.raises(InputError) as refusal:
        plan(10**8, work, Savings(), True)
    named = re.search(r"needs (\S+) at least", str(refusal.value))[1]
    assert estimate(work, plan(parse_limit(named), work, Savings(), True)) <= parse_limit(named)


def test_the_plan_takes_what_is_needed_and_nothing_else():
    assert plan(10**11, WORK, Savings(), True) == Savings()
    previous = 10**11
    while True:  # down from limit to limit, each just too small for the plan before
        try:
            savings = plan(previous - 1, WORK, Savings(), True)
        except InputError as error:
            assert f"needs {in_words(previous, up=True)} at least" in str(error)
            break
        assert estimate(WORK, savings) < previous
        previous = estimate(WORK, savings)
    assert savings.on_demand and savings.unet_dtype == torch.bfloat16 and savings.max_rows == 1
    assert plan(4 * 10**9, WORK, Savings(), True) == Savings(on_demand=True, unet_dtype=torch.bfloat16)
    asked = Savings(tiled_vae=True)
    assert plan(10**11, WORK, asked, True) == asked
    assert plan(4 * 10**9, WORK, asked, True).tiled_vae


def test_a_dtype_that_was_chosen_is_kept():
    with pytest.raises(InputError, match=r"needs [\d.]+G at least"):
        plan(4 * 10**9, WORK, Savings(), False)
    half = dataclasses.replace(WORK, dtype=torch.float16)
    assert plan(4 * 10**9, half, Savings(), True).unet_dtype is None


def test_every_saving_lowers_the_estimate_where_it_applies():
    on_demand = Savings(on_demand=True)
    alone = estimate(WORK, on_demand)
    assert alone < estimate(WORK, Savings())
    one_row = dataclasses.replace(WORK, rows=1)
    assert estimate(one_row, dataclasses.replace(on_demand, checkpointing=True)) < estimate(one_row, on_demand)
    assert estimate(WORK, Savings(True, False, True, max_rows=1)) < estimate(WORK, Savings(True, False, True))
    large = dataclasses.replace(WORK, size=(1536, 1536), tuning=False, rows=1)
    assert estimate(large, dataclasses.replace(on_demand, tiled_vae=True)) < estimate(large, on_demand)
    assert estimate(WORK, dataclasses.replace(on_demand, unet_dtype=torch.bfloat16)) < alone


def test_a_limit_is_refused_before_any_weight_is_read(monkeypatch):
    editor = minibaret.load(memory_limit="100M")
    with pytest.raises(InputError, match=r"100M cannot be kept: this edit at 128×128 needs \d+M at least \(with netw"):
        editor.edit(dog(128, 128), TEXT)
    assert editor.model._here == set()


def test_a_dtype_of_the_unet_alone_takes_effect_without_a_limit():
    with pytest.raises(InputError, match="float16 or bfloat16, got 'bfloat16'"):
        Savings(unet_dtype="bfloat16")
    editor = minibaret.load(savings=Savings(unet_dtype=torch.bfloat16))
    result = editor.edit(dog(128, 128), TEXT, editor.settings(steps=1, inner_steps=0))
    assert str(result.savings) == "UNet in bfloat16" and editor.model.unet.dtype == torch.bfloat16
    assert editor.model.vae.quant_conv.weight.dtype == torch.float32


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_an_edit_from_a_finished_inversion_is_planned_in_its_dtype_and_without_tuning(dtype):
    making = minibaret.load(savings=Savings(unet_dtype=dtype))
    settings = making.settings(steps=2, inner_steps=1, inversion_text="null")
    inversion = making.invert(dog(128, 128), TEXT, settings)
    work = Work(making.config, making.model.parameter_counts(), (128, 128), 1, False, torch.float32, CPU)
    work = dataclasses.replace(work, rows=6)
    for limit in (10**11, estimate(work, Savings(True, True, True, dtype, max_rows=1))):
        saving = minibaret.load(memory_limit=limit)
        result = saving.edit(dog(128, 128), TEXT, pictures=(), inversion=inversion)
        assert result.savings.unet_dtype == dtype and result.memory_estimate <= limit
    with pytest.raises(InputError, match="cannot be kept"):  # from the trajectory alone: its text is tuned
        saving.edit(dog(128, 128), "a brown dog sitting on grass", pictures=(), inversion=inversion)


def test_a_summary_says_what_was_taken(tmp_path, capsys):
    dog(128, 128).save(tmp_path / "dog.png")
    arguments = ["edit", str(tmp_path / "dog.png"), TEXT, "-o", str(tmp_path / "out.png"), "--steps", "1"]
    model = OnDemandModel(MINIATURE_FOLDER)
    work = Work(model.config, model.parameter_counts(), (128, 128), 4, False, torch.float32, CPU)
    least = int(estimate(work, Savings(on_demand=True)) / 1e6) + 1
    assert main([*arguments, "--inner-steps", "0", "--memory", f"{least}M"]) == 0
    said = capsys.readouterr().out
    assert "peak memory" in said and "savings: networks on demand" in said
