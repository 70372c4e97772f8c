"""Inversions, in memory and on disk: edits from them are those of an uninterrupted run, bit for bit; nothing else is
accepted."""

import copy
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import OTHER, PROMPT, QUICK, assert_same_edit, assert_same_inversion
from safetensors.torch import save_file

import minibaret
from minibaret.inversion import Inversion, load_inversion
from minibaret.origin import Origin, digest, digest_of
from minibaret.tuning import Tuned

pytestmark = pytest.mark.usefixtures("one_thread")
NULL = {**QUICK, "inversion_prompt": "null"}


# From a file


def test_an_edit_from_a_file_is_the_uninterrupted_edit_bit_for_bit(tmp_path, small, picture, calls):
    whole = small.edit(picture, PROMPT, **QUICK)
    small.invert(picture, PROMPT, file=tmp_path / "dog.safetensors", **QUICK)
    assert [path.name for path in tmp_path.iterdir()] == ["dog.safetensors"]
    calls.clear()
    stages = []
    inversion = load_inversion(tmp_path / "dog.safetensors")
    result = small.edit(picture, PROMPT, inversion=inversion, watch=lambda step: stages.append(step.stage), **QUICK)
    assert_same_edit(result, whole)
    assert len(calls) == 4 and stages == ["edit"] * 4
    assert "inversion" not in result.seconds and "encode" not in result.seconds


def test_knobs_of_the_edit_may_differ_and_those_not_given_are_the_files(small, picture, calls):
    inversion = small.invert(picture, PROMPT, size=(32, 16), fit="pad", **QUICK)
    for changes in (
        {"rigid": True},
        {"transition": (0.6, 0.2), "self_steps": 1.0},
        {"cross_steps": 0.0, "rows": "both"},
    ):
        calls.clear()
        result = small.edit(picture, PROMPT, inversion=inversion, **QUICK, **changes)
        assert len(calls) == 4
        assert_same_edit(result, small.edit(picture, PROMPT, size=(32, 16), fit="pad", **QUICK, **changes))
    calls.clear()
    result = small.edit(picture, PROMPT, inversion=inversion)
    assert result.knobs == small.settings(**QUICK) and result.image.size == (32, 16) and len(calls) == 4


def test_a_file_holds_what_was_kept(tmp_path):
    inversion = Inversion(Origin("ab", (64, 32), "pad", {"unet": "cd"}, "bfloat16"))
    recipe = {"prompt": {"text": "„Hündin“\n", "tokens": [1, 2]}, "rate": 1e-3, "pair": (0.0, 1e-5)}
    inversion.find("trajectory", {"steps": 3}).extend((torch.randn(1, 4, 4, 8),) for _ in range(4))
    inversion.find("target embeddings", recipe, Tuned).extend(
        Tuned(torch.randn(1, 77, 24).bfloat16(), torch.randn(1, 4, 4, 8), torch.tensor(losses))
        for losses in ((0.1,), (0.1, float("inf"), 1e-45))
    )
    inversion.find("nothing yet", {})
    inversion.save(tmp_path / "a.safetensors")
    loaded = load_inversion(tmp_path / "a.safetensors")
    assert loaded.origin == inversion.origin
    assert loaded.knobs("target embeddings") == {"steps": 3, "rate": 1e-3, "pair": (0.0, 1e-5)}
    assert_same_inversion(loaded, inversion)
    found = loaded.find("target embeddings", recipe, Tuned, ((1, 77, 24), (1, 4, 4, 8)))
    assert isinstance(found[1], Tuned) and found[1].iterations == 2 and found[0].embedding.dtype == torch.bfloat16
    assert torch.equal(loaded.start, inversion.start) and loaded.steps == 6


# Another prompt, other tuning


