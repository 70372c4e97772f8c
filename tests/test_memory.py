"""Less memory, the same edit."""

import dataclasses
import platform
import re
import subprocess
import sys
from itertools import zip_longest
from pathlib import Path

import pytest
import torch
from PIL import Image
from runs import OTHER, PROMPT, stop_after

import minibaret
from minibaret import InputError, Savings, loading, tiled_vae
from minibaret.bench.common import peak_bytes
from minibaret.bench.random_weights import TINY, write_folder
from minibaret.images import to_pixels
from minibaret.inversion import load_inversion, unfinished_path
from minibaret.memory import Work, estimate, in_words, parse_limit, peak_memory, plan, unet_layers
from minibaret.models.configs import SD15, VAEConfig
from minibaret.models.unet import UNet
from minibaret.models.vae import VAE
from minibaret.weights import MINIATURE_FOLDER, OnDemandModel, convert
from minibaret.weights.miniature.config import MINIATURE
from minibaret.weights.miniature.world.drawing import render
from minibaret.weights.miniature.world.scene import Scene

CPU = torch.device("cpu")
NUMBERS = {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480}
BRIEF = {"steps": 2, "inner_steps": 1}


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


# Networks on demand


def test_networks_are_read_when_used_and_freed():
    model = OnDemandModel(MINIATURE_FOLDER)
    assert there(model) == set()
    vae = model.vae
    before = vae.decoder.conv_in.weight.clone()
    assert model.unet.conv_in.weight.dtype == torch.float32 and there(model) == {"unet", "vae"}
    assert model.free_all_but("text_encoder", torch.float32, False) and vae.decoder.conv_in.weight.is_meta
    assert there(model) == set() and not model.free_all_but("text_encoder", torch.float32, False)
    assert torch.equal(model.vae.decoder.conv_in.weight, before) and there(model) == {"vae"}
    half, whole = model.network("unet", torch.bfloat16), model.unet
    assert half.conv_in.weight.dtype == torch.bfloat16 and whole.conv_in.weight.dtype == torch.float32
    assert not any(weight.requires_grad for weight in half.parameters())


def there(model: OnDemandModel) -> set[str]:
    return {part for part, *_ in model._here}


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
    plain = editor.edit(dog(128, 128), PROMPT, **BRIEF)
    saving = minibaret.load(savings=Savings(on_demand=True, tiled_vae=True, checkpointing=True))
    for _ in range(2):  # the second finds everything freed
        result = saving.edit(dog(128, 128), PROMPT, **BRIEF)
        assert (to_pixels(result.image) - to_pixels(plain.image)).abs().max() * 127.5 <= 2
        assert there(saving.model) == {"vae"}
    assert str(result.savings) == "networks on demand, tiled VAE, gradient checkpointing"


# Streamed weights


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """A folder in float32 of every block of Stable Diffusion 1.5, narrow."""
    return write_folder(tmp_path_factory.mktemp("tiny") / "float32", TINY)


def noise_and_gradient(unet: UNet, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    unet.set_checkpointing(True)
    numbers = torch.Generator().manual_seed(1)
    latents, context = torch.randn(2, 4, 16, 16, generator=numbers), torch.randn(2, 77, 24, generator=numbers)
    context.requires_grad_()
    noise = unet(latents.to(dtype), torch.tensor(481), context.to(dtype)).float()
    return noise.detach(), torch.autograd.grad(noise.square().sum(), context)[0]


def test_checkpointing_leaves_every_bit_of_the_gradient(unet, one_thread):
    """Also of the weights, and where a tensor goes two ways."""
    found = []
    for on in (False, True):
        unet.set_checkpointing(on)
        context = torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(2)).requires_grad_()
        unet.requires_grad_().zero_grad()
        unet(torch.ones(2, 4, 16, 16), torch.tensor(5), context).square().sum().backward()
        found.append([context.grad, *(weight.grad for weight in unet.parameters())])
    assert all(torch.equal(*pair) for pair in zip(*found)) and found[0][0].abs().max() > 0


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_streamed_weights_give_the_same_bits(tiny, tmp_path, one_thread, stored, dtype):
    """Where they lie, and converted; forwards and backwards, and again."""
    folder = tiny
    if stored != "float32":
        convert(tiny, folder := tmp_path / stored, stored)
    model = OnDemandModel(folder, dtype=dtype)
    streamed = model.network("unet", streamed=True)
    for _ in range(2):
        found, wanted = noise_and_gradient(streamed, dtype), noise_and_gradient(model.unet, dtype)
        assert torch.equal(found[0], wanted[0]) and torch.equal(found[1], wanted[1]) and found[1].abs().max() > 0


