"""What an edit may take of memory: the ways to need less, an estimate of each, and the choice that keeps a limit.

The estimate is the process's peak: on a CPU its resident set, pages of mapped weights included; on CUDA what PyTorch
allocates there. `python bench.py memory` puts it beside what the operating system measures.
"""

import contextlib
import ctypes
import itertools
import math
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from .errors import InputError
from .models.configs import ModelConfig, UNetConfig

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}

# Measured with `bench.py memory`, malloc's slack included. The unit of activations is one layer at full size: for the
# UNet latent pixels · channels[0], for the VAE picture pixels · channels[0].
PROCESS = 0.45e9  # bytes on the CPU: Python, PyTorch and its libraries
COPIES = 0.04  # of the UNet's weights: a convolution's, in the order that it computes in
ROW = 44  # the UNet, each row, without a gradient
TUNED = 37  # the UNet, one row forward and backward, for each of its layers
CHECKPOINTED, CHECKPOINT = 100, 1.5  # the same with checkpointing: the layer in hand, and what is kept of each
COPY = 16  # bytes for a weight of a tuned copy: the weight, its gradient and Adam's two averages, in float32
COPY_TUNED = 1.15  # of the same layers, where weights have gradients too
VAE, TILED_VAE = 12, 5
HALF = 1.5  # half precision does not halve it all: some is computed in float32 there too


@dataclass(frozen=True)
class Savings:
    """What an edit does to need less memory. None of it but the dtype changes the numbers, rounding apart."""

    on_demand: bool = False  # each network is read when its turn comes, and freed after it
    tiled_vae: bool = False
    checkpointing: bool = False  # of target-text inversion: a third more time there
    unet_dtype: torch.dtype | None = None  # None: that of the other networks

    def __post_init__(self) -> None:
        if self.unet_dtype not in (None, torch.float32, torch.float16, torch.bfloat16):
            raise InputError(f"unet dtype must be torch.float32, float16 or bfloat16, got {self.unet_dtype!r}")

    def __str__(self) -> str:
        names = ["networks on demand"] * self.on_demand + ["tiled VAE"] * self.tiled_vae
        names += ["gradient checkpointing"] * self.checkpointing
        if self.unet_dtype:
            names.append(f"UNet in {str(self.unet_dtype).removeprefix('torch.')}")
        return ", ".join(names) or "none"


NO_SAVINGS = Savings()


@dataclass(frozen=True)
class Work:
    """All that the estimate depends on but the savings."""

    config: ModelConfig
    parameters: dict[str, int]  # how many each network has: unet, vae, text_encoder
    size: tuple[int, int]  # width, height in pixels
    rows: int  # of the edit's largest batch
    tuning: bool  # whether there is a gradient at all
    dtype: torch.dtype
    device: torch.device
    copies: int = 0  # weights of networks that are tuned, as copies in float32


def parse_limit(limit: str | int | float) -> int:
    """Bytes: 4G, 4GB and 4e9 are 4 · 10⁹, 900M is 900 · 10⁶, 4GiB is 4 · 2³⁰. Raises InputError for anything else."""
    found = re.fullmatch(r"\s*([\d.]+(?:e\d+)?)\s*(?:([KMG]I?)?B?)\s*", str(limit), re.IGNORECASE)
    try:
        count = int(float(found[1]) * UNITS[(found[2] or "").upper()])
    except (TypeError, ValueError, OverflowError):
        count = 0
    if count <= 0:
        raise InputError(f"a memory limit such as 4G or 900M was wanted, got {limit!r}")
    return count


