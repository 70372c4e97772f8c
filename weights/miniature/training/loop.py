"""The training loop that every stage shares: resumable, bounded by hours, one single-threaded worker process per core.

Workers hold a copy of the modules each and average their gradients after every backward. One thread per worker, because
two OpenMP threads that share a small step wait for each other longer than they work.
"""

import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from minibaret.errors import InputError
from minibaret.files import write_whole
from minibaret.workers import environment

CHECKPOINT_EVERY = 180.0  # seconds
GRID_EVERY = 900.0
LOG_EVERY = 20  # steps
WARM_UP = 100  # steps


class Stage(ABC):
    """One thing to train: `modules`, a `loss` per batch, sample pictures and what is shipped in the end."""

    name: str
    learning_rate = 1e-3
    batch = 32  # pictures per step, over all workers
    ema = 0.999
    parts: tuple[str, ...] = ()  # files that `export` writes and `read` reads, without .safetensors
    modules: nn.ModuleDict

    @abstractmethod
    def loss(self, batch: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """The loss to minimise over `batch` pictures drawn with the generator, and figures for the log."""

    @abstractmethod
    def samples(self, path: Path) -> None:
        """Draws what the averaged modules do by now."""

    @staticmethod
    @abstractmethod
    def read(weights: Path) -> nn.ModuleDict:
        """`modules`, as `export` wrote them there. Raises InputError where they are something else."""

    @abstractmethod
    def export(self, weights: Path) -> None:
        """Writes the averaged modules to the weights folder."""


@dataclass
class Progress:
    run: str = ""  # when it began, UTC
    step: int = 0
    pictures: int = 0
    seconds: float = 0.0


def check_run(stage: type[Stage], runs: Path, hours: float, workers: int, resume: bool, start: Path | None) -> None:
    """Raises InputError where a run could not begin so."""
    checkpoint = runs / f"{stage.name}.pt"
    if resume and start is not None:
        raise InputError("a run is either resumed or begun with the weights in a folder, got both")
    if resume and not checkpoint.exists():
        raise InputError(f"there is no {checkpoint} to resume")
    if not 0 < hours < float("inf"):
        raise InputError(f"hours must be above 0, got {hours:g}")
    if checkpoint.exists() and not resume:
        raise InputError(f"{checkpoint} exists: pass --resume to continue it, or move it away to start anew")
    if start is not None:
        if not start.is_dir():
            raise InputError(f"there is no folder {start} of weights to begin with")
        for part in stage.parts:
            if not (start / f"{part}.safetensors").is_file():
                raise InputError(f"there is no {part}.safetensors in {start} to begin with")
        stage.read(start)
    if workers < 1 or stage.batch % workers:
        raise InputError(f"workers must share a batch of {stage.batch} evenly, got {workers} of them")


def train(
    stage: type[Stage],
    arguments: tuple,
    hours: float,
    runs: Path,
    weights: Path,
    workers: int,
    resume: bool,
    start: Path | None = None,
) -> None:
    """Trains until `hours` of each worker's processor time have passed, over all runs together, then exports to
    `weights`. See `check_run` for what is refused.

    stage, arguments: what each worker builds. start: a folder of weights that a new run begins with, its optimiser
    fresh. The workers share four bytes of memory for each parameter and worker.
    """
    check_run(stage, runs, hours, workers, resume, start)
    runs.mkdir(parents=True, exist_ok=True)
    spawn = mp.get_context("spawn")
    meeting = spawn.Barrier(workers), spawn.SimpleQueue()
    first = None if start is None else stage.read(start).state_dict()
    with environment():
        mp.spawn(_work, (stage, arguments, hours, runs, weights, workers, first, meeting), nprocs=workers, daemon=True)


def _work(
    rank: int,
    make_stage: Callable[..., Stage],
    arguments: tuple,
    hours: float,
    runs: Path,
    weights: Path,
    workers: int,
    first: dict[str, Tensor] | None,
    meeting: tuple,
) -> None:
    """One worker. first: weights to begin with; meeting: the barrier and the queue that `MeanOverWorkers` wants."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    stage: Stage = make_stage(*arguments)
    checkpoint = runs / f"{stage.name}.pt"
    if first is not None:
        stage.modules.load_state_dict(first)
    parameters = [p for p in stage.modules.parameters() if p.requires_grad]
    mean = MeanOverWorkers(rank, workers, sum(p.numel() for p in parameters) + 1, *meeting)
    optimizer = torch.optim.AdamW(parameters, lr=stage.learning_rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    average = {name: value.detach().clone() for name, value in stage.modules.state_dict().items()}
    progress = Progress(time.strftime("%Y-%m-%d %H:%M", time.gmtime()))
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        stage.modules.load_state_dict(saved["modules"])
        optimizer.load_state_dict(saved["optimizer"])
        average, progress = saved["average"], Progress(**saved["progress"])

    def draw() -> None:
        _with_average(stage, average, lambda: stage.samples(runs / f"{stage.name}-{progress.step:06d}.png"))

    def save() -> None:
        state = {"modules": stage.modules.state_dict(), "optimizer": optimizer.state_dict(), "average": average}
        write_whole(checkpoint, lambda unfinished: torch.save({**state, "progress": vars(progress)}, unfinished))

    generator = torch.Generator().manual_seed(1_000_003 * progress.step + rank)
    saved_at = drawn_at = time.monotonic()
    counted_at = time.process_time()  # what other programs take of the machine is not counted as training
    figures: dict[str, float] = {}
    while progress.seconds < hours * 3600:
        rate = learning_rate(stage.learning_rate, progress.step, progress.seconds / (hours * 3600))
        for group in optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):  # the fused backward is slower here
            loss, measured = stage.loss(stage.batch // workers, generator)
        loss.backward()
        now = time.process_time()
        seconds = _average_gradients(parameters, now - counted_at, mean)
        counted_at = now
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        _follow(average, stage.modules, min(stage.ema, (1 + progress.step) / (10 + progress.step)))
        progress.step += 1
        progress.pictures += stage.batch
        progress.seconds += seconds
        if rank:
            continue
        for name, value in {"loss": loss.item(), **measured}.items():
            figures[name] = 0.95 * figures.get(name, value) + 0.05 * value
        if progress.step % LOG_EVERY == 0:
            _log(runs / f"{stage.name}.jsonl", progress, {"rate": rate, **figures})
        if time.monotonic() - saved_at > CHECKPOINT_EVERY:
            save()
            saved_at = time.monotonic()
        if time.monotonic() - drawn_at > GRID_EVERY:
            draw()
            drawn_at = time.monotonic()
    if rank == 0:
        save()
        draw()
        _with_average(stage, average, lambda: stage.export(weights))


def learning_rate(peak: float, step: int, fraction: float) -> float:
    """Linear warm-up, then a cosine down to a hundredth of the peak, by the fraction of the hours that has passed."""
    cosine = 0.5 * (1 + math.cos(min(fraction, 1.0) * math.pi))
    return peak * min(1.0, (step + 1) / WARM_UP) * (0.01 + 0.99 * cosine)


class MeanOverWorkers:
    """The mean of one vector per worker, taken in memory that all workers share."""

    def __init__(self, rank: int, workers: int, size: int, barrier, queue):
        if rank == 0:
            self.vectors = torch.zeros(workers, size).share_memory_()
            for _ in range(workers - 1):
                queue.put(self.vectors)
        else:
            self.vectors = queue.get()
        self.mine, self.barrier = self.vectors[rank], barrier
        barrier.wait()  # the first worker keeps the memory until all have it

    def __call__(self) -> Tensor:
        """The mean (size,) of what the workers wrote to `mine`, when all have."""
        self.barrier.wait()
        mean = self.vectors.mean(0)
        self.barrier.wait()  # before anybody writes the next
        return mean


@torch.no_grad()
def _average_gradients(parameters: list[Tensor], seconds: float, mean: MeanOverWorkers) -> float:
    """Replaces gradients by their mean over the workers; returns their mean seconds, so that all agree on the time."""
    sizes = [p.numel() for p in parameters]
    for parameter, mine in zip(parameters, mean.mine.split([*sizes, 1])):
        if parameter.grad is None:
            mine.zero_()
        else:
            mine.view_as(parameter).copy_(parameter.grad)
    mean.mine[-1] = seconds
    averaged = mean()
    for parameter, gradient in zip(parameters, averaged.split([*sizes, 1])):
        parameter.grad = gradient.view_as(parameter)
    return averaged[-1].item()


@torch.no_grad()
def _follow(average: dict[str, Tensor], modules: nn.Module, decay: float) -> None:
    for name, value in modules.state_dict().items():
        average[name].lerp_(value, 1 - decay)


def _with_average(stage: Stage, average: dict[str, Tensor], action) -> None:
    """Runs the action with the averaged weights in place, then puts the trained ones back."""
    trained = {name: value.clone() for name, value in stage.modules.state_dict().items()}
    stage.modules.load_state_dict(average)
    with torch.no_grad():
        action()
    stage.modules.load_state_dict(trained)


def _log(path: Path, progress: Progress, figures: dict[str, float]) -> None:
    counted = vars(progress) | figures
    line = {name: value if isinstance(value, str) else float(f"{value:.5g}") for name, value in counted.items()}
    with open(path, "a", encoding="utf-8") as log:
        log.write(json.dumps(line) + "\n")