def test_a_streamed_edit_is_the_same(tiny, picture, one_thread):
    arguments = picture, PROMPT, "baret"
    options = {"size": (64, 64), "steps": 2, "inner_steps": 2}
    found = minibaret.load(tiny, dtype="float32", savings=Savings(streamed=True)).edit(*arguments, **options)
    plain = minibaret.load(tiny, dtype="float32", savings=Savings(checkpointing=True)).edit(*arguments, **options)
    assert str(found.savings) == "streamed weights" and found.counts.gradient_passes == 4
    assert torch.equal(found.latents["edit"], plain.latents["edit"])


def test_streamed_weights_have_the_digest_of_the_others(tiny, picture):
    options = {"size": (64, 64), "steps": 1, "inner_steps": 0}
    kept = minibaret.load(tiny).invert(picture, PROMPT, **options)
    streamed = minibaret.load(tiny, savings=Savings(streamed=True))
    assert streamed.edit(picture, PROMPT, inversion=kept, **options).counts.gradient_passes == 0


def test_interleaved_edits_of_one_editor_do_not_disturb_each_other(tiny, picture, one_thread):
    """Three at once, each with savings of its own, step by step in turn."""
    options = {"size": (64, 64), "steps": 2, "inner_steps": 1}
    model = OnDemandModel(tiny)
    ways = [Savings(), Savings(on_demand=True, unet_dtype=torch.bfloat16), Savings(streamed=True)]
    alone = [minibaret.Editor(OnDemandModel(tiny), way).edit(picture, PROMPT, **options) for way in ways]
    works = [minibaret.Editor(model, way).steps(picture, PROMPT, **options) for way in ways]
    together: dict[int, minibaret.Result] = {}
    while len(together) < len(works):
        for number, work in enumerate(works):
            if number not in together:
                try:
                    next(work)
                except StopIteration as end:
                    together[number] = end.value
    for number, result in enumerate(alone):
        assert torch.equal(result.latents["edit"], together[number].latents["edit"])


HELD = """
import sys
import torch
from minibaret.memory import hold, resident
if sys.argv[1] == "held":
    hold(10**9, torch.device("cpu"))
del (large := [torch.ones(7 * 10**6)])[:]  # 28 MB: once it is freed, malloc keeps blocks of that size
blocks = [torch.ones(2 * 10**6) for _ in range(40)]
before = resident()
del blocks[::2]  # 160 MB, and the blocks between them stay
print(before - resident())
"""


@pytest.mark.skipif(sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="of glibc's malloc")
def test_a_limit_holds_malloc_to_what_is_in_use():
    given_back = {}
    for way in ("held", "as it is"):
        done = subprocess.run([sys.executable, "-c", HELD, way], check=True, capture_output=True, text=True)
        given_back[way] = int(done.stdout)
    assert given_back["held"] > 150 * 10**6 and given_back["as it is"] < 50 * 10**6


def test_what_tunes_copies_of_networks_refuses_streamed_weights(tiny, picture):
    editor = minibaret.load(tiny, savings=Savings(streamed=True))
    with pytest.raises(InputError, match="imagic tunes copies of networks, which cannot be made of streamed weights"):
        editor.edit(picture, PROMPT, "imagic", size=(64, 64), steps=1)


def test_a_picture_from_noise_keeps_a_limit_too(tiny):
    editor = minibaret.load(tiny, memory_limit="1M")
    with pytest.raises(InputError, match="a memory limit of 1M cannot be kept"):
        editor.generate(PROMPT, size=(64, 64), steps=1)