def estimate(work: Work, savings: Savings) -> int:
    """Bytes that the edit takes at its peak."""
    dtypes = dict.fromkeys(work.parameters, work.dtype) | {"unet": savings.unet_dtype or work.dtype}
    weights = {part: count * dtypes[part].itemsize for part, count in work.parameters.items()}
    vae, unet = work.config.vae, work.config.unet
    pixels = work.size[0] * work.size[1]
    latents = pixels // work.config.latent_factor**2
    layers, number = _layers(unet), dtypes["unet"].itemsize * (HALF if dtypes["unet"].itemsize == 2 else 1)
    tuned = CHECKPOINTED + CHECKPOINT * layers if savings.checkpointing else TUNED * layers
    if work.copies:
        number, tuned = 4, tuned * COPY_TUNED
    unet_layers = max(ROW * work.rows, tuned if work.tuning else 0)
    activations = {
        "text_encoder": 0,
        "vae": pixels * vae.channels[0] * dtypes["vae"].itemsize * (TILED_VAE if savings.tiled_vae else VAE),
        "unet": latents * unet.channels[0] * number * unet_layers + COPIES * weights["unet"] + COPY * work.copies,
    }
    resident = weights if savings.on_demand else dict.fromkeys(weights, sum(weights.values()))
    process = PROCESS if work.device.type == "cpu" else 0
    return int(process + max(resident[part] + activations[part] for part in weights))


def _layers(config: UNetConfig) -> float:
    """The UNet's layers, a level that is a quarter as large and twice as wide counted as half."""
    count = 2 * config.layers_per_block + 1  # down and up
    weights = [width / config.channels[0] / 4**level for level, width in enumerate(config.channels)]
    return count * sum(weights) + weights[-1]


def plan(limit: int, work: Work, asked: Savings, dtype_is_free: bool) -> Savings:
    """What keeps the limit at the least cost in time, beside the savings that were asked for.

    dtype_is_free: the UNet may go to bfloat16; the VAE, whose rounding would be seen, and the small text encoder never
    do. Raises InputError, naming the least that would do, where nothing keeps the limit.
    """
    choices = list(_choices(asked, dtype_is_free and work.dtype == torch.float32))
    for savings in choices:
        if estimate(work, savings) <= limit:
            return savings
    least = min(choices, key=lambda savings: estimate(work, savings))
    width, height = work.size
    raise InputError(
        f"a memory limit of {in_words(limit)} cannot be kept: this edit at {width}×{height} needs "
        f"{in_words(estimate(work, least), up=True)} at least (with {least})"
    )


def _choices(asked: Savings, half: bool) -> Iterator[Savings]:
    """All that there is to choose from, the cheapest first: like a number's digits, the last turns first."""
    dtypes = [None, torch.bfloat16] if half and not asked.unet_dtype else [asked.unet_dtype]
    off_and_on = [[was] if was else [False, True] for was in (asked.checkpointing, asked.tiled_vae, asked.on_demand)]
    for dtype, checkpointing, tiled_vae, on_demand in itertools.product(dtypes, *off_and_on):
        yield Savings(on_demand, tiled_vae, checkpointing, dtype)


def in_words(size: int, up: bool = False) -> str:
    """Bytes as 4.1G or 900M; up: a limit that is copied from here must be enough."""
    unit, letter, parts = (10**9, "G", 10) if size >= 10**9 else (10**6, "M", 1)
    count = math.ceil(size * parts / unit) if up else round(size * parts / unit)
    return f"{count / parts:g}{letter}"


def trim() -> None:
    """Hands memory that was freed back to the system, which glibc's malloc does not do of itself."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def forget_peak(device: torch.device) -> None:
    """On CUDA, `peak_memory` is from now on of what comes after."""
    if device.type == "cuda":
        torch.cuda.init()  # where nothing was on the GPU yet there is nothing to reset, and PyTorch would refuse
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int | None:
    """Bytes at the highest: on CUDA what PyTorch had allocated there since `forget_peak`, else the process's resident
    set so far, by the operating system's count; None where that does not say."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    highest = re.search(r"VmHWM:\s*(\d+)", status.read_text()) if status.is_file() else None
    if highest:  # sandboxes may leave it out
        return int(highest[1]) * 1024
    try:
        import resource
    except ImportError:
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
