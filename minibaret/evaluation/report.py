"""What kept scores say: a table, and the best, median and worst edit of each row."""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from ..errors import InputError
from ..images import read_image
from ..methods import METHODS
from ..sheet import Cell, contact_sheet
from ..weights.folder import tuples
from .intervals import Figure, difference, means
from .metrics import METRICS
from .networks import Missing, Networks
from .rows import Row, labels
from .scoring import Scores, picture_path, read_lines

ALL = "all kinds"
PARTS = {"edit": "the edit", "input": "what is kept of the input", "cost": "cost and reconstruction"}
PAIRS = ("clip", "clip_edited", "clip_score", "fid")  # by the weights' own CLIP pair where there is no other
BY_KIND = ("success", "answer_psnr", "clip", "background_psnr")  # tables of their own
JUDGES = ("answer_psnr", "clip", "background_psnr", "input_psnr")  # of best and worst: the first that all cases have


class Scored(NamedTuple):
    row: Row
    scores: dict[str, Scores]  # by case


class Line(NamedTuple):
    """Of one row, on the cases of one kind."""

    kind: str
    row: Row
    label: str
    cases: int
    figures: dict[str, Figure]  # by metric, in the units of its column
    absent: dict[str, str]  # why there is none
    over: dict[str, Figure]  # by how much more than the row that it is compared with


def read(path: Path) -> list[Scored]:
    """Raises InputError where the file is missing, damaged or empty, or its scores are of several weights."""
    if not path.is_file():
        raise InputError(f"there are no results at {path}")
    lines, _ = read_lines(path)
    for number, line in enumerate(lines, 1):
        of, kinds = line["of"], {"weights": str, "case": str, "method": str, "knobs": dict}
        wrong = [name for name, kind in kinds.items() if not isinstance(of.get(name), kind)]
        wrong += ["scores"] * (not line["scores"]) + ["method"] * (of.get("method") not in [*METHODS])
        if wrong:
            raise InputError(f"{path} must be what `minibaret evaluate` wrote, but line {number} has no {wrong[0]}")
    if not lines:
        raise InputError(f"{path} holds no scores")
    found = grouped(line.values() for line in lines)
    found.sort(key=lambda one: [*METHODS].index(one.row.method))  # not as jobs happened to end
    weights = {line["of"]["weights"] for line in lines}
    if len(weights) != 1:
        raise InputError(f"{path} must hold scores of one model's weights, it holds those of {len(weights)}")
    return found


def grouped(entries: Iterable[tuple[dict, Scores]]) -> list[Scored]:
    """Scores by row, from what each is of and itself."""
    found: dict[str, Scored] = {}
    for of, scores in entries:
        row = Row(of["method"], tuples(of["knobs"]))
        found.setdefault(str(row), Scored(row, {})).scores[of["case"]] = scores
    return list(found.values())


Distance = Callable[[Scored], float | str]  # FID of a row's edits and their inputs, or why there is none


def table(scored: Sequence[Scored], against: str = "", fid: Distance | None = None) -> list[Line]:
    """A line for every row and kind of case, and for all kinds together first. against: the label or method of the row
    that the others are compared with, on the cases that both have. Raises InputError where there is no such row."""
    texts, _ = labels([one.row for one in scored])
    other = scored[compared_with([one.row for one in scored], against)] if against else None
    kinds = list(dict.fromkeys(name.partition("/")[0] for one in scored for name in one.scores))
    kinds = kinds if len(kinds) == 1 else [ALL, *kinds]
    lines = []
    for kind in kinds:
        for one, text in zip(scored, texts):
            mine = {name: scores for name, scores in one.scores.items() if kind in (ALL, name.partition("/")[0])}
            both = [name for name in mine if other and other is not one and name in other.scores]
            if mine:
                figures, absent = means([*mine.values()]), {}
                for name, value in next(iter(mine.values())).items():
                    if isinstance(value, str):
                        absent[name] = value
                if fid and kind == kinds[0] and len(mine) > 1:
                    value = fid(one)
                    if isinstance(value, str):
                        absent["fid"] = value
                    else:
                        figures["fid"] = Figure(value, value, value, len(mine))
                over = difference([mine[name] for name in both], [other.scores[name] for name in both])
                lines.append(Line(kind, one.row, text, len(mine), in_units(figures), absent, in_units(over)))
    return lines


def compared_with(rows: Sequence[Row], against: str) -> int:
    """Which row has that label, or else alone that method. Raises InputError where none has, or several."""
    texts, _ = labels(rows)
    if against in texts:
        return texts.index(against)
    found = [place for place, row in enumerate(rows) if row.method == against]
    if len(found) == 1:
        return found[0]
    several = ", the method of several" if found else ""
    raise InputError(f"a row to compare with must be one of {'; '.join(texts)}, got {against}{several}")


def fid(networks: Networks, folder: Path, one: Scored) -> float | str:
    """Of a row's edits and their inputs, from the folder of pictures; or why there is none."""
    edits = (_read(picture_path(folder, {**one.row._asdict(), "case": name})) for name in one.scores)
    inputs = (_read(folder / "input" / f"{name}.png") for name in one.scores)
    try:
        return networks.fid(edits, inputs)
    except Missing as missing:
        return str(missing)


