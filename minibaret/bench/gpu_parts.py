"""What `bench.py gpu` measures, part by part: each yields a dict for each measurement, ready for JSON."""

import contextlib
import copy
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from ..editor import Editor
from ..images import psnr
from ..loading import load
from ..models.configs import SD15, ModelConfig
from ..result import Result
from ..sampler import Schedule, guide
from ..weights.miniature.config import MINIATURE
from ..weights.miniature.world.drawing import render
from ..weights.miniature.world.scene import Scene
from . import attention as ways_to_attend
from . import common
from .random_weights import TINY, random_model
from .roofline import GPUS
from .unet import inputs, layer_shares

ROOT = Path(__file__).resolve().parents[2]  # of the clone
DOG, PROMPT = render(Scene(1, "dog", "standing", "brown", "grass")), "a brown dog lying down on grass"


@dataclass(frozen=True)
class Scale:
    """How large everything is."""

    device: torch.device
    config: ModelConfig  # of the random weights
    shapes: ModelConfig  # whose attention layers
    tokens: tuple[int, int]  # of these layers
    half: torch.dtype
    knobs: dict  # of the edits
    rounds: int
    backend: str  # of torch.compile

    @property
    def side(self) -> int:
        return self.config.image_size // self.config.latent_factor


SHORT = {"steps": 3, "inner_steps": 1}
TINIEST = replace(TINY.unet, channels=(16, 32), attention=(True, False), layers_per_block=1)
REAL = Scale(torch.device("cuda"), SD15, SD15, (4096, 1024), torch.float16, {}, rounds=9, backend="inductor")
DRY = Scale(
    torch.device("cpu"), replace(TINY, image_size=32, unet=TINIEST), MINIATURE, (64, 16), torch.bfloat16,
    SHORT, rounds=1, backend="eager",
)  # fmt: skip


@contextlib.contextmanager
def noting_failure(line: dict) -> Iterator[None]:
    """Writes into the line why something did not work, and goes on."""
    try:
        yield
    except Exception as error:  # whatever a compiler, a driver or a full GPU raises
        line["failed"] = " ".join(f"{type(error).__name__}: {error}".split())[:300]


def tests(at: Scale) -> Iterator[dict]:
    """pytest's tests marked gpu; files without any are not imported, since theirs may need what is not installed."""
    files = [str(file) for file in sorted((ROOT / "tests").glob("test_*.py")) if "mark.gpu" in file.read_text()]
    command = [sys.executable, "-u", "-m", "pytest", "-v", "-m", "gpu", "-p", "no:cacheprovider", *files]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for line in process.stdout:
        print(line, end="", file=sys.stderr)
        found = re.match(r"(tests/\S+::.+?) (PASSED|FAILED|ERROR|SKIPPED)", line)
        if found:
            yield {"what": found[1], "outcome": found[2].lower()}
    if process.wait() not in (0, 1):
        raise RuntimeError(f"pytest ended with exit code {process.returncode}")


def miniature(at: Scale) -> Iterator[dict]:
    """An edit of the shipped weights in every dtype, against the CPU's picture in float32."""
    cpu = None
    for device, dtype in (("cpu", "float32"), *((str(at.device), kind) for kind in ("float32", "bfloat16", "float16"))):
        line = {"what": f"{device}, {dtype}"}
        with noting_failure(line):
            editor = load(device=device, dtype=dtype)
            if device != "cpu":
                editor.edit(DOG, PROMPT, **SHORT)  # compiles, allocates; does not count
            result = editor.edit(DOG, PROMPT, **at.knobs)
            cpu = result.image if device == "cpu" else cpu
            line |= {"psnr_to_cpu": psnr(result.image, cpu)} if cpu else {}
            line["reconstruction_psnr"] = result.reconstruction_psnr
            line |= costs(result)
        yield line


def costs(result: Result) -> dict:
    counts = {"row_forwards": result.counts.row_forwards, "gradient_passes": result.counts.gradient_passes}
    seconds = {"seconds": sum(result.seconds.values()), "stages": result.seconds}
    return {**seconds, "peak": result.peak_memory, **counts}


def attention(at: Scale) -> Iterator[dict]:
    """Each way to let two rows share, in turns, beside the roofline's prediction."""
    cold = tempfile.TemporaryDirectory(prefix="minibaret-")
    os.environ["TRITON_CACHE_DIR"] = cold.name  # so that a first call compiles
    gpu = next((key for key in GPUS if key in common.device_name(at.device).lower()), None)
    shapes = ways_to_attend.layer_shapes(at.shapes)
    for site in (f"{kind}-{tokens}" for kind in ("self", "cross") for tokens in at.tokens):
        for case in ("maps", "refine" if site.startswith("cross") else "keys and values"):
            kernel = "triton" if at.device.type == "cuda" else "torch"
            shape, ways = ways_to_attend.ways(case, 2, shapes[site], at.device, at.half, kernel)
            lines = {}
            for way, run in ways.items():
                lines[way] = {"site": site, "case": case, "way": way}
                lines[way] |= ways_to_attend.predicted(way, shape, gpu) if gpu else {}
                with noting_failure(lines[way]):
                    lines[way]["first_ms"] = common.milliseconds(run, 1, at.device)  # Triton compiles
            runs = {way: run for way, run in ways.items() if "failed" not in lines[way]}
            yield from timed(lines, in_turns(runs, at), "plain")