def test_a_trajectory_of_the_empty_prompt_serves_any_prompt(small, picture, calls):
    inversion = small.invert(picture, PROMPT, **NULL)
    expected = small.edit(picture, OTHER, **NULL)
    calls.clear()
    stages = []
    result = small.edit(picture, OTHER, inversion=inversion, watch=lambda step: stages.append(step.stage), **NULL)
    assert torch.equal(result.latents["edit"], expected.latents["edit"])
    assert_same_inversion(result.kept, expected.kept)
    assert [torch.equal(a.embedding, b.embedding) for a, b in zip(result.tuned, expected.tuned)] == [True] * 4
    assert stages == ["target-text inversion"] * 4 + ["edit"] * 4
    assert len(calls) == 4 * (1 + 3) + 4  # a step: the empty prompt once, the target's before and after each Adam step
    kept = [entry.recipe["prompt"]["text"] for entry in result.kept.entries if entry.name == "target embeddings"]
    assert kept == [PROMPT, OTHER]  # what there was is still there
    with pytest.raises(minibaret.InputError, match=r"guidance 7\.5, not 3\.0"):
        small.edit(picture, OTHER, inversion=inversion, **{**NULL, "guidance": 3.0})


def test_what_was_tuned_last_is_what_a_result_shows(small, picture):
    """Of two prompts that one inversion holds, the one that was edited with."""
    both = small.edit(picture, OTHER, inversion=small.invert(picture, PROMPT, **NULL), **NULL).kept
    for prompt in (PROMPT, OTHER, PROMPT):
        result = small.edit(picture, prompt, inversion=both, **NULL)
        alone = small.edit(picture, prompt, **NULL)
        assert len(result.tuned) == 4
        assert all(torch.equal(a.embedding, b.embedding) for a, b in zip(result.tuned, alone.tuned))
        assert_same_inversion(result.kept, alone.kept)
        both = result.kept


def test_of_two_trajectories_a_result_shows_its_own(small, picture):
    kept = None
    for steps in (2, 3, 2):
        result = small.edit(picture, PROMPT, inversion=kept, **{**QUICK, "steps": steps})
        assert len(result.trajectory) == steps + 1
        kept = result.kept
    assert [len(entry.items) for entry in kept.entries if entry.name == "trajectory"] == [4, 3]


def test_invert_takes_the_trajectory_of_an_inversion_and_tunes_again(small, picture, calls):
    inversion = small.invert(picture, PROMPT, **QUICK)
    calls.clear()
    assert_same_inversion(small.invert(picture, PROMPT, inversion=inversion), inversion)
    assert not calls
    other = {**QUICK, "guidance": 3.0, "inner_steps": 1, "step_length": 0.1}
    again = small.invert(picture, PROMPT, inversion=inversion, **other)
    assert len(calls) == 4 * (1 + 2)
    assert_same_inversion(again, small.invert(picture, PROMPT, **other))
    with pytest.raises(minibaret.InputError, match=f"the prompt '{PROMPT}', not '{OTHER}'"):
        small.invert(picture, OTHER, inversion=inversion)
    with pytest.raises(minibaret.InputError, match=r"inner steps [12], not 3"):
        small.edit(picture, PROMPT, inversion=again, **{**other, "inner_steps": 3})


# What is refused


def test_an_inversion_of_something_else_is_refused_with_what_differs(small, picture, calls):
    inversion = small.invert(picture, PROMPT, **QUICK)
    dotted = picture.copy()
    dotted.putpixel((64, 64), (255, 0, 255))
    wide = picture.resize((256, 128))
    calls.clear()

    def refusal(image=picture, prompt=PROMPT, size=None, fit=None, **changes) -> str:
        with pytest.raises(minibaret.InputError) as caught:
            small.edit(image, prompt, size=size, fit=fit, inversion=inversion, **{**QUICK, **changes})
        begin = "the inversion does not belong to this run: it was made with "
        assert str(caught.value).startswith(begin)
        return str(caught.value).removeprefix(begin)

    assert refusal(image=dotted) == "another picture"
    assert refusal(size=(16, 32)) == "a picture of 32×32 pixels, not 16×32"
    assert refusal(image=wide, fit="stretch") == "fit crop, not stretch"
    assert refusal(prompt=OTHER) == f"the prompt '{PROMPT}', not '{OTHER}'"
    assert refusal(steps=5) == "steps 4, not 5"
    assert refusal(guidance=3.0) == "guidance 7.5, not 3.0"
    assert refusal(inversion_prompt="null") == f"the prompt '{PROMPT}', not the empty one"
    assert refusal(inner_steps=1) == "inner steps 2, not 1"
    assert refusal(step_length=0.5) == "step length 0.08, not 0.5"
    assert refusal(tolerance=(0.0, 1e-5)) == "tolerance 0:0, not 0:1e-05"
    assert refusal(guidance=3.0, inner_steps=1) == "guidance 7.5, not 3.0; inner steps 2, not 1"
    assert refusal(size=(16, 32), fit="pad") == "a picture of 32×32 pixels, not 16×32"
    assert not calls