def in_units(figures: dict[str, Figure]) -> dict[str, Figure]:
    return {name: figure.times(METRICS[name].scale) for name, figure in figures.items() if name in METRICS}


def as_text(lines: Sequence[Line], against: str = "") -> str:
    """Markdown, a line for each row: a table for each part of METRICS; then, where there are several kinds of case, one
    for each of BY_KIND, with a column for each of them."""
    first, *kinds = dict.fromkeys(line.kind for line in lines)
    mine = [line for line in lines if line.kind == first]
    _, shared = labels([line.row for line in mine])
    text = [f"Means over cases, 95 % intervals in brackets.{f' All: {shared}.' if shared else ''}", ""]
    for part, title in PARTS.items():
        names = [name for name in METRICS if METRICS[name].part == part]
        names = [name for name in names if any(name in line.figures or name in line.absent for line in mine)]
        if names:
            text += _heading(f"{first}: {title}", "cases", *(METRICS[name].title for name in names))
            for line in mine:
                cells = [_cell(line.figures, name, line.cases) or line.absent.get(name, "") for name in names]
                text.append(f"| {line.label} | {line.cases} | {' | '.join(cells)} |")
            for line in mine if against else ():
                pairs = max((figure.cases for figure in line.over.values()), default=0)
                cells = [_cell(line.over, name, pairs) for name in names]
                text += [f"| {line.label}, over {against} | {pairs} | {' | '.join(cells)} |"] if any(cells) else []
            text.append("")
    each = {(str(line.row), line.kind): line for line in lines}
    for name in (name for name in BY_KIND if kinds and any(name in line.figures for line in lines)):
        text += _heading(f"by kind: {METRICS[name].title}", *kinds)
        for line in mine:
            found = [each.get((str(line.row), kind)) for kind in kinds]
            cells = [_cell(one.figures, name, one.cases) if one else "" for one in found]
            text.append(f"| {line.label} | {' | '.join(cells)} |")
        text.append("")
    if any(name in line.figures for line in lines for name in PAIRS):
        said = "of the weights' own CLIP pair, and not to be compared with published ones"
        text.append(f"Without --networks, CLIP's figures and FID are {said}.\n")
    return "\n".join(text)


def _heading(*cells: str) -> list[str]:
    return [f"| {' | '.join(cells)} |", "|---" * len(cells) + "|"]


def _cell(figures: dict[str, Figure], name: str, cases: int) -> str:
    figure = figures.get(name)
    if figure is None or figure.cases == cases:
        return str(figure or "")
    return f"{figure}, {figure.cases} case{'s' * (figure.cases > 1)}"


def as_json(lines: Sequence[Line], against: str = "") -> dict:
    """Numbers have five digits; what JSON has no number for, such as NaN, is None."""

    def short(x: float) -> float | int | None:
        return x if isinstance(x, int) else float(f"{x:.5g}") if math.isfinite(x) else None

    def plain(figures: dict[str, Figure]) -> dict:
        return {name: {part: short(x) for part, x in figure._asdict().items()} for name, figure in figures.items()}

    rows = [
        {**line._asdict(), **line.row._asdict(), "figures": plain(line.figures), "over": plain(line.over)}
        for line in lines
    ]
    for row in rows:
        del row["row"]
    return {"against": against or None, "rows": rows}


def as_file(values: dict) -> str:
    """JSON of `as_json`'s values, a row a line."""
    rows = ",\n".join(json.dumps(row, ensure_ascii=False) for row in values["rows"])
    return f'{{"against": {json.dumps(values["against"])}, "rows": [\n{rows}\n]}}\n'


def sheet(scored: Sequence[Scored], folder: Path) -> Image.Image:
    """Input, edit and, if there is one, right answer of the best, the median and the worst case of each row; without a
    score to judge by, of the first, the middle and the last. folder: of the pictures; a missing one is an empty place.
    """
    rows = []
    for one, text in zip(scored, labels([one.row for one in scored])[0]):
        judges = (name for name in JUDGES if all(isinstance(s.get(name), float) for s in one.scores.values()))
        judge, order = next(judges, None), [*one.scores]
        if judge:
            order.sort(key=lambda name: one.scores[name][judge], reverse=True)
        ranks = {len(order) // 2: "median", len(order) - 1: "worst", 0: "best"}  # of few cases some are one
        cells = []
        for place in sorted(ranks):
            name = order[place]
            lines = text.split(", ")
            if judge:
                lines = [ranks[place], *lines, f"{METRICS[judge].title} {one.scores[name][judge]:.3g}"]
            edited = picture_path(folder, {**one.row._asdict(), "case": name})
            cells.append(_place(folder / "input" / f"{name}.png", name))
            cells.append(_place(edited, *lines))
            if "answer_psnr" in one.scores[name]:
                cells.append(_place(folder / "answer" / f"{name}.png", "right answer"))
        rows.append(cells)
    return contact_sheet(rows)


def _place(path: Path, *lines: str) -> Cell:
    try:
        return _read(path), lines
    except Missing as missing:
        return None, [*lines, str(missing)]


def _read(path: Path) -> Image.Image:
    try:
        return read_image(path)
    except InputError:
        raise Missing(f"needs {'/'.join(path.parts[-3:])}") from None
