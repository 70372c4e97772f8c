"""BARET, top to bottom: from a picture's latents and a sentence to the edited latents (Algorithm 1 and Section 3 of
the paper).

    1. DDIM inversion             z*[0] … z*[T]: the picture becomes noise        inversion.ddim_invert
    2. target-text inversion      E[i]: the text that leads back to the picture   inversion.tune_text
    3. edit                       three processes from z*[T], in one batch        edit
         progressive transition     e_tr[i], between E[i] and the target text     transition.interpolate
         balanced attention         whose attention maps the edit takes           balanced_attention.injection

z* is numbered from the picture (0) to noise (T); E, e_tr and Z_rec in the order of sampling, the noisiest first, so
Z_rec[0] = z*[T]. Each stage is a generator: the caller sees every step, and stops by not asking for the next.
"""

import dataclasses
from collections.abc import Callable, Collection, Generator, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from . import balanced_attention as bam
from . import transition
from .inversion import TunedStep, ddim_invert, tune_text
from .maps import AttentionMaps, MapCollector
from .models.injection import Injection
from .models.unet import ProjectedText, UNet, join_texts
from .prediction import guide, predict
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
    tuned: list[TunedStep] = field(default_factory=list)  # one per step, noisiest first
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
    collector: MapCollector | None = None,
    max_rows: int | None = None,
) -> Generator[Step, None, Record]:
    """Edits z*[0] towards the target text; the generator's return value is the Record.

    start: z*[0], (1, 4, h, w) float32, or what an earlier run has found of trajectory and tuned text, to go on from;
    target, null: (1, 77, width) embeddings of the sentence and of the empty text. pictures: "transition", where its
    final latents are wanted beside the edit's. collector: gathers the edit's attention maps, for which all three
    processes stay in the batch to the end. max_rows: of one forward of the UNet, as `edit` has it.
    """
    record = start if isinstance(start, Record) else Record([start])
    yield from invert_and_tune(unet, record, target, null, settings)
    work = edit(unet, record, target, null, settings, pictures, collector=collector, max_rows=max_rows)
    for index, latents in enumerate(work):
        record.latents = latents
        yield Step(EDITING, index, settings.steps, latents[bam.EDIT])
    record.maps = collector.maps if collector else None
    return record


def invert_and_tune(unet: UNet, record: Record, target: Tensor, null: Tensor, settings: Settings) -> Iterator[Step]:
    """The first two stages: fills the record's trajectory and tuned text, after the steps that it has already."""
    schedule, steps = Schedule(settings.steps), settings.steps
    embedding = target if settings.inversion_text == "target" else null
    done = len(record.trajectory) - 1
    work = ddim_invert(unet, record.trajectory[-1], embedding, schedule, done)
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
    rows_at: Callable[[int, Settings, Collection[str]], tuple[bam.Row, ...]] = bam.rows_at,
    collector: MapCollector | None = None,
    max_rows: int | None = None,
) -> Iterator[dict[str, Tensor]]:
    """Yields the latents of the processes after each step; those of a row that has left the batch stay as they were.

    The reconstruction is replayed from `record`, never stepped. rows_at: which rows are in the batch, and when;
    `balanced_attention.all_rows` is the naive plan that the default one must equal. max_rows: run a step's rows one
    after another in pieces of at most so many, which takes less memory and gives the same.
    """
    schedule = Schedule(settings.steps)
    latents = dict.fromkeys(bam.PROCESSES, record.trajectory[-1])
    pictures = bam.PROCESSES if collector else pictures
    text_null, text_target = unet.project_text(null), unet.project_text(target)
    for index, (timestep, eta) in enumerate(zip(schedule.timesteps, transition.etas(settings))):
        tuned = record.tuned[index]
        embeddings = {
            bam.RECONSTRUCTION: tuned.embedding,
            bam.TRANSITION: transition.interpolate(tuned.embedding, target, eta),
        }
        rows = rows_at(index, settings, pictures)
        needed = embeddings.keys() & {row.process for row in rows}
        texts = {bam.EDIT: text_target} | {process: unet.project_text(embeddings[process]) for process in needed}
        inputs = {row: (latents[row.process], texts[row.process] if row.conditional else text_null) for row in rows}
        plan = bam.injection(rows, index, settings)
        noise = _predict_rows(unet, index, timestep, inputs, plan, collector, max_rows)
        for process in {row.process for row in rows} - {bam.RECONSTRUCTION}:
            guided = guide(noise[process, False], noise[process, True], settings.guidance)
            latents[process] = schedule.step(latents[process], guided, timestep)
        latents[bam.RECONSTRUCTION] = tuned.latents  # replayed: target-text inversion has been there
        yield dict(latents)


def _predict_rows(
    unet: UNet,
    step: int,
    timestep: int,
    inputs: dict[bam.Row, tuple[Tensor, ProjectedText]],
    plan: Injection,
    collector: MapCollector | None,
    max_rows: int | None,
) -> dict[bam.Row, Tensor]:
    """The noise in each row's latents, given its text: one forward of the UNet, or several of at most `max_rows`."""
    rows, noise = tuple(inputs), {}
    size = max_rows or len(rows)
    for first in range(0, len(rows), size):
        piece = rows[first : first + size]
        latents = torch.cat([inputs[row][0] for row in piece])
        text = join_texts([inputs[row][1] for row in piece])
        recorder = collector.recorder(step, piece) if collector else None
        part = dataclasses.replace(plan, first=first)  # with the plan's own `carry`, through which pieces share maps
        noise |= zip(piece, predict(unet, latents, timestep, text, part, recorder).split(1))
        if recorder:
            collector.keep(step, piece, recorder)
    return noise
