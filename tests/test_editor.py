"""What `load` and the editor refuse, and what an edit says of itself."""

import subprocess
import sys

import pytest
import torch
from PIL import Image
from runs import OTHER, PROMPT, QUICK

import minibaret
from minibaret import InputError
from minibaret.images import psnr

# Loading


@pytest.mark.parametrize("device", ["meta", "xpu", "tpu", "", "cuda:x", None])
def test_devices_that_this_project_does_not_know(device):
    with pytest.raises(InputError, match=f"device must be auto, cpu, cuda, cuda:N or mps, got {device!r}"):
        minibaret.load(device=device)


def test_a_gpu_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError, match="device cuda:2 was wanted, but the last one here is cuda:1"):
        minibaret.load(device="cuda:2")


def test_compile_hands_the_unet_to_torch_compile(monkeypatch, picture):
    """What it makes of it is its own affair and takes minutes; that the forward traces as one graph is tested with the
    control."""
    asked = []
    monkeypatch.setattr(torch, "compile", lambda call, **options: asked.append(options) or call)
    assert minibaret.load(compile=True).model.unet is not None and asked == [{"dynamic": False}]
    editor = minibaret.load()

    def broken(*_, **__):
        raise RuntimeError("no backend\nsecond line")

    for work in (lambda: editor.generate("a cat", steps=1), lambda: editor.invert(picture, "a cat", steps=1)):
        editor.model.unet.forward = broken
        with pytest.warns(UserWarning, match="runs uncompiled, since torch.compile failed: no backend$"):
            work()
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(InputError, match="needs a C\\+\\+ compiler, but there is no no-such-compiler here"):
        minibaret.load(compile=True, device="cpu")


HEAVY = ("triton", "PIL.ImageShow", "transformers", "diffusers", "matplotlib", "numpy.testing", "sympy")
LATE = ("torch._dynamo", "torch._inductor")  # what torch.compile and torch.optim need


def test_importing_minibaret_imports_nothing_heavy():
    """Beyond what `import torch` brings along."""
    code = (
        "import sys, torch; before = {*sys.modules}; import minibaret; minibaret.load; print(*{*sys.modules} - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported = done.stdout.split()
    assert "minibaret.editor" in imported and not {*HEAVY, *LATE} & {*imported}


# What cannot be edited


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("a dog \udcff", "a prompt must be valid UTF-8 text, got 'a dog .udcff'"),
        (b"a dog", "a prompt must be valid UTF-8 text, got b'a dog'"),
        (None, "a prompt must be valid UTF-8 text, got None"),
        (" \n", "a prompt that says what the picture should show was wanted, got an empty one"),
        ("dog " * 80, "the text has 80 tokens and at most 75 fit"),
    ],
)
def test_a_prompt_that_is_none(small, picture, calls, prompt, said):
    with pytest.raises(InputError, match=said):
        small.edit(picture, prompt)
    with pytest.raises(InputError, match=said):
        small.invert(picture, prompt)
    if prompt is not None and prompt != " \n":
        with pytest.raises(InputError, match=said):
            small.edit(picture, PROMPT, source_prompt=prompt)
    assert not calls


@pytest.mark.parametrize("pictures", ["transition", ("edit", 5), None, 5])
def test_pictures_that_are_not_named(small, picture, calls, pictures):
    with pytest.raises(InputError, match=r'pictures must be a tuple of names of branches, or "all", got .'):
        small.edit(picture, PROMPT, pictures=pictures)
    assert not calls


@pytest.mark.parametrize("size", [(32, 40), (0, 32), (-32, 32), (8, 8)])
def test_sizes_that_the_unet_cannot_halve(small, picture, calls, size):
    with pytest.raises(InputError, match=f"must be multiples of 16 pixels, got {size[0]}×{size[1]}"):
        small.edit(picture, PROMPT, size=size)
    with pytest.raises(InputError, match="fit must be one of crop, pad, stretch, got 'cut'"):
        small.edit(picture, PROMPT, fit="cut")
    assert not calls


def test_a_picture_whose_numbers_overflow_is_refused(editor):
    with pytest.raises(InputError, match="they overflow in float32: try another dtype"):
        editor.sd.decode(torch.full((1, 4, 4, 4), float("nan")))


# What comes back


def test_pictures_are_those_that_were_asked_for_and_that_there_are(small, picture):
    for pictures, names in (
        ((), {"edit"}),
        (("transition",), {"edit", "transition"}),
        (("edit", "source"), {"edit"}),
        ("all", {"edit", "reconstruction", "transition"}),
    ):
        result = small.edit(picture, PROMPT, pictures=pictures, **QUICK)
        assert result.images.keys() == names and result.image is result.images["edit"]
        assert all(image.size == (32, 32) for image in result.images.values())
        assert result.latents.keys() == {"edit", "reconstruction", "transition"}
        assert (result.reconstruction_psnr is None) == ("reconstruction" not in names)


def test_a_summary_counts_what_was_done(small, picture):
    result = small.edit(picture, PROMPT, **{**QUICK, "self_steps": 0.5, "cross_steps": 0.75})
    summary = result.summary()
    assert summary["method"] == "baret" and summary["savings"] == "none"
    assert summary["row_forwards"] == 4 + 4 * (1 + 3) + (5 + 5 + 4 + 2)
    assert summary["gradient_passes"] == summary["inner_iterations"] == 8
    assert summary["seconds"].keys() == {"encode", "inversion", "target-text inversion", "edit", "decode"}
    expected = psnr(result.images["reconstruction"], result.input)
    assert summary["reconstruction_psnr"] == pytest.approx(expected, abs=0.01)
    assert summary["peak_memory"] > 1e8 and summary["memory_estimate"] > 1e8


def test_a_picture_is_a_file_or_a_picture_of_any_size(tmp_path, small, picture):
    picture.save(tmp_path / "dog.png")
    results = [
        small.edit(image, PROMPT, **QUICK) for image in (picture, tmp_path / "dog.png", str(tmp_path / "dog.png"))
    ]
    assert len({result.image.tobytes() for result in results}) == 1
    wide = small.edit(Image.new("L", (70, 20), 200), OTHER, size=(48, 16), fit="stretch", **QUICK)
    assert wide.image.size == wide.input.size == (48, 16)


def test_what_a_watcher_raises_reaches_the_caller(small, picture, calls):
    def watch(step):
        if step.stage == "edit":
            raise LookupError("enough")

    with pytest.raises(LookupError, match="enough"):
        small.edit(picture, PROMPT, watch=watch, **QUICK)
    assert len(calls) == 4 + 4 * 4 + 1


def test_steps_may_be_asked_for_one_by_one(small, picture, calls):
    work = small.steps(picture, PROMPT, **QUICK)
    assert not calls
    assert next(work).stage == "inversion" and len(calls) == 1
    work.close()
    assert len(calls) == 1
