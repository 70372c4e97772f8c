"""What people pass from Python: pictures of every kind; anything else of the wrong type is one sentence."""

import io
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from runs import OTHER, PROMPT, QUICK
from safetensors.torch import load, save

import minibaret
from minibaret import InputError
from minibaret.origin import digest


def test_pictures_of_every_kind(small, picture):
    content = io.BytesIO()
    picture.save(content, "PNG")
    wanted = small.edit(picture, PROMPT, **QUICK).image.tobytes()
    for same in (np.asarray(picture), content.getvalue(), content):
        assert small.edit(same, PROMPT, **QUICK).image.tobytes() == wanted


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"image": None}, "a picture was wanted, as a path, bytes"),
        ({"image": torch.zeros(3, 8, 8)}, "a picture was wanted, as a path, bytes, .* got Tensor"),
        ({"method": {"steps": 2}}, "a method must be one of baret, "),
        ({"method": None}, "a method must be one of baret, .*, got None"),
        ({"source_prompt": b"a dog"}, "a prompt must be valid UTF-8 text"),
        ({"size": 128}, r"a size must be two whole numbers, \(width, height\), got 128"),
        ({"size": ("128", "128")}, r"a size must be two whole numbers, .* got \('128', '128'\)"),
        ({"size": (128.0, 128.0)}, "a size must be two whole numbers"),
        ({"size": (1, 2, 3)}, "a size must be two whole numbers"),
        ({"size": (2**31, 128)}, "width and height must be at most 8,192 pixels, got 2147483648×128"),
        ({"fit": 5}, "fit must be one of crop, pad, stretch, got 5"),
        ({"maps": "dog"}, "maps must be a MapRequest, got str"),
        ({"inversion": "dog.safetensors"}, r"an Inversion was wanted, such as load_inversion\(path\) gives, got str"),
        ({"preset": 5}, "a preset must be one of paper, fast, got 5"),
        ({"steps": "2"}, "steps must be a whole number"),
        ({"unknown": 1}, "baret has no unknown; what it has: steps, "),
    ],
)
def test_the_wrong_type_is_one_sentence_before_any_work(small, picture, calls, options, said):
    with pytest.raises(InputError, match=said) as caught:
        small.edit(**{"image": picture, "prompt": PROMPT, **options})
    assert "\n" not in str(caught.value) and not calls


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda editor, picture: minibaret.load(5), "weights must be a path, got int"),
        (lambda editor, picture: minibaret.load(tokenizer=b"x"), "tokenizer must be a path, got bytes"),
        (lambda editor, picture: minibaret.load(savings="all"), "savings must be a minibaret.Savings, got str"),
        (lambda editor, picture: minibaret.load_inversion(None), "an inversion file must be a path, got NoneType"),
        (lambda editor, picture: editor.invert(picture, PROMPT, file=5), "file must be a path, got int"),
    ],
)
def test_paths_that_are_none(small, picture, calls, call, said):
    with pytest.raises(InputError, match=said):
        call(small, picture)
    assert not calls


def test_numbers_of_numpy_are_a_size(small, picture):
    assert small.edit(picture, PROMPT, size=np.array([48, 32]), **QUICK).image.size == (48, 32)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_a_mode_without_gradients_around_it_changes_nothing(small, picture, mode):
    wanted = small.edit(picture, PROMPT, **QUICK).image.tobytes()
    with mode():
        assert small.edit(picture, PROMPT, **QUICK).image.tobytes() == wanted
        assert len(list(small.steps(picture, PROMPT, **QUICK))) == 12
        assert small.invert(picture, PROMPT, **QUICK).items("target embeddings")
        steps, settings = minibaret.load(device="cpu"), {**QUICK, "steps": 1, "inner_steps": 1}
        assert steps.edit(picture, PROMPT, **settings).summary()["gradient_passes"] == 1  # weights that were read there
        assert torch.is_inference_mode_enabled() == (mode is torch.inference_mode)


@pytest.mark.usefixtures("one_thread")
def test_two_threads_on_one_editor(small, picture):
    prompts = [PROMPT, OTHER] * 3
    wanted = [small.edit(picture, prompt, **QUICK).image.tobytes() for prompt in prompts]
    with ThreadPoolExecutor(3) as threads:
        found = threads.map(lambda prompt: small.edit(picture, prompt, **QUICK).image.tobytes(), prompts)
        assert list(found) == wanted


# An inversion file with odd content, signed as if a minibaret had written it


