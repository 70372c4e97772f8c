"""The sweep behind the miniature's own defaults: settings tried on scenes that are neither trained on nor measured.

Few scenes tell nothing: 83 % success over six of them was once 27.5 % over forty.
"""

import dataclasses
import json
import math
import random
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from ..editor import Editor
from ..errors import InputError
from ..evaluation import means
from ..files import check_place, read_json, write_text_whole
from ..images import write_image
from ..progress import Count, nobody
from ..settings import Settings
from .charts import scatter
from .edits import Edit, Kept, score_edits
from .world.scene import SWEEP_SEEDS
from .world.tasks import KIND_SETTINGS, KINDS

CHOICES = {
    "guidance": (2.0, 3.0, 5.0, 7.5),
    "learning_rate": (1e-3, 3e-3, 1e-2),
    "tolerance": ((1e-5, 2e-5), (1e-4, 5e-5)),
    "transition": ((0.8, 0.1), (0.6, 0.1)),
    "rigid": (False, True),
    "self_steps": (0.0, 0.2, 0.3, 0.5, 0.8),
    "cross_steps": (0.0, 0.4, 0.6, 0.8),
    "rows": ("cond", "both"),
    "inversion_text": ("target", "null"),
}
Changes = dict[str, object]


def one_at_a_time(start: Settings) -> list[Changes]:
    """No change, then every other choice of each setting by itself, if it makes a difference."""
    found: list[Changes] = [{}]
    for name, values in CHOICES.items():
        if name == "transition" and start.rigid:
            continue
        found += [{name: value} for value in values if value != getattr(start, name)]
    return found


def at_random(count: int, seed: int) -> list[Changes]:
    """Each setting drawn from its choices, `count` times, no combination twice. Raises InputError where there are not
    so many."""
    most = math.prod(map(len, CHOICES.values()))
    if count > most:
        raise InputError(f"there are {most} combinations to try at random, got {count}")
    generator, found = random.Random(seed), []
    while len(found) < count:
        drawn = {name: generator.choice(values) for name, values in CHOICES.items()}
        if drawn not in found:
            found.append(drawn)
    return found


def listed(path: Path, kind: str, fingerprint: str) -> list[Changes]:
    """The changes in a JSON file: a list of objects, such as [{"guidance": 5.0, "self_steps": 0.2}]; or what a sweep
    left, sweep.json, of which the lines of the kind and of the weights with that fingerprint count. Raises InputError
    where the file is something else.
    """
    of = {"kind": kind, "weights": fingerprint}
    known = {field.name for field in dataclasses.fields(Settings)}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if isinstance(found, list) and all(isinstance(line, dict) for line in found):
        found = [line.get("settings", line) for line in found if {**of, **line}.items() >= of.items()]
    if not isinstance(found, list) or not all(isinstance(changes, dict) for changes in found):
        raise InputError(f"a JSON list of settings, each an object, was wanted in {path}")
    for name in {name for changes in found for name in changes} - known:
        raise InputError(f"{path} sets {name!r}; settings are {', '.join(sorted(known))}")
    return [{name: tuple(v) if isinstance(v, list) else v for name, v in changes.items()} for changes in found]


def sweep(
    editor: Editor,
    weights: Path,
    kind: str,
    tried: Sequence[Changes],
    count: int,
    kept: Kept,
    workers: int,
    watch: Count = nobody,
) -> list[dict]:
    """Scores each of the changes on the first `count` sweep scenes; returns this sweep's lines.

    The lines go to sweep.json in `weights` at the end, and sweep.png there shows all that are of these weights. Lines
    that the file has already are not measured again; of the others, no edit that is in `kept`. Raises InputError where
    the folder cannot be written to.
    """
    path = weights / "sweep.json"
    check_place(path, force=True)
    settings = [editor.settings(**KIND_SETTINGS[kind] | changes) for changes in tried]
    of = {"weights": kept.fingerprint, "kind": kind, "scenes": count}
    keys = [{**of, "settings": _plain(chosen)} for chosen in settings]
    lines = {_name(key): line for line in _read(path) for key in [_key(line)]}
    missing = {_name(key): (key, chosen) for key, chosen in zip(keys, settings) if _name(key) not in lines}
    edits = [Edit(kind, seed, chosen) for _, chosen in missing.values() for seed in SWEEP_SEEDS[:count]]
    scores = iter(score_edits(edits, weights, kept, workers, watch))
    for name, (key, _) in missing.items():
        measured = means([next(scores) for _ in range(count)])
        lines[name] = {**key, **{figure: round(value, 3) for figure, value in measured.items()}}
    if missing:
        _write(path, lines.values())
    of_these = [line for line in lines.values() if line["weights"] == kept.fingerprint]
    if of_these:
        in_use = {name: editor.settings(**KIND_SETTINGS[name]) for name in KINDS}  # which may be others by now
        write_image(chart(of_these, in_use), weights / "sweep.png")
    return [lines[name] for name in dict.fromkeys(map(_name, keys))]


def chart(lines: Sequence[dict], in_use: dict[str, Settings]) -> Image.Image:
    """Success against background PSNR, one numbered dot per line, one chart for each kind and number of scenes.

    in_use: each kind's settings at present; their dot is filled, and the others named by what they change.
    """
    groups: dict[tuple[str, int], list[dict]] = {}
    for line in lines:
        groups.setdefault((line["kind"], line["scenes"]), []).append(line)
    charts = [_chart(kind, scenes, members, in_use[kind]) for (kind, scenes), members in groups.items()]
    whole = Image.new("RGB", (charts[0].width, sum(part.height for part in charts)))
    for index, part in enumerate(charts):
        whole.paste(part, (0, sum(above.height for above in charts[:index])))
    return whole


def _chart(kind: str, scenes: int, lines: Sequence[dict], in_use: Settings) -> Image.Image:
    points = [(line["background_psnr"], 100 * line["success"]) for line in lines]
    now = _plain(in_use)
    changes = [{name: value for name, value in line["settings"].items() if value != now[name]} for line in lines]
    labels = [
        ", ".join(f"{name.replace('_', ' ')} {_short(value)}" for name, value in changed.items()) or "in use"
        for changed in changes
    ]
    marked = changes.index({}) if {} in changes else None
    doubt = 196 * 0.5 / scenes**0.5  # points, two standard errors of a share of one half
    title = f"{kind} edits of {scenes} sweep scenes, one dot per setting (success is known to ± {doubt:.0f} points)"
    return scatter(points, labels, title, "background PSNR, dB", "success, %", (0, 100), marked)


def _short(value) -> str:
    if isinstance(value, list):
        return ":".join(map(_short, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) else f"{value:g}"


def _plain(settings: Settings) -> dict:
    """As JSON gives it back."""
    return json.loads(json.dumps(vars(settings)))


def _key(line: dict) -> dict:
    return {name: line.get(name) for name in ("weights", "kind", "scenes", "settings")}


def _name(key: dict) -> str:
    return json.dumps(key, sort_keys=True)


def _read(path: Path) -> list[dict]:
    return read_json(path) if path.exists() else []


def _write(path: Path, lines: Iterable[dict]) -> None:
    write_text_whole(path, "[\n" + ",\n".join(json.dumps(line) for line in lines) + "\n]\n")