def in_turns(runs: dict[str, Callable[[], object]], at: Scale) -> dict[str, list[float]]:
    """Milliseconds: on a GPU by CUDA events, with the cache emptied before each call, as Triton measures."""
    if at.device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return common.in_turns(runs, at.rounds, at.device)
    from triton.testing import do_bench

    times: dict[str, list[float]] = {way: [] for way in runs}
    for _ in range(3):
        for way, run in runs.items():
            times[way] += do_bench(run, warmup=10, rep=50, quantiles=[0.25, 0.5, 0.75])
    return times


def network(at: Scale) -> Iterator[dict]:
    """A forward of two rows, and an inner iteration of target-text inversion, run in several ways."""
    unet = random_model(at.config, at.device, at.half).unet
    last = copy.deepcopy(unet).to(memory_format=torch.channels_last)
    kinds = {"two-row forward": forward, "inner iteration": inner_iteration}
    for what, make in kinds.items():
        ways = {"eager": lambda make=make: make(unet, at), "channels_last": lambda make=make: make(last, at)}
        ways["graph"] = lambda make=make: graph(make(unet, at), at.device)
        ways["graph, channels_last"] = lambda make=make: graph(make(last, at), at.device)
        yield from compare(what, ways, at)
    with torch.no_grad():
        given = inputs(unet, at.side, 2)
        unet(*given)
        shares = layer_shares(unet, lambda: unet(*given), at.device)
    yield {"what": "attention layers", "way": "eager", "share": sum(shares.values()), "shares": shares}
    for what, make in kinds.items():  # last, because it may take minutes
        compiled = torch.compile(unet, dynamic=False, backend=at.backend)
        ways = {"eager": lambda make=make: make(unet, at)}
        ways["compiled"] = lambda make=make, compiled=compiled: make(compiled, at)
        yield from compare(what, ways, at)


def compare(what: str, ways: dict[str, Callable[[], Callable[[], object]]], at: Scale) -> Iterator[dict]:
    """ways: what prepares each, and returns what is to be timed."""
    lines, runs = {}, {}
    for way, prepare in ways.items():
        lines[way] = {"what": what, "way": way}
        with noting_failure(lines[way]):
            begin = time.perf_counter()
            run = prepare()
            run()
            common.synchronize(at.device)
            lines[way]["first_s"] = time.perf_counter() - begin
            runs[way] = run
    yield from timed(lines, common.in_turns(runs, at.rounds, at.device), "eager")


def timed(lines: dict[str, dict], times: dict[str, list[float]], first: str) -> Iterator[dict]:
    """The lines by way, with their times and the ratio to the first way's."""
    found = common.timed(times, first)
    yield from (line | found.get(way, {}) for way, line in lines.items())


def forward(unet: nn.Module, at: Scale) -> Callable[[], object]:
    given = inputs(unet, at.side, 2)

    def run() -> object:
        with torch.no_grad():
            return unet(*given)

    return run


def inner_iteration(unet: nn.Module, at: Scale) -> Callable[[], object]:
    """One of `tuning.tune`, without the loss on its way to the CPU: noise, DDIM step, loss, gradient, Adam."""
    latents, timestep, contexts = inputs(unet, at.side, 2)
    (still, goal), latents = latents.float().split(1), latents[:1]
    embedding = contexts[:1].float().clone().requires_grad_()
    adam = torch.optim.Adam([embedding], lr=1e-3, capturable=at.device.type == "cuda")
    schedule = Schedule()

    def run() -> object:
        moving = unet(latents, timestep, embedding.to(latents.dtype)).float()
        moved = schedule.step(latents.float(), guide(still, moving, 7.5), 501)
        error = (moved - goal).square().sum()
        embedding.grad = torch.autograd.grad(error, embedding)[0] / goal.numel()
        adam.step()
        return error

    return run


def graph(run: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """The same as a CUDA graph: one launch for all of its kernels. Raises RuntimeError where there is no CUDA, or where
    something in it cannot be captured."""
    if device.type != "cuda":
        raise RuntimeError(f"a CUDA graph needs a CUDA GPU, and this ran on {device}")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # workspaces and Adam's state are made outside of the graph
            run()
    torch.cuda.current_stream().wait_stream(stream)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        result = run()

    def replay(kept: Callable[[], object] = run) -> object:
        """kept: what holds the tensors that the graph reads and writes."""
        captured.replay()
        return result

    return replay


def edit(at: Scale) -> Iterator[dict]:
    """Whole edits at full size, every inner iteration made; the first in each memory format warms up."""
    for dtype in dict.fromkeys((at.half, torch.bfloat16)):
        editor = Editor(random_model(at.config, at.device, dtype))
        for layout in ("", ", channels_last"):
            if layout:
                for part in (editor.model.unet, editor.model.vae):
                    part.to(memory_format=torch.channels_last)
            for name, knobs in {"warm-up, 3 steps": SHORT, "all inner iterations": {}}.items():
                line = {"what": f"{name}, {str(dtype).removeprefix('torch.')}{layout}"}
                with noting_failure(line):
                    given = {"preset": "paper", "tolerance": (0.0, 0.0), **at.knobs, **knobs}
                    line |= costs(editor.edit(DOG, PROMPT, pictures=(), **given))
                yield line


PARTS: dict[str, tuple[Callable[[Scale], Iterator[dict]], float]] = {  # and how the time is shared
    "tests": (tests, 2.5),
    "miniature": (miniature, 1.0),
    "attention": (attention, 1.0),
    "network": (network, 2.0),
    "edit": (edit, 1.5),
}
