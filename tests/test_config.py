"""The config.json of a folder of weights: refused in a sentence that names it, and written whole or not at all."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch
from checkpoints import TINY, random_weights, write_minibaret

import minibaret
from minibaret.cli import main
from minibaret.weights import load_model
from minibaret.weights.folder import MINIATURE_FOLDER, read_config, save_config, save_part
from minibaret.weights.miniature.config import MINIATURE


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"unet": None}, "unet must be an object, {…}, got null"),
        ({"vae": [1]}, "vae must be an object, {…}, got [1]"),
        ({"text_encoder": {"heads": "two"}}, 'heads of text_encoder must be a value like 12, at most 512, got "two"'),
        (
            {"unet": {"channels": 64}},
            "channels of unet must be a value like [320, 640, 1280, 1280], at most 1,000,000, got 64",
        ),
        (
            {"unet": {"channels": []}},
            "channels of unet must be a value like [320, 640, 1280, 1280], at most 1,000,000, got []",
        ),
        ({"unet": {"widths": 1}}, "'widths'"),
        ({"image_size": "big"}, 'image_size a whole number, got "miniature", "big"'),
        ({"image_size": 10**9}, 'image_size a whole number, got "miniature", 1000000000'),
        ({"name": "two\nlines"}, 'name must be a text and image_size a whole number, got "two\\nlines", 128'),
        (
            {"text_encoder": {"layers": 100_000}},
            "layers of text_encoder must be a value like 12, at most 64, got 100000",
        ),
        (
            {"text_encoder": {"width": 10**30}},
            "width of text_encoder must be a value like 768, at most 1,000,000, got 1",
        ),
        ({"unet": {"channels": [10**9] * 3}}, "at most 1,000,000, got [1000000000, 1000000000, 1000000000]"),
        ({"unet": {"channels": [64] * 100}}, "at most 1,000,000, got [64, 64"),
        ({"unet": {"layers_per_block": 99}}, "layers_per_block of unet must be a value like 2, at most 16, got 99"),
        (
            {"vae": {"scaling_factor": float("inf")}},
            "scaling_factor of vae must be a value like 0.18215, at most 1,000,000",
        ),
        (
            {"vae": {"scaling_factor": float("nan")}},
            "scaling_factor of vae must be a value like 0.18215, at most 1,000,000",
        ),
        ({"text_encoder": {"positions": 76}}, "positions of text_encoder must be at least 77, got 76"),
        ({"unet": {"context_width": 768}}, "unet reads text of width 768, but it has 128"),
        ({"vae": {"latent_channels": 8}}, "vae and unet must have as many latent_channels as each other"),
        ({"unet": {"attention": [True]}}, "unet must have as many values of attention as of channels"),
        ({"unet": {"channels": [63, 64, 64]}}, "the first of unet's channels must be even, got 63"),
        ({"words": "dog"}, 'words must be a list of words, got "dog"'),
        ({"words": ["dog", 5]}, 'words must be a list of words, got ["dog", 5]'),
        ({"defaults": 5}, "defaults must be an object, {…}, got 5"),
        ([], "the file must be an object, {…}, got []"),
    ],
)
def test_a_config_that_is_not_what_it_should_be(tmp_path, change, said):
    values = json.loads((MINIATURE_FOLDER / "config.json").read_text())
    for name, value in change.items() if change else ():  # of a network's sizes one is changed
        values[name] = {**values[name], **value} if isinstance(value, dict) else value
    values = values if change else change
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(minibaret.InputError, match=r"config\.json is not a minibaret config: .*" + re.escape(said)):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("defaults", "said"),
    [
        ({"stepz": 5}, 'must be knobs, or a method\'s name with its knobs, got {"stepz": 5}'),
        ({"baret": 5}, 'must be knobs, or a method\'s name with its knobs, got {"baret": 5}'),
        ({"steps": {"baret": 5}}, 'must be knobs, or a method\'s name with its knobs, got {"steps": {"baret": 5}}'),
        ({"baret": {"stepz": 5}}, "baret has no stepz"),
        ({"steps": 0}, "steps must be a whole number from 1 to 999, got 0"),
        ({"steps": True}, "steps must be a whole number from 1 to 999, got True"),
        ({"rigid": "no"}, "rigid must be true or false, got 'no'"),
        ({"self_steps": True}, "self steps must be a number from 0 to 1, got True"),
        ({"transition": [0.5]}, "transition must be two numbers from 0 to 1, got (0.5,)"),
    ],
)
def test_defaults_that_no_method_has(tmp_path, capsys, defaults, said):
    folder = write_minibaret(tmp_path, random_weights(TINY), dataclasses.replace(TINY, defaults=defaults))
    with pytest.raises(minibaret.InputError, match=r"^the defaults of tiny .*" + re.escape(said)):
        minibaret.load(folder, "cpu")
    assert main(["inspect", str(folder)]) == 2
    said = capsys.readouterr()
    assert "the defaults of tiny" in said.err and "would load" not in said.out


def test_a_config_of_brackets(tmp_path):
    for depth in (900, 990, 100_000):
        (tmp_path / "config.json").write_text("[" * depth + "]" * depth)
        with pytest.raises(minibaret.InputError, match=r"config\.json is (not a minibaret config|damaged)"):
            read_config(tmp_path)


def test_a_model_that_knows_few_words_names_those_it_does_not():
    text = "A smiling Woman, in a red dress; the dog's half-open EYES: été 12"
    unknown = ["smiling", "woman", "in", "dress", "the", "dog's", "half-open", "eyes", "été", "12"]
    assert MINIATURE.unknown_words(text) == unknown
    assert MINIATURE.unknown_words("a brown dog, lying down; a BROWN dog!") == []
    assert TINY.unknown_words(text) == []


@pytest.mark.parametrize(("part", "field"), [("unet", "groups"), ("unet", "heads"), ("text_encoder", "heads")])
def test_sizes_that_make_no_network(tmp_path, part, field):
    write_minibaret(tmp_path, random_weights(TINY), TINY)
    values = json.loads((tmp_path / "config.json").read_text())
    values[part][field] = 7
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(minibaret.InputError, match=rf"\({part}\) has sizes in its config that make no network"):
        load_model(tmp_path)


def test_a_config_and_a_network_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    config = read_config(MINIATURE_FOLDER)
    save_config(config, tmp_path)
    assert read_config(tmp_path) == config

    def fail(unfinished, content):
        with open(unfinished, "wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OSError, match="disk full"):
        save_part(torch.nn.Linear(2, 2), tmp_path / "unet.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
