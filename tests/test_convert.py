"""`minibaret convert`: any weights, as a folder in one dtype."""

import hashlib
import json

import pytest
import torch

import minibaret
from minibaret import InputError
from minibaret.bench.random_weights import TINY, write_folder
from minibaret.cli import main
from minibaret.weights import MINIATURE_FOLDER, convert, inspect, load_model
from minibaret.weights.files import open_tensors

PARTS = ("unet", "vae", "text_encoder")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_folder_is_the_same_model_in_that_dtype(tiny, tmp_path, dtype):
    convert(tiny, tmp_path / "to", dtype)
    for computed in {torch.float32, getattr(torch, dtype)}:
        found, wanted = load_model(tmp_path / "to", dtype=computed), load_model(tiny, dtype=getattr(torch, dtype))
        for part in PARTS:
            weights = getattr(found, part).state_dict()
            for name, weight in getattr(wanted, part).state_dict().items():
                assert torch.equal(weights[name], weight.to(computed)), name
    assert found.tokenizer.vocabulary == wanted.tokenizer.vocabulary
    for part in PARTS:  # every tensor begins where its dtype may, and is used where it lies
        assert all(tensor.aligned for tensor in open_tensors(tmp_path / "to" / f"{part}.safetensors").values())


def test_int8_errs_by_half_a_step_of_each_channel(tiny, tmp_path):
    """But where that would be worse than to clip a few; what errs most, and what has a single dimension, is kept."""
    convert(tiny, tmp_path / "to", "int8")
    stored = open_tensors(tmp_path / "to" / "unet.safetensors")
    weights, found = load_model(tiny).unet.state_dict(), load_model(tmp_path / "to").unet.state_dict()
    numbers = sum(weight.numel() for weight in weights.values())
    whole = sum(weight.numel() for name, weight in weights.items() if name + ".scale" not in stored)
    assert 0 < whole / numbers < 0.06
    for name, weight in weights.items():
        error = (found[name] - weight).flatten(1) if weight.dim() > 1 else found[name] - weight
        if name + ".scale" in stored:
            largest = weight.flatten(1).abs().amax(1)
            step = largest / 127
            assert stored[name].dtype == torch.int8 and (stored[name + ".scale"].read() <= step * 1.0001).all()
            plain = (weight.flatten(1) / step[:, None]).round() * step[:, None] - weight.flatten(1)
            assert (error.square().sum(1) <= plain.square().sum(1) * 1.0001 + 1e-12).all()
            assert (error.abs().amax(1) <= 0.31 * largest).all()
        else:
            assert torch.equal(found[name], weight.half().float())


@torch.no_grad()
def test_int8_of_the_miniature_errs_by_a_hundredth(editor, tmp_path, within):
    """40 dB at every step: relative root mean square error of the noise."""
    convert(MINIATURE_FOLDER, tmp_path / "to", "int8")
    unet = load_model(tmp_path / "to").unet
    latents = torch.randn(2, 4, 16, 16)
    context = torch.cat([editor.sd.embed("a brown dog standing on grass"), editor.sd.embed("")])
    for timestep in (981, 481, 1):
        wanted = editor.model.unet(latents, torch.tensor(timestep), context)
        error = (unet(latents, torch.tensor(timestep), context) - wanted).norm() / wanted.norm()
        within(f"int8, the noise at t = {timestep}", error.item(), 1e-2)
    edited = minibaret.load(tmp_path / "to")
    assert edited.config.defaults == editor.config.defaults


def test_it_says_what_it_was_made_of(tiny, tmp_path):
    convert(tiny, tmp_path / "to", "bfloat16")
    origin = json.loads((tmp_path / "to" / "config.json").read_text())["origin"]
    wanted = {f"{part}.safetensors": (tiny / f"{part}.safetensors").read_bytes() for part in PARTS}
    assert origin == {name: hashlib.sha256(content).hexdigest() for name, content in wanted.items()}
    lines = list(inspect(tmp_path / "to"))
    assert f"  converted     from unet.safetensors, SHA-256 {origin['unet.safetensors']}" in lines
    assert any(line.split()[0] == "unet" and "bfloat16" in line for line in lines)


def test_a_conversion_that_was_stopped_is_no_model_and_can_begin_anew(tiny, tmp_path):
    def stop(part: str, done: int, total: int) -> None:
        if part == "vae":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(tiny, tmp_path / "to", "float16", watch=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["to.part"]
    convert(tiny, tmp_path / "to", "float16")
    assert load_model(tmp_path / "to").config.name == "tiny"
    assert [path.name for path in tmp_path.iterdir()] == ["to"] and not list((tmp_path / "to").glob(".*"))


def test_a_command_that_was_stopped_says_what_is_there(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("minibaret.progress.ProgressBars.count", interrupt)
    folder = tmp_path / "to"
    assert main(["convert", str(tiny), "-o", str(folder), "--dtype", "float16"]) == 130
    said = f"stopped; {folder}.part has a part of it, which the same command begins anew"
    assert capsys.readouterr().err == f"minibaret: {said}\n" and (tmp_path / "to.part").is_dir()


def interrupt(*_) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("dtype", "place", "said"),
    [
        ("int4", "to", "dtype must be one of bfloat16, float16, float32, int8, got 'int4'"),
        ("int8", ".", "exists already: name a folder that is yet to be made"),
        ("int8", "config.json", "exists already: name a folder that is yet to be made"),
    ],
)
def test_what_cannot_be_is_one_sentence(tiny, tmp_path, capsys, dtype, place, said):
    (tmp_path / "config.json").touch()
    assert main(["convert", str(tiny), "-o", str(tmp_path / place), "--dtype", dtype]) == 2
    assert said in capsys.readouterr().err


def test_numbers_too_large_for_float16_are_refused(tmp_path):
    folder = write_folder(tmp_path / "from", TINY)
    content = bytearray((folder / "vae.safetensors").read_bytes())
    content[-4:] = torch.tensor(1e6).numpy().tobytes()
    (folder / "vae.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=r"vae: \S+ has numbers that are too large for float16"):
        convert(folder, tmp_path / "to", "float16")


def test_int8_without_its_scale_is_damaged(tiny, tmp_path):
    from safetensors.torch import load_file, save_file

    convert(tiny, tmp_path / "to", "int8")
    path = tmp_path / "to" / "unet.safetensors"
    tensors = load_file(path)
    del tensors[next(name for name in tensors if name.endswith(".scale"))]
    save_file(tensors, path)
    with pytest.raises(InputError, match="is int8, but has no scale that fits"):
        load_model(tmp_path / "to")


def test_the_command(tiny, tmp_path, capsys):
    assert main(["convert", str(tiny), "-o", str(tmp_path / "to"), "--dtype", "bfloat16"]) == 0
    size = sum(file.stat().st_size for file in (tmp_path / "to").iterdir())
    assert capsys.readouterr().out == f"{tmp_path / 'to'}: bfloat16, {size:,} bytes\n"
