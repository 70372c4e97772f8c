"""What an edit may take of memory: the ways to need less, an estimate of each, and the choice that keeps a limit.

The estimate is the process's peak: on a CPU its resident set, pages of mapped weights included; on CUDA what PyTorch
allocates there. `python bench.py memory` puts it beside what the operating system measures.
"""

import contextlib
import ctypes
import functools
import itertools
import math
import operator
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from .errors import InputError
from .models.configs import ModelConfig, UNetConfig
from .models.unet import UNet

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}

# Measured with `bench.py memory --table`, malloc's slack included. Bytes on the CPU: what a tokenizer adds to the
# process; then the first forward, kernels that are compiled and pages of PyTorch's code; then the first gradient.
LOADED, FORWARD, BACKWARD = 0.03e9, 0.05e9, 0.09e9
DECODER = 0.6  # part of the VAE's mapped weights that is in memory while it decodes: only what is used
LAYER = 1.3  # of a layer's bytes, while it runs: its weights, and those of a convolution in the order it computes in
COPY_OF = 0.6  # of a layer's bytes, where its weights are in memory anyway: that order's alone
# Numbers in memory at once while a layer runs, by those of its widest input, of one row: without a gradient; with what
# is kept for one.
ROW = {"resnet": 5, "attention": 14, "sampler": 4}
KEPT = {"resnet": 8, "attention": 32, "sampler": 3}
COPY = 16  # bytes for a weight of a tuned copy: the weight, its gradient and Adam's two averages, in float32
COPY_TUNED = 1.15  # of the same layers, where weights have gradients too
VAE = {4: 7, 2: 8.5}  # picture pixels · channels[0], by the bytes of a number, as it is; in tiles: _vae()
M_MMAP_THRESHOLD, LARGE = -3, 2**20  # of glibc's mallopt; bytes
STRIPS = 0.05e9  # bytes of a tile and what is made of it


@dataclass(frozen=True)
class Savings:
    """What an edit does to need less memory. None of it but the dtype changes the numbers, rounding apart."""

    on_demand: bool = False  # each network is read when its turn comes, and freed after it
    tiled_vae: bool = False
    checkpointing: bool = False  # of what is tuned: a third more time there
    unet_dtype: torch.dtype | None = None  # None: that of the other networks
    streamed: bool = False  # of the UNet's weights only a layer's are in memory; with networks on demand, checkpointing

    def __post_init__(self) -> None:
        if self.unet_dtype not in (None, torch.float32, torch.float16, torch.bfloat16):
            raise InputError(f"unet dtype must be torch.float32, float16 or bfloat16, got {self.unet_dtype!r}")

    def __str__(self) -> str:
        names = ["networks on demand"] * self.on_demand + ["tiled VAE"] * self.tiled_vae
        names += ["gradient checkpointing"] * self.checkpointing
        names += ["streamed weights"] * self.streamed
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
    stored: torch.dtype | None = None  # of the UNet's weights in their file; None: as they are computed with
    process: int = 0  # bytes that it takes before any network is read
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
    if savings.streamed:
        weights["unet"] = 0
    if savings.on_demand and work.stored == dtypes["vae"]:
        weights["vae"] *= DECODER
    here = weights if savings.on_demand else dict.fromkeys(weights, sum(weights.values()))  # while each part runs
    vae, unet = _vae(work, savings, dtypes["vae"]), _unet(work, savings, dtypes["unet"])
    needed = max(here["text_encoder"], here["vae"] + vae, here["unet"] + unet)
    if work.device.type == "cpu":
        needed += work.process + LOADED + FORWARD + BACKWARD * work.tuning
    return int(needed)


def _vae(work: Work, savings: Savings, dtype: torch.dtype) -> float:
    """Bytes beside the weights."""
    pixels, channels = work.size[0] * work.size[1] * dtype.itemsize, work.config.vae.channels
    if savings.tiled_vae:  # a ResBlock's input and hidden layer; what is enlarged, and what it is enlarged to
        return pixels * max(2 * channels[0], 1.25 * channels[1]) + STRIPS
    return pixels * channels[0] * VAE[dtype.itemsize]


def _unet(work: Work, savings: Savings, dtype: torch.dtype) -> float:
    """Bytes beside the weights that stay: the most that any layer needs while it runs."""
    layers, number, latents = unet_layers(work.config.unet), dtype.itemsize, math.prod(work.size)
    latents //= work.config.latent_factor**2
    factor, number = (COPY_TUNED, 4) if work.copies else (1.0, number)
    sizes = [latents / 4**layer.level * number for layer in layers]  # bytes of one channel
    weights = [layer.weights * number * (LAYER if savings.streamed else COPY_OF) for layer in layers]
    if savings.streamed and work.stored not in (None, dtype):  # one is read at a time, beside what it becomes
        weights = [layer.weights * number + layer.largest * work.stored.itemsize for layer in layers]
    rows = max(
        own + work.rows * size * (ROW[layer.kind] * layer.width + 4**layer.level * layer.skips)
        for layer, size, own in zip(layers, sizes, weights)
    )
    if not work.tuning:
        return rows
    kept = [size * layer.width * KEPT[layer.kind] * factor for layer, size in zip(layers, sizes)]
    if savings.checkpointing or savings.streamed:
        inputs = sum(size * layer.width for layer, size in zip(layers, sizes))
        gradient = inputs + max(map(operator.add, kept, weights))
    else:
        gradient = sum(kept) + max(weights)
    return max(rows, gradient) + COPY * work.copies