STREAMED = """
import sys
from pathlib import Path
import torch
from minibaret.memory import peak_memory, resident
from minibaret.weights import OnDemandModel
model = OnDemandModel(Path(sys.argv[1]), dtype=getattr(torch, sys.argv[2]))
if sys.argv[3] == "streamed":  # with as much data as it should need at most, which read-only pages are not
    import resource
    data = int(Path("/proc/self/status").read_text().partition("VmData:")[2].split()[0]) * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (data + 300 * 10**6,) * 2)
unet = model.network("unet", streamed=sys.argv[3] == "streamed")
unet.set_checkpointing(True)
context = torch.zeros(1, 77, 24, dtype=model.dtype)
with torch.no_grad():
    model.network("unet", streamed=True)  # what the first forward adds to the process is not counted
before = resident()
context.requires_grad_()
noise = unet(torch.zeros(1, 4, 8, 8, dtype=model.dtype), torch.tensor(481), context)
torch.autograd.grad(noise.sum(), context)
print(peak_memory(torch.device("cpu")) - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_streamed_weights_are_in_memory_a_layer_at_a_time(tmp_path):
    """400 MB of them, where they lie and converted, where the process may not have as much data."""
    unet = dataclasses.replace(TINY.unet, channels=(128, 256, 512, 512), groups=32)
    write_folder(tmp_path, dataclasses.replace(TINY, unet=unet))
    peaks = {}
    for dtype, way in (("float32", "whole"), ("float32", "streamed"), ("bfloat16", "streamed")):
        arguments = [sys.executable, "-c", STREAMED, str(tmp_path), dtype, way]
        peaks[dtype, way] = int(subprocess.run(arguments, check=True, capture_output=True, text=True).stdout)
    assert peaks["float32", "whole"] > 4 * OnDemandModel(tmp_path).parameter_counts()["unet"] > 300e6
    assert max(peaks["float32", "streamed"], peaks["bfloat16", "streamed"]) < 0.5 * peaks["float32", "whole"]


GROWTH = """
import sys
import minibaret
from minibaret.memory import resident
from minibaret.weights.miniature.world.drawing import render
from minibaret.weights.miniature.world.scene import Scene
editor = minibaret.load(sys.argv[1], memory_limit="1500M")
picture = render(Scene(1, "dog", "standing", "brown", "grass"))
after = []
for number in range(20):
    size = [(64, 64), (128, 64), (64, 128), (128, 128), (192, 64)][number % 5]
    editor.edit(picture, "a brown dog", size=size, steps=1, inner_steps=1)
    after.append(resident())
