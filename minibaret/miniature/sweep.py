"""The sweep behind the miniature's own defaults: settings tried on scenes that are neither trained on nor measured."""

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path

from ..editor import Editor
from ..evaluation import evaluate
from .scene import SWEEP_SEEDS

GRID = {
    "guidance": (3.0, 7.5),
    "learning_rate": (1e-2, 1e-3),
    "tolerance": ((1e-4, 5e-5),),
}


def sweep(editor: Editor, count: int, path: Path, watch: Callable[[dict], None], grid: dict = GRID) -> list[dict]:
    """Scores every combination of the grid on `count` posture edits; each line is kept in the JSON file as it comes.

    Lines that the file has already are not measured again.
    """
    lines = json.loads(path.read_text()) if path.exists() else []
    for values in product(*grid.values()):
        changes = dict(zip(grid, values))
        key = {"scenes": count, **json.loads(json.dumps(changes))}
        if any(key.items() <= line.items() for line in lines):
            continue
        scores, _ = evaluate(editor, editor.settings(**changes), "posture", count, seeds=SWEEP_SEEDS)
        lines.append({**key, **{name: round(value, 3) for name, value in scores.items()}})
        unfinished = path.with_suffix(".part")
        unfinished.write_text("[\n" + ",\n".join(json.dumps(line) for line in lines) + "\n]\n")
        unfinished.replace(path)
        watch(lines[-1])
    return lines
