"""The bench at its smallest: what it prints, not how fast anything was."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from minibaret.kernels.roofline import GPUS, Shape, work

BENCH = Path(__file__).parent.parent / "bench.py"


def bench(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(BENCH), *arguments], capture_output=True, text=True)


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


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("attention", "--sites", "self-9"), "sites must be of self-4096"),
        (("attention", "--sites", "self-64", "--attention", "triton"), "from the Triton kernel, but"),
        (("unet", "--weights", "miniature-random", "--size", "100"), "size must be a multiple of 32 pixels, got 100"),
        (("unet", "--weights", "nowhere"), "nowhere"),
        (("memory", "--limit", "many"), "a memory limit such as 4G or 900M was wanted, got 'many'"),
    ],
)
def test_what_cannot_be_measured_is_said(arguments, said):
    done = bench(*arguments)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and said in done.stderr


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
