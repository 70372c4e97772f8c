"""What a first run on a GPU should settle, in minutes: `python bench.py gpu --minutes 8 -o FOLDER`.

Five parts in order, each in a process of its own with a limit of its own; time that a part leaves over goes to the
later ones. A part prints a line of JSON for each measurement, and gpu.json is written anew with every line, so that a
run that is cut off keeps what it had. At the end come report.md, a paragraph for the README and a table for each part;
log.txt has what the processes said besides. Neither diffusers nor a network is needed: from a clone,
`pip install -e . --no-deps --no-build-isolation` beside PyTorch, Triton, safetensors, tokenizers, numpy, pillow, tqdm
and pytest.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import TextIO

import torch

from ..errors import InputError
from ..files import write_whole
from . import common
from .gpu_parts import DRY, PARTS, REAL


def bench(options: argparse.Namespace) -> None:
    """Raises InputError without a GPU, and RuntimeError at the end where a test failed or a part did not finish."""
    if not options.dry_run and not torch.cuda.is_available():
        raise InputError("gpu needs a CUDA GPU, and PyTorch finds none here; --dry-run does the same on the CPU, tiny")
    options.output.mkdir(parents=True, exist_ok=True)
    at = DRY if options.dry_run else REAL
    options.device, options.dtype = at.device, at.half
    pixels = at.config.image_size
    facts = common.card(options, picture=f"{pixels}×{pixels}", dry_run=options.dry_run, minutes=options.minutes)
    result = {"card": facts, "parts": {}}
    end, shares = time.monotonic() + 60 * options.minutes, [share for _, share in PARTS.values()]
    with (options.output / "log.txt").open("w", encoding="utf-8") as log:
        for index, name in enumerate(PARTS):
            begin = time.monotonic()
            limit = max(0.0, end - begin) * shares[index] / sum(shares[index:])
            part = result["parts"][name] = {"limit_s": round(limit, 1), "ended": "cut off with the run", "lines": []}
            for line in run_part(name, options.dry_run, limit, log):
                part.update(line) if "ended" in line else part["lines"].append(line)
                part["seconds"] = round(time.monotonic() - begin, 1)
                write_whole(options.output / "gpu.json", json.dumps(result, indent=1, ensure_ascii=False).encode())
            print(f"{name}: {part['ended']}, {len(part['lines'])} lines, {part['seconds']} s", flush=True)
    text = report(result)
    write_whole(options.output / "report.md", text.encode())
    print(f"\n{text}")
    bad = [f"{name}: {part['ended']}" for name, part in result["parts"].items() if part["ended"] != "finished"]
    bad += [line["what"] for line in result["parts"]["tests"]["lines"] if line["outcome"] in ("failed", "error")]
    if bad:
        raise RuntimeError(f"not all went well: {'; '.join(bad)}")


def run_part(name: str, dry_run: bool, limit: float, log: TextIO) -> Iterator[dict]:
    """The lines of a part in a process of its own; the last says how it ended."""
    command = [sys.executable, sys.argv[0], "gpu-once", name, str(dry_run)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True)
    late = threading.Event()

    def stop() -> None:
        """With all that it started, such as pytest and compilers."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    timer = threading.Timer(limit, lambda: (late.set(), stop()))
    timer.start()
    ended = None
    try:
        for text in process.stdout:
            try:
                line = json.loads(text)
            except ValueError:
                line = None
            if not isinstance(line, dict):  # what a library printed
                log.write(text)
            elif "ended" in line:
                ended = line
                break
            else:
                yield line
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
    finally:
        timer.cancel()
        stop()
        process.wait()
    yield ended or {"ended": f"cut off after {limit:.0f} s" if late.is_set() else f"exit code {process.returncode}"}


def once(part: str, dry_run: str) -> dict:
    """One part, in this process; prints its lines as they come."""
    for line in PARTS[part][0](DRY if dry_run == "True" else REAL):
        print(json.dumps(line), flush=True)
    return {"ended": "finished"}


def report(result: dict) -> str:
    """Markdown: a paragraph for the README, what ran where, and a table for each part."""
    aims = "Aims: a pair that shares a map at 4096 tokens ≤ 0.60 of plain attention; a whole edit on an H100 < 3 s."
    texts = ["# A first run on a GPU", paragraph(result), aims]
    texts.append("\n".join(f"- {name}: {value}" for name, value in result["card"].items()))
    for name, part in result["parts"].items():
        lines = [line for line in part["lines"] if line.get("outcome") != "passed"]
        texts += [f"## {name}: {part['ended']}, {part['seconds']} of {part['limit_s']} s", common.table(lines)]
    return "\n\n".join(texts) + "\n"


PARAGRAPH = """
`python bench.py gpu` on {device} ({dtype}, PyTorch {torch}, Triton {triton}). Tests for a GPU: {passed} passed,
{skipped} skipped, {failed} failed. The miniature's edit against the CPU's, PSNR: {float32} dB in float32, {bfloat16} in
bfloat16, {float16} in float16. Two rows that share a map at {tokens} tokens, of plain attention's time: {injected} by
the kernel (the roofline says {predicted}), {concatenated} with values side by side in one SDPA, {materialised} with
maps in memory. Attention layers are {share} of a forward of two rows. An inner iteration as a CUDA graph takes {graph}
of the eager time. A whole edit of {picture} pixels with random weights and {passes} inner iterations: {seconds} s, of
which target-text inversion {tuning} s, and {peak} bytes at the peak. The paper: 26 s on an A100.
"""


def paragraph(result: dict) -> str:
    """What the README may say of the run."""
    card, parts = result["card"], {name: part["lines"] for name, part in result["parts"].items()}
    at = DRY if card["dry_run"] else REAL

    def figure(part: str, key: str, form: str, **wanted: str) -> str:
        """Of the first line that has it and whose entries begin with what is wanted."""
        for line in parts[part]:
            if key in line and all(line.get(name, "").startswith(value) for name, value in wanted.items()):
                return form.format(line[key])
        return "(not measured)"

    outcomes = [line["outcome"] for line in parts["tests"]]
    pair, whole = {"site": f"self-{at.tokens[0]}", "case": "maps"}, {"what": "all inner iterations"}
    figures = {
        "tokens": at.tokens[0],
        "passed": outcomes.count("passed"),
        "skipped": outcomes.count("skipped"),
        "failed": outcomes.count("failed") + outcomes.count("error"),
        "predicted": figure("attention", "predicted_ratio", "{0[0]:.2f} to {0[1]:.2f}", **pair, way="injected"),
        "share": figure("network", "share", "{:.0%}", what="attention layers"),
        "graph": figure("network", "ratio_to_eager", "{:.2f}", what="inner iteration", way="graph"),
        "passes": figure("edit", "gradient_passes", "{}", **whole),
        "seconds": figure("edit", "seconds", "{:.2f}", **whole),
        "tuning": figure("edit", "stages", "{0[target-text inversion]:.2f}", **whole),
        "peak": figure("edit", "peak", "{:.2e}", **whole),
    }
    for dtype in ("float32", "bfloat16", "float16"):
        figures[dtype] = figure("miniature", "psnr_to_cpu", "{:.1f}", what=f"{at.device}, {dtype}")
    for way in ("injected", "concatenated", "materialised"):
        figures[way] = figure("attention", "ratio_to_plain", "{:.2f}", **pair, way=way)
    warning = "This was a dry run on a CPU with tiny shapes: no figure in it means anything. "
    return warning * card["dry_run"] + " ".join(PARAGRAPH.format(**card, **figures).split())
