"""A memory limit: how it is read, what an edit is reckoned to take, and the savings that keep it."""

import dataclasses
import re
from types import SimpleNamespace

import pytest
import torch
from runs import BRIEF, OTHER, PROMPT, stop_after

import minibaret
from minibaret import InputError, Savings, loading
from minibaret.inversion import load_inversion, unfinished_path
from minibaret.memory import Work, estimate, hold, in_words, parse_limit, plan, unet_layers
from minibaret.models.configs import SD15
from minibaret.weights import MINIATURE_FOLDER, OnDemandModel
from minibaret.weights.miniature.config import MINIATURE

CPU = torch.device("cpu")
NUMBERS = {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480}
WORK = Work(SD15, NUMBERS, (512, 512), 5, True, torch.float32, CPU)


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


def test_a_limit_on_a_gpu_is_that_gpus(monkeypatch):
    """PyTorch limits a device that has a number, and refuses one that has none."""
    held = []
    for name, value in {"is_available": True, "device_count": 2, "current_device": 1}.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=4 * 10**9))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *limit: held.append(limit))
    hold(10**9, loading.parse_device("cuda"))
    hold(10**9, loading.parse_device("cuda:0"))
    assert held == [(0.25, torch.device("cuda:1")), (0.25, torch.device("cuda:0"))]


# The estimate and the plan


def test_the_layers_of_the_estimate():
    layers = unet_layers(SD15.unet)
    assert [[layer.kind for layer in layers].count(kind) for kind in ("resnet", "attention", "sampler")] == [22, 16, 6]
    assert 0.99 < sum(layer.weights for layer in layers) / NUMBERS["unet"] < 1
    assert max(layer.largest for layer in layers) == 9 * 2560 * 1280  # a convolution after a skip
    # by level: what comes in and what its two ResBlocks leave for the way up
    kept = 3 * 320 + (320 + 2 * 640) / 4 + (640 + 2 * 1280) / 16 + (1280 + 2 * 1280) / 64
    assert max(layer.skips for layer in layers) == kept and layers[-1].skips == 0


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
    """With copies, whose networks are not streamed, nothing but bfloat16 would do."""
    copies = dataclasses.replace(WORK, copies=NUMBERS["unet"])
    assert plan(17 * 10**9, copies, Savings(), True).unet_dtype == torch.bfloat16
    with pytest.raises(InputError, match=r"needs [\d.]+G at least"):
        plan(17 * 10**9, copies, Savings(), False)
    half = dataclasses.replace(WORK, dtype=torch.float16)
    assert plan(4 * 10**9, half, Savings(), True).unet_dtype is None


# Edits within a limit


def test_a_limit_is_refused_before_any_weight_is_read(picture):
    editor = minibaret.load(memory_limit="100M")
    said = r"100M cannot be kept: this edit at 128×128 needs [\d.]+[MG] at least \(with netw"
    with pytest.raises(InputError, match=said):
        editor.edit(picture, PROMPT)
    assert not editor.model._here


def test_a_picture_from_noise_keeps_a_limit_too():
    editor = minibaret.load(memory_limit="1M")
    with pytest.raises(InputError, match="a memory limit of 1M cannot be kept"):
        editor.generate(PROMPT, steps=1)


def least_without_tuning(editor: minibaret.Editor, dtype: torch.dtype | None = None) -> int:
    parameters = editor.model.parameter_counts()
    work = Work(editor.config, parameters, (128, 128), 6, False, torch.float32, CPU, stored=torch.float16)
    return estimate(work, Savings(True, True, True, dtype, streamed=True))


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_an_edit_from_a_finished_inversion_is_planned_in_its_dtype_and_without_tuning(picture, monkeypatch, dtype):
    """With a limit that has room for the rows of an edit, if for nothing else."""
    monkeypatch.setattr(loading, "resident", lambda: 0)
    making = minibaret.load(savings=Savings(unet_dtype=dtype))
    inversion = making.invert(picture, PROMPT, inversion_prompt="null", **BRIEF)
    for limit in (10**11, least_without_tuning(making, dtype)):
        saving = minibaret.load(memory_limit=limit)
        result = saving.edit(picture, PROMPT, pictures=(), inversion=inversion)
        assert result.savings.unet_dtype == dtype and result.memory_estimate <= limit
    with pytest.raises(InputError, match="cannot be kept"):  # from the trajectory alone: its embedding is tuned
        saving.edit(picture, OTHER, pictures=(), inversion=inversion)


def test_an_unfinished_inversion_is_planned_with_the_tuning_that_is_left(picture, tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "resident", lambda: 0)
    making, file = minibaret.load(), tmp_path / "dog.safetensors"
    with pytest.raises(KeyboardInterrupt):
        making.invert(picture, PROMPT, file=file, watch=stop_after(3), **BRIEF)
    begun = load_inversion(unfinished_path(file))
    saving = minibaret.load(memory_limit=least_without_tuning(making))
    with pytest.raises(InputError, match="cannot be kept"):
        saving.edit(picture, PROMPT, inversion=begun)
