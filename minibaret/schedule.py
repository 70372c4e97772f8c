"""Stable Diffusion's noise schedule and the deterministic DDIM step, forwards and backwards (Song et al. 2020, Eq. 12).

The cumulative alphas are computed in float64 and kept in float32 whatever the networks' dtype. A step from timestep t
goes to t - 1000 // steps; below timestep 0 it goes to the first cumulative alpha, not to 1.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

TRAINING_STEPS = 1000
BETA_FIRST, BETA_LAST = 0.00085, 0.012
OFFSET = 1  # of the timesteps: 50 steps are 981, 961, …, 21, 1


def cumulative_alphas() -> Tensor:
    """ᾱ for the timesteps 0 … 999, float32 (1000,): betas are linear in their square roots."""
    betas = torch.linspace(BETA_FIRST**0.5, BETA_LAST**0.5, TRAINING_STEPS, dtype=torch.float64).square()
    return (1 - betas).cumprod(0).float()


@dataclass(frozen=True)
class Schedule:
    """The timesteps of a run of `steps` DDIM steps. Raises ValueError unless 1 ≤ steps ≤ 999."""

    steps: int = 50

    def __post_init__(self) -> None:
        if not 1 <= self.steps < TRAINING_STEPS:
            raise ValueError(f"steps must be between 1 and {TRAINING_STEPS - 1}, got {self.steps}")

    @property
    def timesteps(self) -> list[int]:
        """Noisiest first: 981, 961, …, 21, 1 for 50 steps."""
        stride = TRAINING_STEPS // self.steps
        return [index * stride + OFFSET for index in reversed(range(self.steps))]

    def alphas(self, timestep: int) -> tuple[float, float]:
        """ᾱ at the timestep and at the one a step less noisy."""
        table = _ALPHAS
        below = timestep - TRAINING_STEPS // self.steps
        return table[timestep], table[max(below, 0)]

    def step(self, latents: Tensor, noise: Tensor, timestep: int) -> Tensor:
        """One DDIM step from `timestep` to the less noisy one, given the predicted noise."""
        return _move(latents, noise, *self.alphas(timestep))

    def inverse_step(self, latents: Tensor, noise: Tensor, timestep: int) -> Tensor:
        """The same step backwards: from the less noisy timestep to `timestep`."""
        here, below = self.alphas(timestep)
        return _move(latents, noise, below, here)


def _move(latents: Tensor, noise: Tensor, alpha_from: float, alpha_to: float) -> Tensor:
    """Eq. 12 without its random part: the clean latents that the noise implies, brought to another noise level. Both
    alphas are ᾱ."""
    clean = (latents - (1 - alpha_from) ** 0.5 * noise) / alpha_from**0.5
    return alpha_to**0.5 * clean + (1 - alpha_to) ** 0.5 * noise


_ALPHAS: list[float] = cumulative_alphas().tolist()
