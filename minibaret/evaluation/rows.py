"""The rows of a table: which methods, with which knobs. A sweep is rows that differ in one knob."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from ..errors import InputError
from ..files import read_json
from ..methods import METHODS, find
from ..methods.common import as_text
from ..weights.folder import tuples

RANGES = {  # of knobs, the useful ones; ours
    "guidance": (3.0, 5.0, 7.5, 10.0),
    "rigid": (False, True),
    "transition": ((0.2, 0.1), (0.4, 0.1), (0.6, 0.1), (0.8, 0.1), (1.0, 0.1)),
    "self_steps": (0.0, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0),
    "cross_steps": (0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
    "feature_steps": (0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
    "ratio": (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
    "strength": (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    "threshold": (0.3, 0.4, 0.5, 0.6, 0.7),
    "eta": (0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
    "first_step": (0, 2, 4, 8, 12, 20, 30),
    "source_weight": (0.1, 0.2, 0.3, 0.4, 0.5, 0.7),
    "target_weight": (0.4, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2),
    "inner_steps": (1, 2, 3, 5, 10, 20),
}
JUDGE = "earned"  # what the best row is decided by


class Row(NamedTuple):
    method: str
    knobs: dict[str, object]  # all that the method has

    def changed(self, **changes) -> "Row":
        """Raises InputError for a knob or a value that the method cannot have."""
        return Row(self.method, vars(find(self.method).knobs_from({**self.knobs, **changes})))


def sweep(rows: Sequence[Row], named: Sequence[str] = ()) -> list[Row]:
    """From every row, rows along one knob: METHOD.KNOB where some are named, else each method's own. Raises InputError
    for one that has no range."""
    pairs = [(row, _strength(row)) for row in rows]
    if named:
        wanted = [name.replace("-", "_").rpartition(".")[::2] for name in named]
        pairs = [(row, knob) for name, knob in wanted for row in rows if _plain(row) == name]
    unknown = [name for name in named if name.replace("-", "_").rpartition(".")[0] not in {_plain(row) for row in rows}]
    if not pairs or unknown or any(knob not in ranged(row) for row, knob in pairs):
        known = ", ".join(dict.fromkeys(f"{row.method}.{knob}" for row in rows for knob in ranged(row)))
        raise InputError(f"knobs to sweep must be among {known}, got {', '.join(named)}")
    return [row.changed(**{knob: value}) for row, knob in pairs for value in RANGES[knob]]


def _strength(row: Row) -> str:
    return "first_step" if row.knobs.get("editor") == "masactrl" else METHODS[row.method].strength


def _plain(row: Row) -> str:
    return row.method.replace("-", "_")


def ranged(row: Row) -> list[str]:
    return [name for name in row.knobs if name in RANGES]


def best(path: Path, methods: Iterable[str]) -> list[Row]:
    """The best row of each method in the JSON that `--show` wrote of a sweep. Raises InputError where it is none."""
    values, found = read_json(path), {}
    try:
        for line in values["rows"]:
            row, value = Row(line["method"], tuples(line["knobs"])), line["figures"][JUDGE]["value"]
            if line["kind"] == values["rows"][0]["kind"] and value > found.get(row.method, (None, -1e9))[1]:
                found[row.method] = row.changed(), value
        return [found[method][0] for method in dict.fromkeys(methods)]
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        said = f"rows of {', '.join(methods)}, each with its {JUDGE}"
        raise InputError(f"{path} must be what --show wrote of a --sweep, with {said}; missing: {error}") from None


def labels(rows: Sequence[Row]) -> tuple[list[str], str]:
    """Of each row its method and the knobs that differ from its method's own; what all rows that have it share, said
    once."""
    changes = [changes_of(row) for row in rows]
    names = dict.fromkeys(name for row in changes for name in row)
    having = {name: [row for row in rows if name in row.knobs] for name in names}
    alike = {
        name for name, some in having.items() if len({str(row.knobs[name]) for row in some}) == 1 and len(rows) > 1
    }
    shared = {name for name in alike if len({row.method for row in having[name]}) > 1 or having[name] == list(rows)}
    texts = [", ".join([row.method, *(t for n, t in c.items() if n not in shared)]) for row, c in zip(rows, changes)]
    said = {name: text for change in changes for name, text in change.items() if name in shared}
    return texts, ", ".join(said.values())


def changes_of(row: Row) -> dict[str, str]:
    own = vars(find(row.method).knobs())
    return {
        name: f"{name.replace('_', '-')} {as_text(value)}"
        for name, value in row.knobs.items()
        if value != own.get(name)
    }