@pytest.fixture
def signed(small, picture, tmp_path):
    """Writes an inversion's file with its parts changed: called with functions that change origin, lists or tensors."""
    path = tmp_path / "odd.safetensors"
    small.invert(picture, PROMPT, file=path, **QUICK)
    data = path.read_bytes()
    metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    parts = {"origin": json.loads(metadata["origin"]), "lists": json.loads(metadata["lists"]), "tensors": load(data)}

    def write(part, change):
        change(parts[part])
        metadata.update({name: json.dumps(parts[name]) for name in ("origin", "lists")})
        metadata["sha256"] = digest(metadata["origin"] + metadata["lists"], sorted(parts["tensors"].items()))
        path.write_bytes(save(parts["tensors"], metadata))
        return path

    return write


def changed(name: str, value):
    return lambda part: part.update({name: value})


START = "trajectory.0.0.0"


@pytest.mark.parametrize(
    ("part", "change", "said"),
    [
        ("origin", changed("size", [32]), "keeps something else"),
        ("origin", changed("size", [32, "32"]), "keeps something else"),
        ("origin", changed("fit", ["crop"]), "keeps something else"),
        ("origin", changed("dtype", "float32\nand more"), "keeps something else"),
        ("origin", changed("weights", "all"), "keeps something else"),
        ("lists", lambda lists: lists[0]["recipe"].update(tolerance=["a", "b"]), "keeps something else"),
        ("lists", lambda lists: lists[0]["recipe"].update({"inversion prompt": {"text": 5}}), "keeps something else"),
        ("lists", lambda lists: lists[0].update(recipe=[1]), "keeps something else"),
        ("lists", lambda lists: lists.append(5), "keeps something else"),
        (
            "lists",
            lambda lists: lists[0]["recipe"].update(steps="a\nb"),
            "steps must be a whole number|does not belong",
        ),
        (
            "lists",
            lambda lists: lists[0]["recipe"].update(steps=10**30),
            "steps must be a whole number|does not belong",
        ),
        ("tensors", changed(START, torch.zeros(4, dtype=torch.int32)), "keeps something else"),
        ("tensors", changed(START, torch.zeros(())), "keeps something else"),
        ("tensors", changed(START, torch.zeros(1, 4, 9, 9)), "is damaged: its trajectory has other shapes"),
        (
            "tensors",
            changed("trajectory.0.1.0", torch.zeros(1, 4, 9, 9)),
            "is damaged: its trajectory has other shapes",
        ),
        ("tensors", changed("target embeddings.1.0.2", torch.zeros(())), "keeps something else"),
        ("tensors", lambda tensors: tensors.pop("trajectory.0.2.0"), "keeps something else"),
        ("tensors", lambda tensors: tensors.update(more=torch.zeros(1)), "keeps something else"),
    ],
)
def test_an_inversion_file_with_odd_content(small, picture, signed, part, change, said):
    path = signed(part, change)
    with pytest.raises(InputError, match=said) as caught:
        small.edit(picture, PROMPT, inversion=minibaret.load_inversion(path), **{**QUICK, "guidance": 7.5})
    assert "\n" not in str(caught.value)


def test_an_inversion_file_that_is_a_link_to_nowhere(tmp_path):
    (tmp_path / "dog.safetensors").symlink_to("gone.safetensors")
    with pytest.raises(InputError, match=r"dog\.safetensors is a link to gone\.safetensors, which is not there"):
        minibaret.load_inversion(tmp_path / "dog.safetensors")


@pytest.mark.parametrize("overwrite", [True, False])
def test_an_inversion_that_came_to_be_meanwhile(tmp_path, small, picture, overwrite):
    file = tmp_path / "dog.safetensors"

    def another_run(step) -> None:
        file.write_bytes(b"another run's")

    options = {"file": file, "overwrite": overwrite, "watch": another_run, **QUICK}
    if overwrite:
        small.invert(picture, PROMPT, **options)
        assert [path.name for path in tmp_path.iterdir()] == [file.name] and file.stat().st_size > 1000
        return
    with pytest.raises(InputError, match="was written by another run meanwhile; pass --force to overwrite it"):
        small.invert(picture, PROMPT, **options)
    assert file.read_bytes() == b"another run's"
    file.unlink()
    calls = []
    assert small.invert(picture, PROMPT, file=file, watch=calls.append, **QUICK) and not calls  # nothing was lost


def test_an_edits_summary_says_what_was_done_about_a_profile(small):
    picture = Image.new("RGB", (32, 32), (200, 50, 90))
    assert "colours" not in small.edit(picture, PROMPT, **QUICK).summary()
    picture.info["icc_profile"] = b"no profile"
    summary = small.edit(picture, PROMPT, **QUICK).summary()
    assert summary["colours"] == "a colour profile that could not be used was ignored"
