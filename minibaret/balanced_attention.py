"""The balanced attention module (BARET Eq. 4, 5): three processes as rows of one batch, and whose maps the edit takes.

    self-attention of the edit, the first τ_s T steps    softmax(Q_rec K_recᵀ / √d) V_edit
    cross-attention of the edit, the first τ_c T steps   softmax(Q_tr K_trᵀ / √d) V_edit

A row is in the batch only while somebody needs it. The reconstruction's latents are known from target-text inversion,
so it is replayed: its rows only supply attention maps, and no DDIM step is taken with their noise.
"""

from collections.abc import Collection
from typing import NamedTuple

from .models.injection import Injection
from .settings import Settings

RECONSTRUCTION, TRANSITION, EDIT = PROCESSES = ("reconstruction", "transition", "edit")


class Row(NamedTuple):
    """One row of the UNet's batch."""

    process: str  # one of PROCESSES
    conditional: bool  # True: with the process's text; False: with the empty text of classifier-free guidance


def rows_at(step: int, settings: Settings, pictures: Collection[str] = ()) -> tuple[Row, ...]:
    """The rows of the batch at that step. Rows whose maps the edit may take stand before the edit's own.

    pictures: processes that stay to the last step because their picture, or their maps, are wanted.
    """
    needed = {*sources_at(step, settings), *pictures}
    rows: list[Row] = []
    if RECONSTRUCTION in needed:
        rows += [Row(RECONSTRUCTION, conditional) for conditional in _injected(settings)]
    if TRANSITION in needed and not settings.rigid:
        rows += [Row(TRANSITION, False), Row(TRANSITION, True)]
    return (*rows, Row(EDIT, False), Row(EDIT, True))


def all_rows(step: int, settings: Settings, pictures: Collection[str] = ()) -> tuple[Row, ...]:
    """The naive batch: three processes, two guidance rows each, at every step."""
    return tuple(Row(process, conditional) for process in PROCESSES for conditional in (False, True))


def sources_at(step: int, settings: Settings) -> tuple[str, str]:
    """The processes that the edit's self- and cross-attention maps come from."""
    transition = RECONSTRUCTION if settings.rigid else TRANSITION
    return (
        RECONSTRUCTION if step < settings.self_injections else EDIT,
        transition if step < settings.cross_injections else EDIT,
    )


def injection(rows: tuple[Row, ...], step: int, settings: Settings) -> Injection:
    """The edit's rows take the maps of the processes that `sources_at` names; all other rows use their own."""
    self_from, cross_from = sources_at(step, settings)
    return Injection(_sources(rows, self_from, settings), _sources(rows, cross_from, settings))


def _injected(settings: Settings) -> tuple[bool, ...]:
    """Which of the edit's two rows take maps, as values of `Row.conditional`."""
    return (False, True) if settings.rows == "both" else (True,)


def _sources(rows: tuple[Row, ...], process: str, settings: Settings) -> tuple[int, ...] | None:
    if process == EDIT:
        return None
    takers = [Row(EDIT, conditional) for conditional in _injected(settings)]
    return tuple(rows.index(Row(process, row.conditional) if row in takers else row) for row in rows)