def test_what_one_edit_found_is_not_used_for_another_picture(small, picture, calls):
    """In memory too, where the rest is not asked."""
    kept = small.edit(picture, PROMPT, **QUICK).kept
    dotted = picture.copy()
    dotted.putpixel((64, 64), (255, 0, 255))
    for image, size in ((dotted, None), (picture, (16, 32))):
        calls.clear()
        with pytest.raises(minibaret.InputError, match="does not belong to this run: it was made with another picture"):
            small.edit(image, PROMPT, size=size, inversion=kept, **QUICK)
        assert not calls
    again = small.edit(picture, PROMPT, inversion=kept, **QUICK).kept
    with pytest.raises(minibaret.InputError, match="does not belong to this run: it was made with another picture"):
        small.edit(dotted, PROMPT, inversion=again, **QUICK)


def test_what_an_edit_found_is_not_saved_since_it_does_not_say_what_it_is_of(small, picture, tmp_path):
    found = small.edit(picture, PROMPT, **QUICK).kept
    with pytest.raises(minibaret.InputError, match=r"must be one of `Editor.invert`, got what an edit has found"):
        found.save(tmp_path / "edit.safetensors")
    assert not [*tmp_path.iterdir()]


def test_every_part_of_the_model_counts(small, picture):
    inversion = small.invert(picture, PROMPT, **QUICK)

    def refusal(**parts) -> str:
        with pytest.raises(minibaret.InputError) as caught:
            minibaret.Editor(dataclasses.replace(small.model, **parts)).edit(picture, PROMPT, inversion=inversion)
        return str(caught.value).partition("made with ")[2]

    for part in ("unet", "text_encoder", "vae"):
        network = copy.deepcopy(getattr(small.model, part))
        assert network_digest(network) == inversion.origin.weights[part]
        list(network.parameters())[-1].view(-1)[-1] += 1e-6
        assert refusal(**{part: network}) == f"other weights ({part})"
    assert refusal(unet=copy.deepcopy(small.model.unet).bfloat16()) == "dtype float32, not bfloat16"
    assert refusal(tokenizer=lambda text: small.model.tokenizer(text)[::-1]) == "another tokenizer"


def network_digest(network: torch.nn.Module) -> str:
    return digest_of(network.config, sorted(network.state_dict().items()))


def test_the_digest_is_of_the_weights_not_their_place_in_memory(small):
    unet = small.model.unet
    known = network_digest(unet)
    assert network_digest(copy.deepcopy(unet).to(memory_format=torch.channels_last)) == known
    swapped = copy.deepcopy(unet)
    weight = swapped.conv_in.weight
    weight[[0, 1]] = weight[[1, 0]].clone()
    assert network_digest(swapped) != known
    reheaded = copy.deepcopy(unet)
    reheaded.config = dataclasses.replace(unet.config, heads=4)
    assert network_digest(reheaded) != known


