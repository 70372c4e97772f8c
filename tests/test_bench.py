"""The bench at its smallest: what it prints, not how fast anything was."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from minibaret import balanced_attention as bam
from minibaret import baret
from minibaret.bench import naive, random_weights
from minibaret.bench.roofline import GPUS, Shape, work
from minibaret.inversion import TunedStep
from minibaret.prediction import guide, predict
from minibaret.schedule import Schedule
from minibaret.settings import Settings

BENCH = Path(__file__).parent.parent / "bench.py"


def bench(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(BENCH), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)


def test_attention_prints_a_card_a_table_and_one_json_line_last(tmp_path):
    files = [tmp_path / "trace.json", tmp_path / "plot.png"]
    sizes = ["--model", "miniature", "--sites", "self-64", "cross-16", "--rows", "2", "6", "--rounds", "2"]
    extra = ["--json", "--predict", "h100", "--trace", str(files[0]), "--plot", str(files[1])]
    done = bench("attention", *sizes, *extra)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    lines = done.stdout.splitlines()
    result = json.loads(lines[-1])
    assert {"device", "threads", "torch", "triton"} < set(result["card"])
    found = [(line["site"], line["rows"], line["implementation"]) for line in result["table"]]
    ways = ("plain", "materialised", "gathered", "injected")
    assert found == [(site, rows, way) for site in ("self-64", "cross-16") for rows in (2, 6) for way in ways]
    for line in result["table"]:
        assert 0 < line["low_ms"] <= line["median_ms"] <= line["high_ms"] and line["ratio_to_plain"] > 0
        assert (line["ratio_to_plain"] == 1) == (line["implementation"] == "plain")
        assert line["peak_bytes"] > 0
    names = {event.get("name") for event in json.loads(files[0].read_text())["traceEvents"]}
    assert "self-64, 2 rows, injected" in names and files[1].stat().st_size > 1000
    assert "not a measurement" in done.stdout


def test_unet_prints_forwards_and_shares(tmp_path):
    path = tmp_path / "trace.json"
    arguments = ("--weights", "miniature-random", "--size", "64", "--rounds", "1", "--json", "--trace", str(path))
    done = bench("unet", *arguments)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert [line["rows"] for line in result["table"]] == [6, 6, 5]
    for shares in result["shares"].values():
        assert set(shares) == {f"{kind}-{tokens}" for kind in ("self", "cross") for tokens in (64, 16, 4)}
        assert 0 < sum(shares.values()) < 1
    names = {event.get("name") for event in json.loads(path.read_text())["traceEvents"]}
    assert "mid_block.attentions.0.transformer_blocks.0.attn2" in names
    assert any("injection: reconstruction, transition (no text)" in str(name) for name in names)


def test_memory_edits_without_a_limit_and_with():
    done = bench("memory", "--limit", "5G", "--json")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert [line["limit"] for line in result["table"]] == [None, 5 * 10**9]
    for line in result["table"]:
        assert 10**8 < line["peak_memory"] < 10**9 and line["memory_estimate"] > 10**8 and line["savings"] == "none"


TINY = ("--weights", "miniature-random", "--size", "32", "--rounds", "1", "--profile", "--json")


def test_edit_prints_three_ways_to_the_same_latents(tmp_path):
    path = tmp_path / "trace.json"
    done = bench("edit", *TINY, "--steps", "3", "--trace", str(path))
    assert done.returncode == 0 and done.stderr == "", done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["ratio_to_naive"] > 0 and result["ratio_to_maps"] > 0
    assert 0 <= result["latents_difference"] < 1e-4
    ways = ["shipped", "six rows, SDPA", "six rows, maps"]
    lines = [(line["way"], line["count"], line["rows"]) for line in result["table"]]
    naive = [(15, 6), (15, 6), (20, 6), (50, 300)]
    assert lines[::3] == [("shipped", *few) for few in ((15, 5), (15, 4), (20, 2), (50, 175))]
    assert lines[1::3] == [(ways[1], *many) for many in naive] and lines[2::3] == [(ways[2], *many) for many in naive]
    for way in range(3):  # an edit's time is that of its steps
        *steps, edit = result["table"][way::3]
        assert edit["median_ms"] == pytest.approx(sum(line["count"] * line["median_ms"] for line in steps))
    assert list(result["operators"]) == ways and "aten::baddbmm" not in result["operators"]["shipped"]
    names = {event.get("name") for event in json.loads(path.read_text())["traceEvents"]}
    assert {"shipped: self and cross injected", "six rows, maps: nothing injected"} < names


@torch.no_grad()
def test_the_naive_batch_written_out_is_the_naive_plan(unet):
    """Six rows by the package's own UNet; and the maps that are put back do change the edit."""
    settings = Settings(steps=4, guidance=3.0)
    target, null = torch.randn(2, 1, 5, 24)
    record, schedule = baret.Record([torch.randn(1, 4, 8, 8)]), Schedule(4)
    latents = record.trajectory[0]
    for timestep in schedule.timesteps:
        tuned = target + 0.3 * torch.randn_like(target)
        noise = predict(unet, torch.cat([latents] * 2), timestep, torch.cat([null, tuned]))
        latents = schedule.step(latents, guide(*noise.chunk(2), 3.0), timestep)
        record.tuned.append(TunedStep(tuned, latents, ()))
    *_, six = baret.edit(unet, record, target, null, settings, rows_at=bam.all_rows)
    for attend in (naive.gathered, naive.materialised):
        *_, edited = naive.edit(unet, record, target, null, settings, attend)
        assert (edited - six["edit"]).abs().max() < 1e-4 * edited.std()
    plain = dataclasses.replace(settings, self_steps=0.0, cross_steps=0.0)
    *_, alone = naive.edit(unet, record, target, null, plain, naive.materialised)
    assert (edited - alone).abs().max() > 1e-3 * edited.std()