class UNetLayer(NamedTuple):
    """What the estimate asks about a layer."""

    kind: str  # "resnet", "attention" or "sampler"
    level: int
    width: int  # channels that come in
    weights: int  # how many
    largest: int  # how many in its largest convolution or matrix
    skips: float  # channels kept for later layers, at the finest level's size


@functools.cache
def unet_layers(config: UNetConfig) -> list[UNetLayer]:
    """In the order that they run; biases and norms are left out."""
    with torch.device("meta"):
        unet = UNet(config)
    found, skips = [], [config.channels[0]]

    def add(kind: str, level: int, layer: nn.Module, width: int) -> None:
        counts = [weight.numel() for weight in layer.parameters() if weight.dim() > 1]
        found.append(UNetLayer(kind, level, width, sum(counts), max(counts), sum(skips)))

    for block in unet.blocks:
        for resnet, attention in itertools.zip_longest(block.resnets, block.attentions):
            if block.part == "up":
                skips.pop()
            add("resnet", block.level, resnet, resnet.conv1.in_channels)
            if attention:
                add("attention", block.level, attention, attention.proj_in.in_channels)
            if block.part == "down":
                skips.append(resnet.conv1.out_channels / 4**block.level)
        for sampler in (*getattr(block, "downsamplers", ()), *getattr(block, "upsamplers", ())):
            add("sampler", block.level, sampler, sampler.conv.in_channels)
            if block.part == "down":
                skips.append(sampler.conv.out_channels / 4 ** (block.level + 1))
    return found


def plan(limit: int, work: Work, asked: Savings, dtype_is_free: bool) -> Savings:
    """What keeps the limit at the least cost in time, beside the savings that were asked for.

    dtype_is_free: the UNet may go to bfloat16; the VAE, whose rounding would be seen, and the small text encoder never
    do. Raises InputError, naming the least that would do, where nothing keeps the limit.
    """
    choices = list(_choices(asked, dtype_is_free and work.dtype == torch.float32, bool(work.copies)))
    for savings in choices:
        if estimate(work, savings) <= limit:
            return savings
    least = min(choices, key=lambda savings: estimate(work, savings))
    width, height = work.size
    raise InputError(
        f"a memory limit of {in_words(limit)} cannot be kept: this edit at {width}×{height} needs "
        f"{in_words(estimate(work, least), up=True)} at least (with {least})"
    )


def _choices(asked: Savings, half: bool, copies: bool) -> Iterator[Savings]:
    """All that there is to choose from, the cheapest first: like a number's digits, the last turns first."""
    dtypes = [None, torch.bfloat16] if half and not asked.unet_dtype else [asked.unet_dtype]
    was = (asked.streamed, asked.checkpointing, asked.tiled_vae, asked.on_demand)
    for dtype, *chosen in itertools.product(dtypes, *([True] if on else [False, True] for on in was)):
        streamed, checkpointing, tiled_vae, on_demand = chosen
        if not streamed or (on_demand and checkpointing and not copies):  # a copy is made of a whole network
            yield Savings(on_demand, tiled_vae, checkpointing, dtype, streamed)


def in_words(size: int, up: bool = False) -> str:
    """Bytes as 4.1G or 900M; up: a limit that is copied from here must be enough."""
    if size < 10**6:
        return str(size)
    unit, letter, parts = (10**9, "G", 10) if size >= 10**9 else (10**6, "M", 1)
    count = math.ceil(size * parts / unit) if up else round(size * parts / unit)
    return f"{count / parts:g}{letter}"


def resident() -> int:
    """Bytes of memory that the process has now, by the operating system's count; 0 where that does not say."""
    found = _status("VmRSS")
    return found or 0


def trim() -> None:
    """Hands memory that was freed back to the system, which glibc's malloc does not do of itself."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def hold(limit: int, device: torch.device) -> None:
    """Holds the process to bytes of memory, as far as there is something to hold it with. On CUDA that is PyTorch. On a
    CPU with glibc, malloc learns to keep freed blocks of up to 32 MB, and gaps between them that are 0.2 GB or none, by
    chance: from here on large blocks are pages of their own, which go back to the system when they are freed."""
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(limit / total, 1.0), device)
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE)


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
    highest = _status("VmHWM")
    if highest:
        return highest
    try:
        import resource
    except ImportError:
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _status(name: str) -> int | None:
    """Bytes of a line of Linux's account of the process; None where there is none: sandboxes may leave it out."""
    status = Path("/proc/self/status")
    found = re.search(rf"{name}:\s*(\d+)", status.read_text()) if status.is_file() else None
    return int(found[1]) * 1024 if found else None
