"""Trade-offs: rows that differ in one knob are a curve. A method is better where its curve is, not at a point (Couairon
et al. 2022)."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..charts import figure
from ..methods.common import as_text
from .metrics import METRICS
from .report import Line
from .rows import ranged

if TYPE_CHECKING:
    from matplotlib.figure import Figure

AXES = (  # what is drawn against what: of each axis the first metric that the curve has
    (("one_minus_lpips", "input_psnr"), ("clip",)),
    (("background_psnr",), ("success", "clip_edited")),
    (("gradient_passes",), ("reconstruction_psnr",)),
    (("seconds",), ("reconstruction_psnr",)),
    (("gradient_passes",), ("loss",)),
)
LEAST = 3  # points of a curve
FEW = 4  # curves whose intervals can be told apart
SHORT = 32  # letters of a name, of which four fit beside each other
APART = (16, 8)  # pixels between two points that both have their knob's value beside them

Curve = list[tuple[str, Line]]  # of a knob's value, in order


def curves(lines: Sequence[Line]) -> dict[str, Curve]:
    """Of the lines of one kind: every knob along which at least three differ, and in nothing else."""
    groups: dict[tuple[str, str, str], list[Line]] = {}
    for line in lines:
        for knob in ranged(line.row):
            others = {name: value for name, value in line.row.knobs.items() if name != knob}
            groups.setdefault((line.row.method, knob, json.dumps(others)), []).append(line)
    found = {}
    for (_, knob, _), group in groups.items():
        if len(group) >= LEAST:
            group.sort(key=lambda line: line.row.knobs[knob])
            name = knob.replace("_", "-")
            parts = [part for part in group[0].label.split(", ") if not part.startswith(f"{name} ")]
            found[", ".join([*parts, name])] = [(as_text(line.row.knobs[knob]), line) for line in group]
    return found


def charts(found: dict[str, Curve]) -> "Figure":
    """A chart for every two of AXES that a curve has and varies along; of few curves also the intervals, thin."""
    pairs = ([(x, y) for x in xs for y in ys if any(_has(c, x, y) for c in found.values())] for xs, ys in AXES)
    drawn = [having[0] for having in pairs if having]
    kind = next(line.kind for curve in found.values() for _, line in curve)
    made = figure(max(-(-len(drawn) // 2), 1), 2)
    names, texts = {}, []
    for axes, (x, y) in zip(made.axes, drawn):
        cases, bars = set(), []
        for number, (name, curve) in enumerate(found.items()):
            if _has(curve, x, y):
                sides = [[line.figures[metric] for _, line in curve] for metric in (x, y)]
                values = [[f.value for f in side] for side in sides]
                doubts = [[[max(f.value - f.low, 0), max(f.high - f.value, 0)] for f in side] for side in sides]
                across, up = (list(zip(*doubt)) for doubt in doubts)
                colour, style = f"C{number % 10}", ("o-", "s--")[number // 10 % 2]
                names[name] = axes.plot(*values, style, color=colour, markersize=3, linewidth=1)[0]
                bars += [((*values, up, across), colour)]
                texts += [(axes, text, point, colour) for (text, _), point in zip(curve, zip(*values))]
                cases |= {f.cases for side in sides for f in side}
        axes.set_yscale("log" if y == "loss" else "linear")
        axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())  # wide intervals leave the points their room
        for bar, colour in bars if len(found) <= FEW else ():
            axes.errorbar(*bar, fmt="none", ecolor=colour, elinewidth=0.4)
        of = " to ".join(map(str, sorted({min(cases), max(cases)})))
        axes.set(xlabel=METRICS[x].title, ylabel=METRICS[y].title)
        axes.set_title(f"{kind}, {of} cases", fontsize="small")
    for axes in made.axes[len(drawn) :]:
        axes.remove()
    columns = 2 if any(len(name) > SHORT for name in names) else 4
    made.set_figheight(made.get_figheight() + 0.2 * -(-len(names) // columns))  # inches, a line of the legend
    made.legend([*names.values()], [*names], loc="outside lower center", ncols=columns, fontsize="x-small")
    _annotate(made, texts)
    return made


def _annotate(made: "Figure", texts: Sequence[tuple]) -> None:
    """Writes each text beside its point, but not over one that is there."""
    made.draw_without_rendering()  # only then it is known where the points are
    taken = []
    for axes, text, point, colour in texts:
        place = axes.transData.transform(point)
        if all(any(abs(place - other) > APART) for other in taken):
            axes.annotate(text, point, (3, 3), textcoords="offset points", fontsize="xx-small", color=colour)
            taken.append(place)


def _has(curve: Curve, x: str, y: str) -> bool:
    figures = [line.figures for _, line in curve]
    return all(x in each and y in each for each in figures) and len({each[x].value for each in figures}) > 1
