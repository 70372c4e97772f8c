"""Attention control: who attends with whose queries, keys and values.

A control is a function of a step and a layer. It names, by branch, whose queries, keys and values are used there:

    def control(step, layer):
        return {"edit": Take(q="source", k="source")} if layer.kind == "self" and step < 15 else {}

What is not named is the branch's own. Replacing a branch's queries and keys replaces its attention map, so no map has
to be in memory. `by_row` turns the names into rows of one batch, which is what the UNet reads.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor

from .errors import InputError


class Layer(NamedTuple):
    """A place of the UNet that a control is asked about."""

    kind: str  # "self" or "cross" attention, or "features": what a ResBlock adds to its input
    index: int  # among those of its kind, from 0, in the order they run
    tokens: int  # queries of an attention layer, pixels of features
    part: str  # "down", "mid" or "up"
    level: int  # 0 is the finest; each is half as high and wide as the one before


@dataclass(frozen=True, eq=False)
class Take:
    """The branches whose queries, keys and values a branch's attention uses; None is its own.

    words: (77, 77), multiplies the values over their tokens, in cross-attention: A (words V) = (A words) V, so a map's
    columns can be mixed and weighed although there is no map. rows: the guidance rows that take, "cond" (the one with
    the prompt) or "both"; from a branch that has but one row both take that. At a layer of features, v names the branch
    whose features are used.
    """

    q: str | None = None
    k: str | None = None
    v: str | None = None
    words: Tensor | None = None
    rows: str = "cond"

    def __post_init__(self) -> None:
        if self.rows not in ("cond", "both"):
            raise InputError(f"the rows of a Take must be cond or both, got {self.rows!r}")


Takes = Mapping[str, Take | Sequence[Take]]  # by branch; several takes are summed
Control = Callable[[int, Layer], Takes]


class Row(NamedTuple):
    """One row of the UNet's batch."""

    branch: str
    conditional: bool  # True: with the branch's prompt; False: with what classifier-free guidance leads away from


class Rows(NamedTuple):
    """What one attention layer is to compute, by rows of the batch."""

    q: tuple[int, ...]  # the rows whose queries are needed
    k: tuple[int, ...]
    v: tuple[int, ...]
    words: tuple[tuple[int, Tensor], ...]  # further values: the place in v, and what multiplies them
    takes: tuple[tuple[tuple[int, int, int], ...], ...]  # for each row of the batch, places in q, k and v; summed


class Recorder(Protocol):
    """Looks at attention maps while they are used."""

    branches: Sequence[str]  # whose maps are looked at: those of their conditional rows

    def wants(self, step: int, layer: Layer) -> bool: ...

    def see(self, step: int, layer: Layer, branch: str, terms: Sequence[tuple[Tensor, Tensor, Tensor | None]]) -> None:
        """terms: queries (1, N, H, D), keys (1, M, H, D) and words of each take; the map is the sum of softmax(q kᵀ/√D)
        words."""


def no_control(step: int, layer: Layer) -> Takes:
    """Every branch attends to itself."""
    return {}


def check_takes(takes: Takes, layer: Layer, branches: Collection[str], tokens: int) -> Takes:
    """What a control gave for a layer, if it is something that branches of these names, and prompts of as many tokens,
    can do there. Raises InputError otherwise."""
    if not takes:
        return {}
    if not isinstance(takes, Mapping):
        raise InputError(f"a control must give takes by branch, such as {{'edit': Take(...)}}, got {takes!r:.80}")
    for branch, given in takes.items():
        own = (given,) if isinstance(given, Take) else given
        if not isinstance(own, Sequence) or not all(isinstance(take, Take) for take in own):
            raise InputError(f"a branch takes a Take or several, got {given!r:.80} for {branch!r}")
        if len(own) > 1 and layer.kind == "features":
            raise InputError(f"features are taken from one branch, got a sum of {len(own)} takes for {branch!r}")
        for name in [branch, *(name for take in own for name in (take.q, take.k, take.v) if name is not None)]:
            if name not in branches:
                raise InputError(f"a control may name the branches {', '.join(branches)}, got {name!r}")
        for words in [take.words for take in own if take.words is not None]:
            if layer.kind != "cross":
                raise InputError(f"a Take has words in cross-attention only, got them for a layer of {layer.kind}")
            if not isinstance(words, Tensor) or words.shape != (tokens, tokens):
                got = tuple(words.shape) if isinstance(words, Tensor) else type(words).__name__
                raise InputError(f"the words of a Take must be a tensor of shape {(tokens, tokens)}, got {got}")
    return takes


