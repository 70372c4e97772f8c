"""The peak of a whole edit's memory, by the operating system's count, beside the estimate that keeps limits."""

import argparse
import tempfile
from pathlib import Path

from ..memory import parse_limit
from . import common
from .random_weights import RANDOM, write_folder

KNOBS = {"steps": 1, "inner_steps": 1, "self_steps": 1.0, "cross_steps": 1.0}  # every stage, and the most rows
PROMPT = "a brown dog lying down on grass"


def bench(options: argparse.Namespace) -> None:
    """One edit a line, in a process of its own."""
    for limit in options.limit:
        parse_limit(limit)
    facts = common.card(options, weights=options.weights, size=options.size or "the model's", knobs=str(KNOBS))
    lines = []
    with tempfile.TemporaryDirectory(prefix="minibaret-") as temporary:
        weights = str(options.weights)
        if weights in RANDOM:
            weights = str(write_folder(options.files or Path(temporary), RANDOM[weights]))
        for limit in ["none", *options.limit]:
            line = common.in_process("memory-once", weights, limit, str(options.size or 0), str(options.device))
            lines.append(line)
    keys = ("limit", "peak_memory", "memory_estimate", "seconds", "savings")
    common.finish(options, facts, lines, keys=keys)


def once(weights: str, limit: str, size: str, device: str) -> dict:
    """An edit of a drawn picture, in this process; its summary."""
    from ..loading import load
    from ..miniature.world.drawing import render
    from ..miniature.world.scene import Scene

    limit = None if limit == "none" else parse_limit(limit)
    editor = load(None if weights == "miniature" else weights, device, memory_limit=limit)
    picture = render(Scene(1, "dog", "standing", "brown", "grass"))
    sides = (int(size), int(size)) if int(size) else None
    result = editor.edit(picture, PROMPT, size=sides, pictures=("transition",), **KNOBS)
    return {"limit": limit, **result.summary()}
