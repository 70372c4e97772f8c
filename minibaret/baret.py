"""BARET, top to bottom: from a picture's latents and a sentence to the edited latents (Algorithm 1 and Section 3 of
the paper).

    1. DDIM inversion                z*[0] … z*[T]                         inversion.invert
    2. target-text inversion         E[i], the text that leads back        inversion.tune_text
    3. progressive transition        e_tr[i] between E[i] and the target   transition.interpolate
    4. balanced attention            three processes, one batch            balanced_attention

Every stage is a generator: the caller sees each step and stops by not asking for the next.
"""

import dataclasses
from collections.abc import Collection, Generator, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from . import balanced_attention as bam
from . import transition
from .inversion import TunedStep, ddim_invert, guide, predict, tune_text
from .maps import AttentionMaps, MapCollector
from .models.unet import UNet, join_texts
from .schedule import Schedule
from .settings import Settings

INVERSION, TUNING, EDITING = STAGES = ("inversion", "target-text inversion", "edit")


@dataclass(frozen=True)
class Step:
    """One finished step of a stage, for whoever watches."""

    stage: str  # one of STAGES
    index: int  # from 0
    total: int
    latents: Tensor  # (1, 4, h, w), where the stage's process stands now
    loss: float | None = None  # of target-text inversion, after its last inner iteration
    iterations: int | None = None  # inner iterations, at this step


@dataclass
class Record:
    """What the run found on its way."""

    trajectory: list[Tensor] = field(default_factory=list)  # z*[0] … z*[T]
    tuned: list[TunedStep] = field(default_factory=list)  # one a step, noisiest first
    latents: dict[str, Tensor] = field(default_factory=dict)  # by process, at the end or where it left the batch
    maps: AttentionMaps | None = None  # where they were asked for

    @property
    def embeddings(self) -> list[Tensor]:
        """E[0] … E[T-1], noisiest first."""
        return [step.embedding for step in self.tuned]

    @property
    def losses(self) -> list[tuple[float, ...]]:
        return [step.losses for step in self.tuned]

    @property
    def iterations(self) -> list[int]:
        return [step.iterations for step in self.tuned]


def run(
    unet: UNet,
    start: Tensor | Record,
    target: Tensor,
    null: Tensor,
    settings: Settings,
    pictures: Collection[str] = (),
    maps: MapCollector | None = None,
    max_rows: int | None = None,
) -> Generator[Step, None, Record]:
    """Edits z*[0] towards the target text; the generator's return value is the Record.

    start: z*[0], (1, 4, h, w) float32, or what an earlier run has found of trajectory and tuned text, to go on from;
    target, null: (1, 77, width) embeddings of the sentence and of the empty text. pictures: "transition", where its
    final latents are wanted beside the edit's. maps: gathers the edit's attention maps, for which all three processes
    stay in the batch to the end. max_rows: of one forward of the UNet, as `edit` has it.
    """
    record = start if isinstance(start, Record) else Record([start])
    yield from invert_and_tune(unet, record, target, null, settings)
    for index, latents in enumerate(edit(unet, record, target, null, settings, pictures, maps=maps, max_rows=max_rows)):
        record.latents = latents
        yield Step(EDITING, index, settings.steps, latents[bam.EDIT])
    record.maps = maps and maps.maps
    return record


def invert_and_tune(unet: UNet, record: Record, target: Tensor, null: Tensor, settings: Settings) -> Iterator[Step]:
    """The first two stages: fills the record's trajectory and tuned text, after the steps that it has already."""
    schedule, steps = Schedule(settings.steps), settings.steps
    inversion_text = target if settings.inversion_text == "target" else null
    done = len(record.trajectory) - 1
    work = ddim_invert(unet, record.trajectory[-1], inversion_text, schedule, done)
    for index, noisier in enumerate(work, start=done):
        record.trajectory.append(noisier)
        yield Step(INVERSION, index, steps, noisier)
    work = tune_text(unet, record.trajectory, target, null, schedule, settings, tuple(record.tuned))
    for index, tuned in enumerate(work, start=len(record.tuned)):
        record.tuned.append(tuned)
        yield Step(TUNING, index, steps, tuned.latents, tuned.losses[-1], tuned.iterations)


@torch.no_grad()
def edit(
    unet: UNet,
    record: Record,
    target: Tensor,
    null: Tensor,
    settings: Settings,
    pictures: Collection[str] = (),
    rows_at=bam.rows_at,
    maps: MapCollector | None = None,
    max_rows: int | None = None,
) -> Iterator[dict[str, Tensor]]:
    """Yields the latents of the processes after each step; those of a row that has left the batch stay as they were.

    The reconstruction is replayed from `record`, never stepped. rows_at: which rows are in the batch, and when;
    `balanced_attention.all_rows` is the naive plan that the default one must equal. max_rows: run a step's rows one
    after another in pieces of at most so many, which takes less memory and gives the same.
    """
    schedule = Schedule(settings.steps)
    latents = dict.fromkeys(bam.PROCESSES, record.trajectory[-1])
    pictures = bam.PROCESSES if maps else pictures
    text_null, text_target = unet.project_text(null), unet.project_text(target)
    for index, (label, weight) in enumerate(zip(schedule.labels, transition.weights(settings))):
        tuned = record.tuned[index]
        embeddings = {
            bam.RECONSTRUCTION: tuned.embedding,
            bam.TRANSITION: transition.interpolate(tuned.embedding, target, weight),
        }
        rows = rows_at(index, settings, pictures)
        needed = embeddings.keys() & {row.process for row in rows}
        texts = {bam.EDIT: text_target} | {process: unet.project_text(embeddings[process]) for process in needed}
        plan = bam.injection(rows, index, settings)
        noise: dict[bam.Row, Tensor] = {}
        size = max_rows or len(rows)
        for first in range(0, len(rows), size):
            piece = rows[first : first + size]
            batch = torch.cat([latents[row.process] for row in piece])
            text = join_texts([texts[row.process] if row.conditional else text_null for row in piece])
            recorder = maps.recorder(index, piece) if maps else None
            predicted = predict(unet, batch, label, text, dataclasses.replace(plan, first=first), recorder)
            noise |= zip(piece, predicted.split(1))
            if recorder:
                maps.keep(index, piece, recorder)
        stepped = {row.process for row in rows} - {bam.RECONSTRUCTION}
        for process in stepped:
            guided = guide(noise[process, False], noise[process, True], settings.guidance)
            latents[process] = schedule.step(latents[process], guided, label)
        latents[bam.RECONSTRUCTION] = tuned.latents
        yield dict(latents)
