"""The balanced attention module (BARET Eq. 4, 5): three processes as rows of one batch, and whose maps the edit takes.

    self-attention of the edit, the first τ_s T steps    softmax(Q_rec K_recᵀ / √d) V_edit
    cross-attention of the edit, the first τ_c T steps   softmax(Q_tr K_trᵀ / √d) V_edit

A row is in the batch only while somebody needs it. The reconstruction's latents are known from target-text inversion,
so it is replayed: its rows are there to be looked at, not to be stepped.
"""

from collections.abc import Collection
from typing import NamedTuple

from .models.injection import Injection
from .settings import Settings

RECONSTRUCTION, TRANSITION, EDIT = PROCESSES = ("reconstruction", "transition", "edit")


class Row(NamedTuple):
    process: str
    conditional: bool  # True: the process's text; False: the empty text of classifier-free guidance


def rows_at(step: int, settings: Settings, pictures: Collection[str] = ()) -> tuple[Row, ...]:
    """The rows that step needs, those the edit may look at first.

    pictures: the processes to be carried to the end because their picture, or their maps, are wanted.
    """
    self_from, cross_from = sources_at(step, settings)
    looked_at = {self_from, cross_from}
    guidance_rows = (False, True) if settings.rows == "both" else (True,)
    rows = [Row(RECONSTRUCTION, text) for text in guidance_rows if RECONSTRUCTION in {*looked_at, *pictures}]
    if TRANSITION in looked_at or (TRANSITION in pictures and not settings.rigid):
        rows += [Row(TRANSITION, False), Row(TRANSITION, True)]
    return (*rows, Row(EDIT, False), Row(EDIT, True))


def all_rows(step: int, settings: Settings, pictures: Collection[str] = ()) -> tuple[Row, ...]:
    """The naive batch: three processes, two guidance rows each, at every step."""
    return tuple(Row(process, text) for process in PROCESSES for text in (False, True))


def sources_at(step: int, settings: Settings) -> tuple[str, str]:
    """The processes that the edit's self- and cross-attention maps come from."""
    transition = RECONSTRUCTION if settings.rigid else TRANSITION
    return (
        RECONSTRUCTION if step < settings.self_injections else EDIT,
        transition if step < settings.cross_injections else EDIT,
    )


def injection(rows: tuple[Row, ...], step: int, settings: Settings) -> Injection:
    """For each row, the row its attention maps come from."""
    self_from, cross_from = sources_at(step, settings)
    return Injection(_sources(rows, self_from, settings), _sources(rows, cross_from, settings))


def _sources(rows: tuple[Row, ...], process: str, settings: Settings) -> tuple[int, ...] | None:
    if process == EDIT:
        return None
    takes = {Row(EDIT, text) for text in (False, True) if text or settings.rows == "both"}
    return tuple(rows.index(Row(process, row.conditional)) if row in takes else index for index, row in enumerate(rows))
