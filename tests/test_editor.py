"""What `load` and the editor refuse, and what an inversion says of itself."""

import pytest
import torch
from PIL import Image
from torch import nn

import minibaret
from minibaret import origin
from minibaret.models.tokenizer import ClipTokenizer


@pytest.mark.parametrize("device", ["meta", "mps", "xpu", "tpu", "", "cuda:x", None])
def test_devices_that_this_project_does_not_know(device):
    with pytest.raises(minibaret.InputError, match=f"device must be auto, cpu, cuda or cuda:N, got {device!r}"):
        minibaret.load(device=device)


def test_a_gpu_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(minibaret.InputError, match="device cuda:2 was wanted, but the last one here is cuda:1"):
        minibaret.load(device="cuda:2")


def test_a_text_that_is_not_unicode(editor):
    with pytest.raises(minibaret.InputError, match="the text must be valid UTF-8"):
        editor.embed("a dog \udcff")


def test_a_picture_whose_numbers_overflow_is_refused(editor):
    with pytest.raises(minibaret.InputError, match="they overflow in float32: try another dtype"):
        editor.decode(torch.full((1, 4, 4, 4), float("nan")))


@pytest.mark.parametrize("pictures", [("trasition",), "transition"])
def test_pictures_that_there_are_not(editor, pictures):
    said = "pictures must be a tuple with names of reconstruction, transition, edit, got .*sition"
    with pytest.raises(minibaret.InputError, match=said):
        editor.edit(Image.new("RGB", (128, 128)), "a dog", pictures=pictures)


def test_an_inversion_that_is_only_begun_has_no_loss_yet():
    begun = origin.Origin("", (32, 32), "crop", "", (), {}, "float32", {"steps": 4, "inner_steps": 2})
    summary = minibaret.Inversion(begun, (torch.zeros(1, 4, 4, 4),), ()).summary()
    assert summary == {"inner_iterations": 0, "inner_iterations_allowed": 8, "last_loss": None}


def test_the_dtype_of_an_origin_is_the_unets_in_whatever_order_the_networks_are_read(monkeypatch):
    def part(name: str) -> nn.Module:
        network = nn.Linear(2, 2, dtype=torch.bfloat16 if name == "unet" else torch.float32)
        network.config = name
        return network

    monkeypatch.setattr(origin, "READING_ORDER", ("unet", "vae", "text_encoder"))
    picture, settings = Image.new("RGB", (8, 8)), minibaret.Settings(tolerance=[0.0, 0.0])
    found = origin.Origin.of(part, ClipTokenizer([]), picture, "crop", "a", settings)
    assert found.dtype == "bfloat16" and origin.Origin.from_json(found.to_json()) == found
