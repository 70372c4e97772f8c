"""The measurements at their smallest: what they print, and that what they compare is the same; never how fast."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from minibaret.bench import attention, naive, random_weights
from minibaret.bench.random_weights import TINY, random_model, write_folder
from minibaret.bench.roofline import GPUS, Shape, work
from minibaret.bench.total import PUBLISHED
from minibaret.methods.baret import BaretKnobs
from minibaret.weights import load_model

BENCH = Path(__file__).parent.parent / "bench.py"
SMALL = ("--weights", "tiny-random", "--rounds", "1", "--json")


@pytest.fixture
def bench(monkeypatch, capsys):
    """Runs bench.py in this process: exit code, the JSON line, the lines of stderr."""
    spec = importlib.util.spec_from_file_location("bench", BENCH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(*arguments: str) -> tuple[int, dict | None, list[str]]:
        monkeypatch.setattr(sys, "argv", [str(BENCH), *arguments])
        code = module.main()
        out, err = capsys.readouterr()
        return code, json.loads(out.splitlines()[-1]) if code == 0 else None, err.splitlines()

    return run


def ranges(path: Path) -> set[str]:
    return {event.get("name") for event in json.loads(path.read_text())["traceEvents"]}


def test_attention(bench, tmp_path):
    sizes = ("--model", "miniature", "--sites", "self-64", "cross-16", "--rows", "2", "6", "--rounds", "2")
    trace = tmp_path / "trace.json"
    code, result, _ = bench("attention", *sizes, "--predict", "h100", "--trace", str(trace), "--json")
    assert code == 0 and {"device", "threads", "torch", "triton"} < set(result["card"])
    ways = ("plain", "materialised", "gathered", "injected")
    cases = [("self-64", "maps", 2), ("self-64", "maps", 6), ("self-64", "keys and values", 2)]
    cases += [("cross-16", "maps", 2), ("cross-16", "maps", 6), ("cross-16", "refine", 2)]
    found = [(line["site"], line["case"], line["rows"], line["implementation"]) for line in result["table"]]
    assert found == [(*case, way) for case in cases for way in ways]
    for line in result["table"]:
        assert 0 < line["low_ms"] <= line["median_ms"] <= line["high_ms"] and line["peak_bytes"] > 0
        assert line["flops"] > 0 and line["bytes_moved"] > 0 and len(line["predicted_ratio"]) == 2
        assert line["ratio_to_plain"] == 1 or line["implementation"] != "plain"
    assert "self-64, maps, 2 rows, injected" in ranges(trace)


@pytest.mark.parametrize(
    ("case", "rows"), [("maps", 2), ("maps", 3), ("maps", 6), ("keys and values", 2), ("refine", 2)]
)
def test_every_way_of_attention_but_the_plain_one_is_the_same(case, rows):
    layer = attention.LayerShape(16, 77 if case == "refine" else 16, 2, 8)
    _, ways = attention.ways(case, rows, layer, torch.device("cpu"), torch.float64)
    wanted = ways["materialised"]()
    for way in ("gathered", "injected"):
        assert (ways[way]() - wanted).abs().max() < 1e-12
    assert (ways["plain"]() - wanted).abs().max() > 0.1


def test_unet(bench):
    code, result, _ = bench("unet", *SMALL)
    assert code == 0 and [line["rows"] for line in result["table"]] == [6, 6, 5]
    assert all(line["ratio_to_plain"] > 0 and line["peak_bytes"] > 0 for line in result["table"])
    for shares in result["shares"].values():
        assert set(shares) == {f"{kind}-{tokens}" for kind in ("self", "cross") for tokens in (64, 16, 4, 1)}
        assert 0 < sum(shares.values()) < 1


def test_edit(bench):
    code, result, _ = bench("edit", *SMALL, "--steps", "3")
    assert code == 0 and result["ratio_to_naive"] > 0 and result["ratio_to_maps"] > 0
    assert 0 <= result["latents_difference"] < 1e-4
    ways = ("shipped", "six rows, SDPA", "six rows, maps")
    lines = [(line["way"], line["count"], line["rows"]) for line in result["table"]]
    assert lines[::3] == [(ways[0], *few) for few in ((15, 5), (15, 4), (20, 2), (50, 175))]
    for way in (1, 2):
        assert lines[way::3] == [(ways[way], *many) for many in ((15, 6), (15, 6), (20, 6), (50, 300))]
    for way in range(3):  # an edit's time is that of its steps
        *steps, edit = result["table"][way::3]
        assert edit["median_ms"] == pytest.approx(sum(line["count"] * line["median_ms"] for line in steps))


@torch.no_grad()
def test_maps_that_are_put_back_change_the_naive_edit(unet):
    target, null, tuned = torch.randn(3, 1, 5, 24)
    ends = []
    for attend, part in ((naive.gathered, 0.6), (naive.materialised, 0.6), (naive.materialised, 0.0)):
        knobs = BaretKnobs(steps=4, self_steps=part / 2, cross_steps=part)
        torch.manual_seed(0)
        *_, latents = naive.edit(unet, torch.randn(1, 4, 8, 8), [tuned] * 4, target, null, knobs, attend)
        ends.append(latents)
    assert (ends[0] - ends[1]).abs().max() < 1e-4 * ends[0].std() < 0.1 * (ends[1] - ends[2]).abs().max()


def test_tune(bench):
    pytest.importorskip("diffusers", reason="tune is measured against diffusers")
    code, result, _ = bench("tune", *SMALL, "--against", "maps", "both")
    assert code == 0
    names = ["minibaret", "diffusers, both rows", "diffusers, one row, maps"]
    assert [line["way"] for line in result["table"]] == names
    for line in result["table"]:
        assert line["median_ms"] > 0 and line["peak_bytes"] > 4 * result["card"]["parameters"]
    ours, both, maps = result["table"]
    for name, line in (("nulltext", both), ("published", maps)):
        assert result[f"ratio_time_to_{name}"] == pytest.approx(ours["median_ms"] / line["median_ms"], abs=1e-3)
        assert result[f"ratio_memory_to_{name}"] == pytest.approx(ours["peak_bytes"] / line["peak_bytes"], abs=1e-3)


def test_forward(bench):
    pytest.importorskip("diffusers", reason="forward is measured against diffusers")
    code, result, _ = bench("forward", *SMALL)
    assert code == 0 and [line["by"] for line in result["table"]] == [
        "minibaret",
        "diffusers",
        "diffusers, channels_last",
    ]
    assert result["ratio_to_diffusers"] == result["table"][0]["ratio_to_diffusers"] > 0
    assert result["difference"] < 1e-4 and result["ratio_to_channels_last"] > 0


def test_total(bench):
    pytest.importorskip("diffusers", reason="total is measured against diffusers")
    code, result, _ = bench("total", "--weights", "tiny-random", "--rounds", "2", "--dtype", "bfloat16", "--json")
    assert code == 0 and result["card"]["unet_dtype"] == "bfloat16"
    ours, theirs = ([line for line in result["table"] if line["by"] == who] for who in ("minibaret", PUBLISHED))
    edit = [line["count"] for line in ours if line["part"].startswith("a step of the edit")]
    assert sum(edit) == 50 and len(edit) == 3
    tuning = next(line for line in ours if "target-text" in line["part"])
    assert tuning["count"] == 50 and 1 <= tuning["gradient_passes"] <= BaretKnobs().inner_steps
    assert next(line["count"] for line in theirs if "gradient" in line["part"]) == 500
    for (*parts, whole), seconds in ((ours, result["seconds"]), (theirs, result["published_seconds"])):
        assert whole["seconds"] == seconds == pytest.approx(sum(line["seconds"] for line in parts))
        assert all(line["seconds"] == pytest.approx(line["count"] * line["each_ms"] / 1e3, abs=1e-4) for line in parts)
    assert result["ratio_to_published"] == pytest.approx(result["seconds"] / result["published_seconds"], abs=1e-4)
    assert result["parts"] == {line["part"]: line["seconds"] for line in ours}


def test_memory(bench, tmp_path):
    options = ("--weights", "tiny-random", "--files", str(tmp_path), "--dtype", "bfloat16", "--json")
    code, result, _ = bench("memory", *options, "--limit", "none", "5G")
    assert code == 0 and [line["limit"] for line in result["table"]] == [None, 5 * 10**9]
    for line in result["table"]:
        assert 10**8 < line["peak_memory"] < 10**9 and abs(line["off"]) < 0.3 and line["savings"] == "none"
    assert result["peak_memory"] == line["peak_memory"] and (tmp_path / "bfloat16" / "config.json").exists()
    code, result, _ = bench("memory", *options, "--times")
    (line,) = result["table"]
    assert code == 0 and line["forward_same_bits"] and line["tuning_same_bits"] and line["tuning_ratio"] > 0


@pytest.mark.parametrize("command", ["tune", "forward", "total"])
def test_without_diffusers_it_is_said(bench, command, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    code, _, said = bench(command, *SMALL)
    assert code == 2 and len(said) == 1 and "diffusers, which is not" in said[0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("edit", *SMALL, "--steps", "2"), "steps must be at least 3"),
        (("attention", "--sites", "self-9"), "sites must be of self-4096"),
        (("attention", "--sites", "self-64", "--attention", "triton"), "the Triton kernel cannot be used here"),
        (("unet", *SMALL, "--size", "100"), "size must be a multiple of 64 pixels, got 100"),
        (("unet", "--weights", "nowhere"), "nowhere"),
        (("unet", *SMALL, "--trace", "nowhere/trace.json"), "nowhere to write trace.json"),
        (("memory", "--limit", "many"), "a memory limit such as 4G or 900M was wanted, got 'many'"),
        (("gpu", "-o", "nowhere"), "PyTorch finds none here"),
    ],
)
def test_what_cannot_be_measured_is_said(bench, arguments, said):
    code, _, lines = bench(*arguments)
    assert code == 2 and len(lines) == 1 and said in lines[0]


def test_random_weights_on_disk_are_those_in_memory(tmp_path, monkeypatch):
    """What was interrupted is written anew, what is there is not."""
    (tmp_path / "unet.safetensors").write_bytes(b"half")
    read, model = load_model(write_folder(tmp_path, TINY)), random_model(TINY)
    for part in ("unet", "vae", "text_encoder"):
        found = getattr(read, part).state_dict()
        for name, value in getattr(model, part).state_dict().items():
            assert torch.equal(found[name], value), name
    assert read.config == TINY and read.tokenizer.vocabulary == model.tokenizer.vocabulary
    monkeypatch.setattr(random_weights, "random_model", None)
    write_folder(tmp_path, TINY)  # all there


def test_a_shared_map_is_counted_once():
    pair, alone = Shape(2, 1, 2, 4096, 4096, 8, 40), Shape(1, 1, 1, 4096, 4096, 8, 40)
    assert work("plain", alone).flops == 4 * 8 * 4096 * 4096 * 40
    assert work("plain", pair).flops == 2 * work("plain", alone).flops
    assert work("injected", pair).flops == 0.75 * work("plain", pair).flops
    assert work("injected", pair).exponentials == 0.5 * work("plain", pair).exponentials
    assert work("materialised", alone).bytes - work("plain", alone).bytes == 4 * 268_435_456
    for gpu, ratios in (("h100", (0.5, 0.6)), ("a100", (0.75, 0.64))):  # as kernels/README.md has them
        ours, plain = (work(way, pair).seconds(GPUS[gpu]) for way in ("injected", "plain"))
        assert [a / b for a, b in zip(ours, plain)] == pytest.approx(ratios, abs=0.005)
    assert work("injected", pair).bound(GPUS["h100"]) == "exponentials"


def gpu(folder: Path, minutes: str) -> tuple[int, dict, str]:
    command = [sys.executable, str(BENCH), "gpu", "--dry-run", "--minutes", minutes, "-o", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    return (
        done.returncode,
        json.loads((folder / "gpu.json").read_text()),
        done.stderr + (folder / "log.txt").read_text(),
    )


def test_gpu_runs_dry_from_end_to_end(tmp_path):
    code, result, said = gpu(tmp_path, "20")
    assert code == 0, said
    parts = {name: part["lines"] for name, part in result["parts"].items()}
    assert list(parts) == ["tests", "miniature", "attention", "network", "edit"]
    assert all(part["ended"] == "finished" for part in result["parts"].values())
    assert parts["tests"] and {line["outcome"] for line in parts["tests"]} == {"skipped"}
    names = ["cpu, float32", "cpu, float32", "cpu, bfloat16", "cpu, float16"]
    assert [line["what"] for line in parts["miniature"]] == names
    assert all(line["psnr_to_cpu"] > 30 for line in parts["miniature"])
    assert {line["way"] for line in parts["attention"]} == {"plain", "materialised", "gathered", "injected"}
    timed = {(line["what"], line["way"]) for line in parts["network"] if "median_ms" in line}
    whats = ("two-row forward", "inner iteration")
    assert timed == {(what, way) for what in whats for way in ("eager", "channels_last", "compiled")}
    graphs = [line["failed"] for line in parts["network"] if line["way"].startswith("graph")]
    assert len(graphs) == 4 and all("a CUDA graph needs a CUDA GPU" in why for why in graphs)
    whole = [line for line in parts["edit"] if line["what"].startswith("all inner iterations")]
    assert len(whole) == 2 and all(line["gradient_passes"] == 3 and line["seconds"] > 0 for line in whole)
    report = (tmp_path / "report.md").read_text()
    assert "no figure in it means anything" in report and "| cross-16 |" in report


def test_gpu_keeps_what_it_had_when_parts_are_cut_off(tmp_path):
    code, result, said = gpu(tmp_path, "0.01")
    assert code == 2 and "not all went well: tests: cut off after 0 s; miniature" in said
    assert len(result["parts"]) == 5 and "(not measured)" in (tmp_path / "report.md").read_text()
