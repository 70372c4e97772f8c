"""The peak of a whole edit's memory, by the operating system's count, beside the estimate that keeps limits."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from ..errors import InputError
from ..memory import parse_limit
from .common import card, finish

STEPS = ("--steps", "1", "--inner-steps", "1", "--self-steps", "1", "--cross-steps", "1")  # every stage, the most rows
RANDOM = "sd15-random"


def bench(options: argparse.Namespace) -> None:
    """One edit a line, in a process of its own, with malloc as the system has it."""
    for limit in options.limit:
        parse_limit(limit)
    with tempfile.TemporaryDirectory(prefix="minibaret-") as temporary:
        weights = str(options.weights)
        if weights == RANDOM:
            folder = options.files or Path(temporary)
            _write(folder)
            weights = str(folder)
        facts = card(options, weights=options.weights, size=options.size or "the model's", settings=" ".join(STEPS))
        print(f"\n{'limit':>8} {'peak':>9} {'estimate':>9} {'seconds':>8}  savings")
        table = []
        for limit in [None, *options.limit]:
            line = _edit(weights, limit, options, Path(temporary))
            table.append(line)
            peak, expected = line["peak_memory"] / 1e9, line["memory_estimate"] / 1e9
            seconds = sum(line["seconds"].values())
            print(f"{limit or 'none':>8} {peak:>6.2f} GB {expected:>6.2f} GB {seconds:>8.1f}  {line['savings']}")
    finish(options, {"card": facts, "table": table})


def _edit(weights: str, limit: str | None, options: argparse.Namespace, folder: Path) -> dict:
    """Edits a drawn picture with the command line; its summary."""
    from ..miniature.world.drawing import render
    from ..miniature.world.scene import Scene

    render(Scene(1, "dog", "standing", "brown", "grass")).save(folder / "dog.png")
    command = [sys.executable, "-m", "minibaret", "edit", str(folder / "dog.png"), "a brown dog lying down on grass"]
    command += ["-o", str(folder / "edited.png"), "--force", "--json", "--device", str(options.device), *STEPS]
    command += [] if weights == "miniature" else ["--weights", weights]
    command += ["--width", str(options.size), "--height", str(options.size)] if options.size else []
    command += ["--memory", limit] if limit else []
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        *_, said = ["", *done.stderr.splitlines()]
        raise InputError(f"the edit failed: {said if said.startswith('minibaret') else f'exit code {done.returncode}'}")
    return {"limit": limit and parse_limit(limit), **json.loads(done.stdout.splitlines()[-1])}


def _write(folder: Path) -> None:
    """From a process of its own, which takes 5 GB."""
    code = (
        "import sys; from pathlib import Path; from minibaret.bench.random_weights import write_folder; "
        "write_folder(Path(sys.argv[1]))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder.resolve())], cwd=Path(__file__).parents[2])
    if done.returncode:
        raise InputError(f"the random weights could not be written to {folder}: exit code {done.returncode}")
