"""Inversions on disk: edits from them are those of an uninterrupted run, bit for bit, and nothing else is accepted."""

import copy
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from inversions import OTHER, TEXT, assert_same_edit, assert_same_inversion, quick
from safetensors.torch import save_file

import minibaret
from minibaret import inversion_file
from minibaret.cli import main
from minibaret.inversion import TunedStep
from minibaret.inversion_file import Inversion, load_inversion
from minibaret.origin import Origin, network_digest

pytestmark = pytest.mark.usefixtures("one_thread")


# From a file


def test_an_edit_from_a_file_is_the_uninterrupted_edit_bit_for_bit(tmp_path, small, picture, calls):
    settings = quick(small)
    whole = small.edit(picture, TEXT, settings)
    small.invert(picture, TEXT, settings, file=tmp_path / "dog.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["dog.safetensors"]
    calls.clear()
    stages = []
    inversion = load_inversion(tmp_path / "dog.safetensors")
    result = small.edit(picture, TEXT, settings, inversion=inversion, watch=lambda step: stages.append(step.stage))
    assert_same_edit(result, whole)
    assert len(calls) == 4 and stages == ["edit"] * 4
    assert "inversion" not in result.seconds and "encode" not in result.seconds


def test_settings_of_the_edit_may_differ_and_those_not_given_are_the_files(tmp_path, small, picture, calls):
    inversion = small.invert(picture, TEXT, quick(small), size=(32, 16), fit="pad")
    calls.clear()
    for changes in (
        {"rigid": True},
        {"transition": (0.6, 0.2), "self_steps": 1.0},
        {"cross_steps": 0.0, "rows": "both"},
    ):
        settings = quick(small, **changes)
        result = small.edit(picture, TEXT, settings, inversion=inversion)
        assert len(calls) == 4
        assert_same_edit(result, small.edit(picture, TEXT, settings, size=(32, 16), fit="pad"))
        calls.clear()
    result = small.edit(picture, TEXT, inversion=inversion)
    assert result.settings == quick(small) and result.image.size == (32, 16) and len(calls) == 4


def test_a_file_holds_what_was_saved(tmp_path):
    inversion = Inversion(
        origin=Origin("ab", (64, 32), "pad", "„Hündin“\n", (1, 2), {"unet": "cd"}, "bfloat16", {"steps": 3}),
        trajectory=tuple(torch.randn(1, 4, 4, 8) for _ in range(4)),
        tuned=tuple(
            TunedStep(torch.randn(1, 77, 24).bfloat16(), torch.randn(1, 4, 4, 8), losses)
            for losses in ((0.1,), (0.1, float("inf"), 1e-45))
        ),
    )
    inversion.save(tmp_path / "a.safetensors")
    loaded = load_inversion(tmp_path / "a.safetensors")
    assert loaded.origin == inversion.origin and loaded.tuned[0].embedding.dtype == torch.bfloat16
    assert_same_inversion(loaded, inversion)


# Another text, other tuning


def test_a_trajectory_of_the_empty_text_serves_any_text(small, picture, calls):
    settings = quick(small, inversion_text="null")
    inversion = small.invert(picture, TEXT, settings)
    expected = small.edit(picture, OTHER, settings)
    calls.clear()
    stages = []
    result = small.edit(picture, OTHER, settings, inversion=inversion, watch=lambda step: stages.append(step.stage))
    assert_same_edit(result, expected)
    assert stages == ["target-text inversion"] * 4 + ["edit"] * 4
    assert len(calls) == 4 * (1 + 3) + 4  # a step: the empty text once, the target's before and after each Adam step
    with pytest.raises(minibaret.InputError, match=r"guidance 7\.5, not 3\.0"):
        small.edit(picture, OTHER, dataclasses.replace(settings, guidance=3.0), inversion=inversion)


def test_invert_takes_the_trajectory_of_an_inversion_and_tunes_again(small, picture, calls):
    settings = quick(small)
    inversion = small.invert(picture, TEXT, settings)
    calls.clear()
    assert_same_inversion(small.invert(picture, TEXT, inversion=inversion), inversion)
    assert not calls
    other = quick(small, guidance=3.0, inner_steps=1, learning_rate=0.1)
    again = small.invert(picture, TEXT, other, inversion=inversion)
    assert len(calls) == 4 * (1 + 2)
    assert_same_inversion(again, small.invert(picture, TEXT, other))
    with pytest.raises(minibaret.InputError, match=f"the text '{TEXT}', not '{OTHER}'"):
        small.invert(picture, OTHER, inversion=inversion)


# What is refused


def test_an_inversion_of_something_else_is_refused_with_what_differs(small, picture, calls):
    inversion = small.invert(picture, TEXT, quick(small))
    dotted = picture.copy()
    dotted.putpixel((64, 64), (255, 0, 255))
    wide = picture.resize((256, 128))
    calls.clear()

    def refusal(image=picture, text=TEXT, editor=small, size=None, fit=None, **changes) -> str:
        with pytest.raises(minibaret.InputError) as caught:
            editor.edit(image, text, quick(editor, **changes), size=size, fit=fit, inversion=inversion)
        assert str(caught.value).startswith("the inversion does not belong to this run: it was made with ")
        return str(caught.value).removeprefix("the inversion does not belong to this run: it was made with ")

    assert refusal(image=dotted) == "another picture"
    assert refusal(size=(16, 32)) == "a picture of 32×32 pixels, not 16×32"
    assert refusal(image=wide, fit="stretch") == "fit crop, not stretch"
    assert refusal(text=OTHER) == f"the text '{TEXT}', not '{OTHER}'"
    assert refusal(steps=5) == "steps 4, not 5"
    assert refusal(guidance=3.0) == "guidance 7.5, not 3.0"
    assert refusal(inversion_text="null") == "inversion text target, not null"
    assert refusal(inner_steps=1) == "inner steps 2, not 1"
    assert refusal(learning_rate=0.5) == "learning rate 0.01, not 0.5"
    assert refusal(tolerance=(0.0, 1e-5)) == "tolerance 0:0, not 0:1e-05"
    assert refusal(image=dotted, steps=5) == "another picture; steps 4, not 5"
    assert not calls


def test_every_part_of_the_model_counts(small, picture):
    inversion = small.invert(picture, TEXT, quick(small))

    def refusal(**parts) -> str:
        with pytest.raises(minibaret.InputError) as caught:
            minibaret.Editor(dataclasses.replace(small.model, **parts)).edit(picture, TEXT, inversion=inversion)
        return str(caught.value).partition("made with ")[2]

    for part in ("unet", "text_encoder", "vae"):
        network = copy.deepcopy(getattr(small.model, part))
        assert network_digest(network) == inversion.origin.weights[part]
        list(network.parameters())[-1].view(-1)[-1] += 1e-6
        assert refusal(**{part: network}) == f"other weights ({part})"
    assert refusal(unet=copy.deepcopy(small.model.unet).bfloat16()) == "dtype float32, not bfloat16"
    assert refusal(tokenizer=lambda text: small.model.tokenizer(text)[::-1]) == "another tokenizer"


def test_the_digest_of_weights_follows_values_and_sizes_not_their_place_in_memory(small):
    unet = small.model.unet
    digest = network_digest(unet)
    assert network_digest(copy.deepcopy(unet).to(memory_format=torch.channels_last)) == digest
    swapped = copy.deepcopy(unet)
    weight = swapped.conv_in.weight
    weight[[0, 1]] = weight[[1, 0]].clone()
    assert network_digest(swapped) != digest
    reheaded = copy.deepcopy(unet)
    reheaded.config = dataclasses.replace(unet.config, heads=4)
    assert network_digest(reheaded) != digest


def test_damaged_files_are_refused_and_left_alone(tmp_path, small, picture):
    path = tmp_path / "dog.safetensors"
    small.invert(picture, TEXT, quick(small), file=path)
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    origin = whole.index(b"grass")
    damaged = [whole[:length] for length in (0, 5, 100, header, header + 1000, len(whole) - 1)]
    for place in (origin, header, len(whole) // 2, len(whole) - 1):
        damaged.append(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    for data in (*damaged, whole + b"\0", b"PK\x03\x04" + whole, np.random.default_rng(0).bytes(5000)):
        path.write_bytes(data)
        with pytest.raises(minibaret.InputError, match=r"dog\.safetensors (is|holds)"):
            load_inversion(path)
        assert path.read_bytes() == data
    save_file({"a": torch.zeros(3)}, path)
    with pytest.raises(minibaret.InputError, match="none that minibaret invert wrote"):
        load_inversion(path)
    save_file({"a": torch.zeros(3)}, path, {"format": "minibaret inversion", "version": "2"})
    with pytest.raises(minibaret.InputError, match="has version 2 of the format; this minibaret reads 1"):
        load_inversion(path)
    tensors, strange = {"trajectory": torch.zeros(1, 1, 4, 2, 2)}, json.dumps({"picture": "ab", "colour": "red"})
    facts = {
        "format": "minibaret inversion",
        "version": "1",
        "origin": strange,
        "sha256": inversion_file._digest(strange, tensors),
    }
    save_file(tensors, path, facts)
    with pytest.raises(minibaret.InputError, match="was written by another version of minibaret"):
        load_inversion(path)
    index = tmp_path / "dog.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"a": path.name}}))
    with pytest.raises(minibaret.InputError, match=r"index\.json is not a safetensors file"):
        load_inversion(index)
    with pytest.raises(minibaret.InputError, match="there is no inversion file"):
        load_inversion(tmp_path / "missing.safetensors")


def test_a_place_where_no_inversion_can_be_kept_is_refused_before_any_work(tmp_path, small, picture, calls):
    picture.save(tmp_path / "dog.png")
    for name, said in (("dog.png", r"must end in \.safetensors"), ("no/dog.safetensors", "there is no folder")):
        with pytest.raises(minibaret.InputError, match=said):
            small.invert(tmp_path / "dog.png", TEXT, quick(small), file=tmp_path / name)
    assert not calls and [path.name for path in tmp_path.iterdir()] == ["dog.png"]


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path, small, picture, monkeypatch):
    file = tmp_path / "dog.safetensors"
    inversion = small.invert(picture, TEXT, quick(small), file=file)
    before = file.read_bytes()

    def full(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(inversion_file, "save_file", full)
    with pytest.raises(minibaret.InputError, match="cannot be written: No space left on device"):
        inversion.save(file)
    assert file.read_bytes() == before and list(tmp_path.iterdir()) == [file]


# The command line, on the shipped miniature

QUICK = ["--steps", "3", "--inner-steps", "1", "--inversion-text", "target", "--width", "32", "--height", "32"]


@pytest.fixture
def dog(tmp_path, picture) -> str:
    picture.save(tmp_path / "dog.png")
    return str(tmp_path / "dog.png")


def refused(capsys, *arguments) -> str:
    assert main(list(arguments)) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("minibaret: ") and said.err.count("\n") == 1
    return said.err


def test_invert_then_edit_writes_the_same_picture(tmp_path, monkeypatch, dog, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["edit", dog, TEXT, "-o", "whole.png", "--sheet", "whole-sheet.png", *QUICK]) == 0
    assert main(["invert", dog, TEXT, "-o", "dog.safetensors", "--json", *QUICK]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["inner_iterations_allowed"] == 3 and summary["output"] == "dog.safetensors"
    edit = ["edit", dog, TEXT, "--inversion-file", "dog.safetensors"]
    for more in ([], QUICK):  # what is not given is the file's
        assert main([*edit, "-o", "edited.png", "--sheet", "sheet.png", "--force", *more]) == 0
        assert Path("edited.png").read_bytes() == Path("whole.png").read_bytes()
        assert Path("sheet.png").read_bytes() == Path("whole-sheet.png").read_bytes()
        assert "dog.safetensors gave the trajectory and the tuned text" in capsys.readouterr().out
    assert main(["maps", *edit[1:], "-o", "maps.png", "--words", "dog"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().err.splitlines()] == ["edit"]
    before = set(tmp_path.iterdir())
    sentence = refused(capsys, *edit, "-o", "no.png", "--steps", "4")
    assert "dog.safetensors does not belong to this run: it was made with steps 3, not 4" in sentence
    assert "text" in refused(capsys, "edit", dog, OTHER, "--inversion-file", "dog.safetensors", "-o", "no.png")
    assert "no inversion file gone" in refused(capsys, "edit", dog, TEXT, "--inversion-file", "gone", "-o", "no.png")
    assert "dog.png is not a safetensors file" in refused(
        capsys, "edit", dog, TEXT, "--inversion-file", dog, "-o", "no.png"
    )
    assert "exists already; pass --force" in refused(capsys, "invert", dog, TEXT, "-o", "dog.safetensors", *QUICK)
    assert "must end in .safetensors" in refused(capsys, "invert", dog, TEXT, "-o", "dog.png", *QUICK)
    assert set(tmp_path.iterdir()) == before


def test_another_text_tunes_again_and_says_so(tmp_path, monkeypatch, dog, capsys):
    monkeypatch.chdir(tmp_path)
    null = [*QUICK, "--inversion-text", "null"]
    assert main(["invert", dog, TEXT, "-o", "dog.safetensors", *null]) == 0
    assert main(["edit", dog, OTHER, "-o", "whole.png", *null]) == 0
    capsys.readouterr()
    assert main(["edit", dog, OTHER, "--inversion-file", "dog.safetensors", "-o", "edited.png"]) == 0
    assert Path("edited.png").read_bytes() == Path("whole.png").read_bytes()
    assert "dog.safetensors gave the trajectory; the text was tuned anew" in capsys.readouterr().out
    assert main(["invert", dog, OTHER, "--inversion-file", "dog.safetensors", "-o", "other.safetensors"]) == 0
    said = capsys.readouterr()
    assert not any(line.startswith("inversion ") for line in said.err.splitlines())
    assert main(["edit", dog, OTHER, "--inversion-file", "other.safetensors", "-o", "edited.png", "--force"]) == 0
    assert Path("edited.png").read_bytes() == Path("whole.png").read_bytes()