def test_damaged_files_are_refused_and_left_alone(tmp_path, small, picture):
    path = tmp_path / "dog.safetensors"
    small.invert(picture, PROMPT, file=path, **QUICK)
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    recipe = whole.index(b"grass")
    damaged = [whole[:length] for length in (0, 5, 100, header, header + 1000, len(whole) - 1)]
    for place in (recipe, header, len(whole) // 2, len(whole) - 1):
        damaged.append(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    for data in (*damaged, whole + b"\0", b"PK\x03\x04" + whole, np.random.default_rng(0).bytes(5000)):
        path.write_bytes(data)
        with pytest.raises(minibaret.InputError, match=r"dog\.safetensors (is|holds)"):
            load_inversion(path)
        assert path.read_bytes() == data
    save_file({"a": torch.zeros(3)}, path)
    with pytest.raises(minibaret.InputError, match="none that minibaret invert wrote"):
        load_inversion(path)
    save_file({"a": torch.zeros(3)}, path, {"format": "minibaret inversion", "version": "1"})
    with pytest.raises(minibaret.InputError, match='has version "1" of the format; this minibaret reads 2'):
        load_inversion(path)
    with pytest.raises(minibaret.InputError, match="there is no inversion file"):
        load_inversion(tmp_path / "missing.safetensors")
    index = tmp_path / "dog.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"a": path.name}}))
    with pytest.raises(minibaret.InputError, match=r"index\.json is not a safetensors file"):
        load_inversion(index)


ORIGIN = {"picture": "ab", "size": [8, 8], "fit": "crop", "weights": {}, "dtype": "float32"}
LIST = {"name": "trajectory", "recipe": {}}


@pytest.mark.parametrize(
    ("origin", "lists", "names"),
    [
        ({"picture": "ab", "colour": "red"}, [LIST], ["trajectory.0.0.0"]),
        ([], [LIST], ["trajectory.0.0.0"]),
        (ORIGIN, LIST, ["trajectory.0.0.0"]),
        (ORIGIN, [{"name": "trajectory"}], ["trajectory.0.0.0"]),
        (ORIGIN, [{**LIST, "recipe": "steps"}], ["trajectory.0.0.0"]),
        (ORIGIN, [], ["trajectory.0.0.0"]),
        (ORIGIN, [LIST], ["trajectory.0.0"]),
        (ORIGIN, [LIST], ["trajectory.0.one.0"]),
        (ORIGIN, [LIST], ["trajectory.0.1.0"]),  # an item is missing
        (ORIGIN, [LIST], ["trajectory.0.0.1"]),
    ],
)
def test_whole_files_with_something_else_in_them(tmp_path, origin, lists, names):
    """Signed as `save` signs, as another version might."""
    tensors = {name: torch.zeros(1, 4, 2, 2) for name in names}
    facts = {"format": "minibaret inversion", "version": "2", "origin": json.dumps(origin), "lists": json.dumps(lists)}
    facts["sha256"] = digest(facts["origin"] + facts["lists"], sorted(tensors.items()))
    save_file(tensors, tmp_path / "a.safetensors", facts)
    with pytest.raises(minibaret.InputError, match="was written by another version of minibaret"):
        load_inversion(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("name", "item"),
    [
        ("trajectory", (torch.zeros(1, 4, 2, 2),)),
        ("target embeddings", (torch.zeros(1, 77, 3), torch.zeros(1, 4, 4, 4), torch.zeros(1))),
        ("target embeddings", (torch.zeros(1, 77, 128),)),
    ],
)
def test_tensors_of_other_shapes_are_refused(tmp_path, small, picture, name, item):
    file = tmp_path / "dog.safetensors"
    inversion = small.invert(picture, PROMPT, **QUICK)
    inversion.items(name)[-1] = item
    inversion.save(file)
    with pytest.raises(minibaret.InputError, match=f"is damaged: its {name} has other shapes than this picture and"):
        small.edit(picture, PROMPT, inversion=load_inversion(file))


# Where it is kept


def test_a_place_where_no_inversion_can_be_kept_is_refused_before_any_work(tmp_path, small, picture, calls):
    picture.save(tmp_path / "dog.png")
    for name, said in (("dog.png", r"must end in \.safetensors"), ("no/dog.safetensors", "there is no folder")):
        with pytest.raises(minibaret.InputError, match=said):
            small.invert(tmp_path / "dog.png", PROMPT, file=tmp_path / name, **QUICK)
    assert not calls and [path.name for path in tmp_path.iterdir()] == ["dog.png"]


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path, small, picture, monkeypatch):
    file = tmp_path / "dog.safetensors"
    inversion = small.invert(picture, PROMPT, file=file, **QUICK)
    before = file.read_bytes()

    def full(unfinished, content):
        with open(unfinished, "wb") as part:
            part.write(content[: len(content) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(minibaret.InputError, match="cannot be written: No space left on device"):
        inversion.save(file)
    assert file.read_bytes() == before and list(tmp_path.iterdir()) == [file]


def test_a_file_of_one_method_leaves_the_knobs_of_another_alone(small, picture, tmp_path):
    """BARET's step length is not null-text inversion's; the number of steps is the trajectory's."""
    file, prompt = tmp_path / "baret.safetensors", "a cat"
    small.invert(picture, prompt, steps=2, inner_steps=1, step_length=0.02, file=file, inversion_prompt="null")
    inversion = minibaret.load_inversion(file)
    assert inversion.knobs("target embeddings")["step_length"] == 0.02
    assert inversion.knobs("null embeddings") == {"steps": 2}
