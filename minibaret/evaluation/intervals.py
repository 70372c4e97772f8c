"""Means over cases, and what the true ones may be after so few: 95 % intervals."""

from collections.abc import Iterable, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

Z = 1.96  # standard deviations on both sides that hold 95 % of a normal distribution


class Figure(NamedTuple):
    """A mean over cases with its interval."""

    value: float
    low: float
    high: float
    cases: int

    def times(self, factor: float) -> "Figure":
        return Figure(factor * self.value, factor * self.low, factor * self.high, self.cases)

    def __str__(self) -> str:
        alone = self.low == self.high
        return f"{self.value:.3g}" if alone else f"{self.value:.3g} ({self.low:.3g} to {self.high:.3g})"


def mean(values: Iterable[float | bool]) -> Figure:
    """Of truths the share of true ones with Wilson's interval; of numbers the mean with Student's, which of one number
    is the number.

    Of simulated samples of 2, 3, 6, 10 and 40 numbers Student's held the true mean in 95 % of normal ones, 92 to 95 %
    of uniform ones, 88 to 93 % of exponential ones. A percentile bootstrap's held it in 50, 76, 88, 88 and 95 % of
    normal ones; a studentised one's in 84 % of those of 3, with ends without bound.
    """
    values = list(values)
    if all(isinstance(value, bool) for value in values):
        return wilson(sum(values), len(values))
    numbers = np.array(values, dtype=float)
    middle, half, cases = float(numbers.mean()), 0.0, len(numbers)
    if numbers.min() < numbers.max():
        half = student(cases - 1) * float(numbers.std(ddof=1)) / cases**0.5
    return Figure(middle, middle - half, middle + half, cases)


@cache
def student(freedom: int) -> float:
    """Within how many standard errors 95 % of Student's distribution is: t = √ν tan θ, where θ has
    a density proportional to cos^(ν−1) θ."""
    edges = np.linspace(0, np.pi / 2, 100_001)
    share = np.cumsum(np.cos((edges[1:] + edges[:-1]) / 2) ** (freedom - 1))
    return float(freedom**0.5 * np.tan(np.interp(0.95, share / share[-1], edges[1:])))


def wilson(right: int, cases: int) -> Figure:
    """A share and its interval (Wilson 1927)."""
    share = right / cases
    middle = (share + Z**2 / (2 * cases)) / (1 + Z**2 / cases)
    half = Z * (share * (1 - share) / cases + (Z / (2 * cases)) ** 2) ** 0.5 / (1 + Z**2 / cases)
    return Figure(share, max(middle - half, 0.0), min(middle + half, 1.0), cases)


def means(scores: Sequence[dict[str, float | bool | str]]) -> dict[str, Figure]:
    """Of every score, over the cases that have it; a text says why there is none."""
    return {name: mean(one[name] for one in scores if has(one, name)) for name in names_of(scores)}


def difference(scores: Sequence[dict], others: Sequence[dict]) -> dict[str, Figure]:
    """Of every score, how much more it is than the other's, over the pairs that both have it."""
    pairs = {n: [(a[n], b[n]) for a, b in zip(scores, others) if has(a, n) and has(b, n)] for n in names_of(scores)}
    return {name: paired(both) for name, both in pairs.items() if both}


def paired(both: Sequence[tuple[float, float] | tuple[bool, bool]]) -> Figure:
    """Of numbers the mean difference; of truths that of the two shares, with the interval of Bonett and Price 2012, as
    if each side had won one pair more. It held the true one in 94 to 100 % of simulated samples of 3 to 40 pairs."""
    if not all(isinstance(one, bool) for pair in both for one in pair):
        return mean(a - b for a, b in both)
    more, less, pairs = sum(a > b for a, b in both), sum(a < b for a, b in both), len(both)
    up, down = (more + 1) / (pairs + 2), (less + 1) / (pairs + 2)
    half = Z * ((up + down - (up - down) ** 2) / (pairs + 2)) ** 0.5
    return Figure((more - less) / pairs, max(up - down - half, -1.0), min(up - down + half, 1.0), pairs)


def names_of(scores: Sequence[dict]) -> list[str]:
    return list(dict.fromkeys(name for one in scores for name in one if has(one, name)))


def has(scores: dict, name: str) -> bool:
    return isinstance(scores.get(name), int | float)