print(max(after[15:]) / max(after[:10]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_twenty_edits_of_five_sizes_do_not_grow(tiny):
    done = subprocess.run([sys.executable, "-c", GROWTH, str(tiny)], check=True, capture_output=True, text=True)
    assert float(done.stdout) < 1.02


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_package_takes_little_memory_before_it_works():
    code = (
        "import minibaret; minibaret.Editor, minibaret.load; from minibaret.memory import resident; print(resident())"
    )
    assert int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout) < 0.3e9


@pytest.mark.parametrize("config", [SD15.unet, MINIATURE.unet, TINY.unet])
def test_the_layers_of_the_estimate_are_the_networks(config):
    with torch.device("meta"):
        unet = UNet(config)
    found = []
    for block in unet.blocks:
        layers = [layer for pair in zip_longest(block.resnets, block.attentions) for layer in pair if layer]
        layers += [*getattr(block, "downsamplers", ()), *getattr(block, "upsamplers", ())]
        for layer in layers:
            matrices = [weight for weight in layer.parameters() if weight.dim() > 1]
            found.append((block.level, sum(w.numel() for w in matrices), max(w.numel() for w in matrices)))
    assert [(layer.level, layer.weights, layer.largest) for layer in unet_layers(config)] == found


def test_a_preview_between_two_steps_leaves_the_edit_as_it_was(editor):
    plain = editor.edit(dog(128, 128), PROMPT, **BRIEF)
    saving, previews = minibaret.load(savings=Savings(on_demand=True)), []

    def preview(step) -> None:
        previews.append(saving.sd.decode(step.latents))

    whole = saving.edit(dog(128, 128), PROMPT, watch=preview, **BRIEF)
    assert len(previews) == 6 and whole.image.tobytes() == plain.image.tobytes() == previews[-1].tobytes()
    inversion = saving.invert(dog(128, 128), PROMPT, watch=preview, **BRIEF)
    assert len(inversion.items("target embeddings")) == 2 and len(previews) == 10


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
    assert savings == Savings(True, True, True, streamed=True)
    assert plan(13 * 10**8, WORK, Savings(), True) == Savings(True, True, True, streamed=True)  # the same numbers
    asked = Savings(tiled_vae=True)
    assert plan(10**11, WORK, asked, True) == asked
    assert plan(4 * 10**9, WORK, asked, True).tiled_vae


def test_a_dtype_that_was_chosen_is_kept():
    with pytest.raises(InputError, match=r"needs \d+M at least"):
        plan(6 * 10**8, WORK, Savings(), False)
    half = dataclasses.replace(WORK, dtype=torch.float16)
    assert plan(4 * 10**9, half, Savings(), True).unet_dtype is None


def test_every_saving_lowers_the_estimate_where_it_applies():
    on_demand = Savings(on_demand=True)
    alone = estimate(WORK, on_demand)
    assert alone < estimate(WORK, Savings())
    one_row = dataclasses.replace(WORK, rows=1)
    assert estimate(one_row, dataclasses.replace(on_demand, checkpointing=True)) < estimate(one_row, on_demand)
    copies = dataclasses.replace(WORK, copies=NUMBERS["unet"])
    assert estimate(copies, Savings()) - estimate(WORK, Savings()) >= 16 * NUMBERS["unet"]
    assert estimate(dataclasses.replace(WORK, rows=60, tuning=False), Savings()) > estimate(WORK, Savings())
    large = dataclasses.replace(WORK, size=(1536, 1536), tuning=False, rows=1)
    assert estimate(large, dataclasses.replace(on_demand, tiled_vae=True)) < estimate(large, on_demand)
    assert estimate(WORK, dataclasses.replace(on_demand, unet_dtype=torch.bfloat16)) < alone


def test_a_limit_is_refused_before_any_weight_is_read(monkeypatch):
    editor = minibaret.load(memory_limit="100M")
    with pytest.raises(
        InputError, match=r"100M cannot be kept: this edit at 128×128 needs [\d.]+[MG] at least \(with netw"
    ):
        editor.edit(dog(128, 128), PROMPT)
    assert there(editor.model) == set()


def test_a_dtype_of_the_unet_alone_takes_effect_without_a_limit():
    with pytest.raises(InputError, match="float16 or bfloat16, got 'bfloat16'"):
        Savings(unet_dtype="bfloat16")
    editor = minibaret.load(savings=Savings(unet_dtype=torch.bfloat16))
    result = editor.edit(dog(128, 128), PROMPT, steps=1, inner_steps=0)
    assert str(result.savings) == "UNet in bfloat16" and editor.sd.unet.dtype == torch.bfloat16
    assert editor.model.vae.quant_conv.weight.dtype == torch.float32


def least_without_tuning(editor: minibaret.Editor, dtype: torch.dtype | None = None) -> int:
    parameters = editor.model.parameter_counts()
    work = Work(editor.config, parameters, (128, 128), 6, False, torch.float32, CPU, stored=torch.float16)
    return estimate(work, Savings(True, True, True, dtype, streamed=True))


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_an_edit_from_a_finished_inversion_is_planned_in_its_dtype_and_without_tuning(monkeypatch, dtype):
    """With a limit that has room for the rows of an edit, if for nothing else."""
    monkeypatch.setattr(loading, "resident", lambda: 0)
    making = minibaret.load(savings=Savings(unet_dtype=dtype))
    inversion = making.invert(dog(128, 128), PROMPT, inversion_prompt="null", **BRIEF)
    for limit in (10**11, least_without_tuning(making, dtype)):
        saving = minibaret.load(memory_limit=limit)
        result = saving.edit(dog(128, 128), PROMPT, pictures=(), inversion=inversion)
        assert result.savings.unet_dtype == dtype and result.memory_estimate <= limit
    with pytest.raises(InputError, match="cannot be kept"):  # from the trajectory alone: its embedding is tuned
        saving.edit(dog(128, 128), OTHER, pictures=(), inversion=inversion)


def test_an_unfinished_inversion_is_planned_with_the_tuning_that_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "resident", lambda: 0)
    making, file = minibaret.load(), tmp_path / "dog.safetensors"
    with pytest.raises(KeyboardInterrupt):
        making.invert(dog(128, 128), PROMPT, file=file, watch=stop_after(3), **BRIEF)
    begun = load_inversion(unfinished_path(file))
    saving = minibaret.load(memory_limit=least_without_tuning(making))
    with pytest.raises(InputError, match="cannot be kept"):
        saving.edit(dog(128, 128), PROMPT, inversion=begun)
