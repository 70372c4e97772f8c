"""Means over cases, and what the true ones may be after so few: 95 % intervals."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 2000  # of a bootstrap


class Figure(NamedTuple):
    """A mean over cases with its interval."""

    value: float
    low: float
    high: float
    cases: int

    def times(self, factor: float) -> "Figure":
        return Figure(factor * self.value, factor * self.low, factor * self.high, self.cases)

    def __str__(self) -> str:
        alone = self.cases == 1
        return f"{self.value:.3g}" if alone else f"{self.value:.3g} ({self.low:.3g} to {self.high:.3g})"


def mean(values: Iterable[float | bool]) -> Figure:
    """Of truths the share of true ones with Wilson's interval; of numbers the mean with a bootstrap's."""
    values = list(values)
    if all(isinstance(value, bool) for value in values):
        return wilson(sum(values), len(values))
    numbers = np.array(values, dtype=float)
    picks = np.random.default_rng(0).integers(len(numbers), size=(RESAMPLES, len(numbers)))
    low, high = np.quantile(numbers[picks].mean(1), (0.025, 0.975))
    return Figure(float(numbers.mean()), float(low), float(high), len(numbers))


def wilson(right: int, cases: int, z: float = 1.96) -> Figure:
    """A share and its interval (Wilson 1927)."""
    share = right / cases
    middle = (share + z**2 / (2 * cases)) / (1 + z**2 / cases)
    half = z * (share * (1 - share) / cases + (z / (2 * cases)) ** 2) ** 0.5 / (1 + z**2 / cases)
    return Figure(share, max(middle - half, 0.0), min(middle + half, 1.0), cases)


def means(scores: Sequence[dict[str, float | bool | str]]) -> dict[str, Figure]:
    """Of every score, over the cases that have it; a text says why there is none."""
    return {name: mean(one[name] for one in scores if has(one, name)) for name in names_of(scores)}


def difference(scores: Sequence[dict], others: Sequence[dict]) -> dict[str, Figure]:
    """Of every score, how much more it is than the other's, over the pairs that both have it."""
    pairs = {n: [(a[n], b[n]) for a, b in zip(scores, others) if has(a, n) and has(b, n)] for n in names_of(scores)}
    return {name: mean(float(a) - float(b) for a, b in both) for name, both in pairs.items() if both}


def names_of(scores: Sequence[dict]) -> list[str]:
    return list(dict.fromkeys(name for one in scores for name in one if has(one, name)))


def has(scores: dict, name: str) -> bool:
    return isinstance(scores.get(name), int | float)