def takes_of(takes: Takes, row: Row) -> tuple[Take, ...]:
    """What the row takes of others; empty where it attends to itself."""
    found = takes.get(row.branch, ())
    found = (found,) if isinstance(found, Take) else tuple(found)
    return tuple(take for take in found if row.conditional or take.rows == "both")


def partner(branch: str | None, row: Row, rows: Sequence[Row]) -> Row:
    """The row of that branch that `row` takes from: the one of the same guidance where there is one."""
    if branch is None:
        return row
    return next(Row(branch, kind) for kind in (row.conditional, True) if Row(branch, kind) in rows)


def by_row(takes: Takes, rows: Sequence[Row]) -> Rows | None:
    """The takes of one attention layer by rows of the batch; None for plain attention."""
    if not any(takes_of(takes, row) for row in rows):
        return None
    place = {row: index for index, row in enumerate(rows)}
    terms = []  # of each row: (row of q, row of k, row of v, words)
    for row in rows:
        own = takes_of(takes, row) or (Take(),)
        terms.append([(*(place[partner(name, row, rows)] for name in (t.q, t.k, t.v)), t.words) for t in own])
    q, k, v = (tuple(sorted({term[part] for each in terms for term in each})) for part in range(3))
    words = [(v.index(term[2]), term[3]) for each in terms for term in each if term[3] is not None]
    values = iter(range(len(v), len(v) + len(words)))
    return Rows(
        q=q,
        k=k,
        v=v,
        words=tuple(words),
        takes=tuple(
            tuple((q.index(a), k.index(b), v.index(c) if w is None else next(values)) for a, b, c, w in each)
            for each in terms
        ),
    )


class RowControl:
    """A control at one step, by rows of one forward of the UNet."""

    def __init__(
        self,
        step: int,
        rows: Sequence[Row],
        takes: Mapping[Layer, Takes],
        recorders: Sequence[Recorder] = (),
    ):
        """takes: of the layers where a branch of the rows takes anything."""
        self.step, self.rows, self.recorders = step, tuple(rows), recorders
        self.attention = {layer: by_row(found, rows) for layer, found in takes.items() if layer.kind != "features"}
        self.features = {layer: _features(found, rows) for layer, found in takes.items() if layer.kind == "features"}

    def record(self, layer: Layer, q: Tensor, k: Tensor, rows: Rows | None) -> None:
        """Shows a layer's queries and keys to the recorders that want them."""
        for recorder in self.recorders:
            if not recorder.wants(self.step, layer):
                continue
            for index, row in enumerate(self.rows):
                if row.conditional and row.branch in recorder.branches:
                    takes = rows.takes[index] if rows else ((index, index, index),)
                    terms = [(q[a : a + 1], k[b : b + 1], _words(rows, c)) for a, b, c in takes]
                    recorder.see(self.step, layer, row.branch, terms)


def _features(takes: Takes, rows: Sequence[Row]) -> tuple[int, ...]:
    """For each row, the row whose features it uses."""
    own = [(takes_of(takes, row) or (Take(),))[0] for row in rows]
    return tuple(rows.index(partner(take.v, row, rows)) for take, row in zip(own, rows))


def _words(rows: Rows | None, value: int) -> Tensor | None:
    return rows.words[value - len(rows.v)][1] if rows and value >= len(rows.v) else None
