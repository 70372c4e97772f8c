"""The progressive transition scheme (BARET Eq. 3): embeddings that lead from the picture's own text to the target's."""

from torch import Tensor

from .settings import Settings


def etas(settings: Settings) -> list[float]:
    """η for each step, noisiest first, linear with both ends included; 1 throughout where the edit is rigid."""
    first, last = (1.0, 1.0) if settings.rigid else settings.transition
    return [first + (last - first) * index / max(settings.steps - 1, 1) for index in range(settings.steps)]


def interpolate(tuned: Tensor, target: Tensor, eta: float) -> Tensor:
    """e_tr[i] = η E[i] + (1 − η) e_tgt."""
    return eta * tuned + (1 - eta) * target
