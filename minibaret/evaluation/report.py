"""What kept scores say: a table, and the best, median and worst edit of each row."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from ..errors import InputError
from ..images import read_image
from ..methods import METHODS
from ..sheet import contact_sheet
from ..weights.folder import tuples
from .intervals import Figure, difference, means
from .metrics import METRICS
from .networks import Missing, Networks
from .rows import Row, labels
from .scoring import Scores, picture_path, read_lines

ALL = "all kinds"
PARTS = {"edit": "the edit", "input": "what is kept of the input", "cost": "cost and reconstruction"}
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
    """Raises InputError where the file is missing or damaged, or its scores are of several weights."""
    if not path.is_file():
        raise InputError(f"there are no results at {path}")
    lines, _ = read_lines(path)
    for number, line in enumerate(lines, 1):
        of, kinds = line["of"], {"weights": str, "case": str, "method": str, "knobs": dict}
        wrong = [name for name, kind in kinds.items() if not isinstance(of.get(name), kind)]
        wrong += ["scores"] * (not line["scores"]) + ["method"] * (of.get("method") not in METHODS)
        if wrong:
            raise InputError(f"{path} must be what `minibaret evaluate` wrote, but line {number} has no {wrong[0]}")
    found = grouped(line.values() for line in lines)
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
                        figures["fid"] = Figure(value, value, value, 1)
                over = difference([mine[name] for name in both], [other.scores[name] for name in both])
                lines.append(Line(kind, one.row, text, len(mine), in_units(figures), absent, in_units(over)))
    return lines


def compared_with(rows: Sequence[Row], against: str) -> int:
    """Which row has that label, or method. Raises InputError where none has."""
    texts, _ = labels(rows)
    for place, (row, text) in enumerate(zip(rows, texts)):
        if against in (text, row.method):
            return place
    raise InputError(f"a row to compare with must be one of {'; '.join(texts)}, got {against}")


def fid(networks: Networks, folder: Path, one: Scored) -> float | str:
    """Of a row's edits and their inputs, from the folder of pictures; or why there is none. Raises InputError where one
    is missing."""
    edits = (read_image(picture_path(folder, {**one.row._asdict(), "case": name})) for name in one.scores)
    inputs = (read_image(folder / "input" / f"{name}.png") for name in one.scores)
    try:
        return networks.fid(edits, inputs)
    except Missing as missing:
        return str(missing)


def in_units(figures: dict[str, Figure]) -> dict[str, Figure]:
    return {name: figure.times(METRICS[name].scale) for name, figure in figures.items() if name in METRICS}


def as_text(lines: Sequence[Line], against: str = "") -> str:
    """Markdown: for each kind and part of METRICS a table, a line for each row."""
    shared = labels([line.row for line in lines])[1]
    text = [f"Means over cases, 95 % intervals in brackets.{f' All: {shared}.' if shared else ''}", ""]
    for kind in dict.fromkeys(line.kind for line in lines):
        mine = [line for line in lines if line.kind == kind]
        for part, title in PARTS.items():
            names = [name for name in METRICS if METRICS[name].part == part]
            names = [name for name in names if any(name in line.figures or name in line.absent for line in mine)]
            if names:
                titles = " | ".join(METRICS[name].title for name in names)
                text += [f"| {kind}: {title} | cases | {titles} |", "|---" * (len(names) + 2) + "|"]
                for line in mine:
                    cells = [_cell(line, name) for name in names]
                    text.append(f"| {line.label} | {line.cases} | {' | '.join(cells)} |")
                for line in mine if against else ():
                    cells = [str(line.over.get(name, "")) for name in names]
                    text += [f"| {line.label}, over {against} | | {' | '.join(cells)} |"] if any(cells) else []
                text.append("")
    return "\n".join(text)


def _cell(line: Line, name: str) -> str:
    figure = line.figures.get(name)
    fewer = f", {figure.cases} cases" if figure and figure.cases not in (1, line.cases) else ""
    return f"{figure}{fewer}" if figure else line.absent.get(name, "")


def as_json(lines: Sequence[Line], against: str = "") -> dict:
    def plain(figures: dict[str, Figure]) -> dict:
        return {name: figure._asdict() for name, figure in figures.items()}

    rows = [
        {**line._asdict(), **line.row._asdict(), "figures": plain(line.figures), "over": plain(line.over)}
        for line in lines
    ]
    for row in rows:
        del row["row"]
    return {"against": against or None, "rows": rows}


def sheet(scored: Sequence[Scored], folder: Path) -> Image.Image:
    """Input, edit and, if there is one, right answer of the best, the median and the worst case of each row. folder: of
    the pictures. Raises InputError where one is missing."""
    rows = []
    for one, text in zip(scored, labels([one.row for one in scored])[0]):
        judge = next(name for name in JUDGES if all(isinstance(s.get(name), float) for s in one.scores.values()))
        order = sorted(one.scores, key=lambda name: one.scores[name][judge], reverse=True)
        cells = []
        for rank, name in {"best": order[0], "median": order[len(order) // 2], "worst": order[-1]}.items():
            value = f"{METRICS[judge].title} {one.scores[name][judge]:.3g}"
            cells.append((read_image(folder / "input" / f"{name}.png"), [name]))
            edited = picture_path(folder, {**one.row._asdict(), "case": name})
            cells.append((read_image(edited), [rank, *text.split(", "), value]))
            if "answer_psnr" in one.scores[name]:
                cells.append((read_image(folder / "answer" / f"{name}.png"), ["right answer"]))
        rows.append(cells)
    return contact_sheet(rows)
