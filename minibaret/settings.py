"""Everything about an edit that can be chosen, with the paper's defaults."""

import math
from dataclasses import dataclass

from .errors import InputError


@dataclass(frozen=True)
class Settings:
    """Raises InputError for impossible values. † marks a default that is ours where the paper is silent."""

    steps: int = 50  # T, of the DDIM schedule
    guidance: float = 7.5  # w
    transition: tuple[float, float] = (0.8, 0.1)  # η at the first and last step
    rigid: bool = False  # η = 1: the transition is the reconstruction; for edits of style, background or object
    self_steps: float = 0.3  # τ_s: the part of the steps, the noisiest, with self-attention injected
    cross_steps: float = 0.6  # τ_c: the same for cross-attention
    rows: str = "cond"  # † guidance rows that receive maps: "cond" (only the text's) or "both"
    inversion_text: str = "target"  # † text of the DDIM inversion: "target" or "null"
    inner_steps: int = 5  # inner iterations (Adam steps) at each time step, at most
    learning_rate: float = 1e-3
    tolerance: tuple[float, float] = (1e-5, 2e-5)  # † time step i is tuned until its loss is below first + i · second

    def __post_init__(self) -> None:
        _require("steps", self.steps, "a whole number from 1 to 999", _whole(self.steps) and 1 <= self.steps < 1000)
        _require("guidance", self.guidance, "a finite number", _finite(self.guidance))
        _require("transition", self.transition, "two numbers from 0 to 1", _pair(self.transition, 0, 1))
        _require("rigid", self.rigid, "true or false", isinstance(self.rigid, bool))
        _require("self_steps", self.self_steps, "a number from 0 to 1", _within(self.self_steps, 0, 1))
        _require("cross_steps", self.cross_steps, "a number from 0 to 1", _within(self.cross_steps, 0, 1))
        _require("rows", self.rows, "cond or both", self.rows in ("cond", "both"))
        _require("inversion_text", self.inversion_text, "target or null", self.inversion_text in ("target", "null"))
        whole = _whole(self.inner_steps) and self.inner_steps >= 0
        _require("inner_steps", self.inner_steps, "a whole number, at least 0", whole)
        positive = _finite(self.learning_rate) and self.learning_rate > 0
        _require("learning_rate", self.learning_rate, "a number above 0", positive)
        _require("tolerance", self.tolerance, "two numbers, at least 0", _pair(self.tolerance, 0, math.inf))

    @property
    def self_injections(self) -> int:
        """How many of the first steps inject self-attention."""
        return round(self.self_steps * self.steps)

    @property
    def cross_injections(self) -> int:
        """How many of the first steps inject cross-attention."""
        return round(self.cross_steps * self.steps)


def _whole(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _finite(value) -> bool:
    return (isinstance(value, float) or _whole(value)) and math.isfinite(value)


def _within(value, low: float, high: float) -> bool:
    return _finite(value) and low <= value <= high


def _pair(value, low: float, high: float) -> bool:
    return isinstance(value, tuple | list) and len(value) == 2 and all(_within(part, low, high) for part in value)


def _require(name: str, value, wanted: str, fits: bool) -> None:
    if not fits:
        raise InputError(f"{name.replace('_', ' ')} must be {wanted}, got {value!r}")