def test_tune_prints_time_and_memory(tmp_path):
    pytest.importorskip("diffusers", reason="tune is measured against diffusers")
    path = tmp_path / "trace.json"
    done = bench("tune", *TINY, "--against", "maps", "both", "--trace", str(path))
    assert done.returncode == 0 and done.stderr == "", done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    names = ["minibaret", "diffusers, both rows", "diffusers, one row, maps"]
    assert [line["way"] for line in result["table"]] == names == list(result["operators"])
    for line in result["table"]:
        assert line["median_ms"] > 0 and line["peak_bytes"] > 4 * result["card"]["parameters"]
    ours, both, _ = result["table"]
    assert result["ratio_time_to_nulltext"] == pytest.approx(ours["median_ms"] / both["median_ms"], abs=1e-3)
    assert result["ratio_memory_to_nulltext"] == pytest.approx(ours["peak_bytes"] / both["peak_bytes"], abs=1e-3)
    assert result["ratio_time_to_published"] > 0 and result["ratio_memory_to_published"] > 0
    assert set(names) < {event.get("name") for event in json.loads(path.read_text())["traceEvents"]}


def test_forward_prints_ours_and_diffusers_with_the_same_noise(tmp_path):
    pytest.importorskip("diffusers", reason="forward is measured against diffusers")
    path = tmp_path / "trace.json"
    done = bench("forward", *TINY, "--trace", str(path))
    assert done.returncode == 0 and done.stderr == "", done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert [line["by"] for line in result["table"]] == ["minibaret", "diffusers", "diffusers, channels_last"]
    assert result["ratio_to_diffusers"] == result["table"][0]["ratio_to_diffusers"] > 0
    assert result["difference"] < 1e-4 and result["ratio_to_channels_last"] > 0
    assert {"minibaret", "diffusers"} < {event.get("name") for event in json.loads(path.read_text())["traceEvents"]}


@pytest.mark.parametrize("command", ["tune", "forward"])
def test_without_diffusers_it_is_said(command, tmp_path):
    (tmp_path / "diffusers.py").write_text("raise ImportError")
    done = bench(command, *TINY, PYTHONPATH=str(tmp_path))
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "diffusers, which is not" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("edit", "--weights", "miniature-random", "--steps", "2"), "steps must be at least 3"),
        (("attention", "--sites", "self-9"), "sites must be of self-4096"),
        (("attention", "--sites", "self-64", "--attention", "triton"), "the Triton kernel cannot be used here"),
        (("unet", "--weights", "miniature-random", "--size", "100"), "size must be a multiple of 32 pixels, got 100"),
        (("unet", "--weights", "nowhere"), "nowhere"),
        (("attention", "--plot", "nowhere/plot.png"), "there is no folder nowhere"),
        (("memory", "--limit", "many"), "a memory limit such as 4G or 900M was wanted, got 'many'"),
    ],
)
def test_what_cannot_be_measured_is_said(arguments, said):
    done = bench(*arguments)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and said in done.stderr


def test_random_weights_are_written_without_pytest_and_anew_after_an_interruption(tmp_path, monkeypatch):
    import checkpoints

    for name in ("checkpoints", "ldm_names"):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if Path(place).name != "tests"])
    monkeypatch.setattr(random_weights, "SD15", checkpoints.TINY)
    (tmp_path / "single.safetensors").write_bytes(b"half")
    random_weights.write_layouts(tmp_path)
    assert (tmp_path / "single.safetensors").stat().st_size > 1e6
    assert (tmp_path / "folder" / "unet" / "diffusion_pytorch_model.fp16.safetensors").exists()
    monkeypatch.setattr(random_weights, "SD15", None)
    random_weights.write_layouts(tmp_path)  # all there


def test_a_shared_map_is_counted_once():
    pair, alone = Shape(2, 1, 4096, 4096, 8, 40), Shape(1, 1, 4096, 4096, 8, 40)
    assert work("plain", alone).flops == 4 * 8 * 4096 * 4096 * 40
    assert work("plain", pair).flops == 2 * work("plain", alone).flops
    assert work("injected", pair).flops == 0.75 * work("plain", pair).flops
    assert work("injected", pair).exponentials == 0.5 * work("plain", pair).exponentials
    assert work("materialised", alone).bytes - work("plain", alone).bytes == 4 * 268_435_456
    for gpu in GPUS.values():
        ours, plain = work("injected", pair).seconds(gpu), work("plain", pair).seconds(gpu)
        assert all(0.5 <= a / b <= 0.75 for a, b in zip(ours, plain))
