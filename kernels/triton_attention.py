"""The operator as one fused kernel: what it can take, in which configuration it runs, what is launched.

Triton is imported when the first kernel is launched, not before; it need not be installed. There is no backward pass.
"""

import contextlib
import functools
import importlib.util
import os
import textwrap
from dataclasses import dataclass
from typing import Sequence  # noqa: UP035 - for custom_op, PyTorch before 2.7 knows no other

import torch
from torch import Tensor

INSTALLED = importlib.util.find_spec("triton") is not None
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # kernels run on the CPU, slowly, to be tested
DTYPES = (torch.float16, torch.bfloat16)
MAX_FEATURES = 160
CHUNK = 8  # elements copied at once, 16 bytes
ENTRIES = 8  # of one launch, plain integers: nothing is copied to the device, nothing belongs to a stream
ROW_BITS = 10  # of each row number in an entry
STRIDES = [f"{x}_{of}" for x in "qkv" for of in ("row", "token", "head")]  # in chunks
NUMBERS = [*(f"e{i}" for i in range(ENTRIES)), *STRIDES, "N", "M"]  # for whose values Triton compiles no variants


@dataclass(frozen=True)
class Configuration:
    block_queries: int  # queries per program
    block_keys: int  # keys per turn of its loop
    warps: int
    stages: int

    @property
    def options(self) -> dict:
        return {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": True}


# By compute capability, then by head dimension: the first that is at least D. tests/test_triton.py compiles
# every one of them. Nothing is tuned at run time, so a result never depends on what else the GPU was doing.
CONFIGURATIONS = {
    80: {
        32: Configuration(128, 64, 8, 3),
        64: Configuration(128, 64, 8, 2),
        80: Configuration(128, 32, 8, 3),
        160: Configuration(32, 32, 8, 2),
    },
    90: {
        64: Configuration(128, 64, 8, 2),
        80: Configuration(128, 64, 8, 2),
        160: Configuration(64, 64, 8, 2),
    },
}
FEW = 128  # keys that go in one tile; cross-attention to a text has 77
CROSS_CONFIGURATIONS = {  # the same for at most FEW keys
    80: {64: Configuration(64, 128, 4, 1), 80: Configuration(64, 128, 8, 1), 160: Configuration(16, 128, 8, 1)},
    90: {80: Configuration(64, 128, 4, 1), 160: Configuration(64, 128, 8, 1)},
}
INTERPRETER = Configuration(64, 64, 1, 1)
INTERPRETER_CROSS = Configuration(64, 128, 1, 1)


def configuration(capability: int, features: int, keys: int) -> Configuration:
    """capability: 80 for 8.0, 90 for 9.0, …; 9.0 and 10.0 have the shared memory that 9.0's configurations want, all
    others run those of 8.0."""
    table = (CROSS_CONFIGURATIONS if keys <= FEW else CONFIGURATIONS)[90 if 90 <= capability < 110 else 80]
    return next(table[most] for most in table if features <= most)


def triton_problem(device: torch.device | str) -> str | None:
    """One sentence on why the Triton kernel cannot work on this device, or None if it can.

    Found out once per device: the first time, a kernel of one line is compiled and launched. Ask before a CUDA graph
    is captured, since nothing can be loaded meanwhile.
    """
    device = torch.device(device)
    return _unfit(device) or _first_launch(device)


def _unfit(device: torch.device) -> str | None:
    if not INSTALLED:
        return "the triton package is not installed"
    if INTERPRETED:
        return None
    if device.type != "cuda":
        return f"it runs on CUDA, not on {device}"
    if torch.version.hip:
        return "it is for NVIDIA's GPUs, this PyTorch is built for ROCm"
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 0):
        return "it needs compute capability 8.0, this GPU has {}.{}".format(*capability)
    return None


@functools.cache
def _first_launch(device: torch.device) -> str | None:
    try:
        from . import triton_kernels

        x = torch.empty(1, device=device)
        with _device(x):
            triton_kernels.probe[(1,)](x)
    except Exception as error:  # no C compiler, no folder to write to, an older driver, …: whatever Triton raises
        said = textwrap.shorten(str(error), 200) or type(error).__name__
        return f"Triton could not compile and launch its first kernel on {device}: {said}"
    return None


def why_not(q: Tensor, k: Tensor, v: Tensor, takes: Sequence[Sequence[tuple[int, int, int]]]) -> str | None:
    """One sentence on why the kernel cannot take these tensors, or None if it can."""
    problem = _unfit(q.device)
    if problem:
        return problem
    if not q.device == k.device == v.device:
        return f"the tensors must be on one device, they are on {q.device}, {k.device} and {v.device}"
    if not q.dtype == k.dtype == v.dtype or q.dtype not in (*DTYPES, *([torch.float32] if INTERPRETED else [])):
        return f"it takes float16 or bfloat16, one for all, got {q.dtype}, {k.dtype} and {v.dtype}"
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        return "it has no backward pass and an input needs a gradient"
    if q.shape[-1] % CHUNK or q.shape[-1] > MAX_FEATURES:
        return f"it takes head dimensions that are multiples of {CHUNK} up to {MAX_FEATURES}, got {q.shape[-1]}"
    if max(len(q), len(k), len(v), len(takes)) > 1 << ROW_BITS:
        return f"it takes up to {1 << ROW_BITS} rows, got {len(q)}, {len(k)} and {len(v)} for {len(takes)}"
    if len(takes) * q.shape[1:].numel() >= 2**31:
        return f"it writes less than 2**31 elements, asked for {len(takes) * q.shape[1:].numel()}"
    for name, x in (("q", q), ("k", k), ("v", v)):
        if _span(x) >= 2**31:
            return f"it takes tensors that span less than 2**31 elements of memory, {name} spans {_span(x)}"
        if x.stride(-1) != 1 or any(stride % CHUNK for stride in x.stride()[:-1]):
            return (
                f"it copies 16 bytes at a time: features must be adjacent and the other strides multiples of {CHUNK}, "
                f"the strides of {name} are {tuple(x.stride())}"
            )
        if not torch.compiler.is_compiling() and x.storage_offset() % CHUNK:  # a compiler cannot see it; launch looks
            return (
                f"it copies 16 bytes at a time: {name} must begin at one, its offset is {x.storage_offset()} elements"
            )
    # What torch.compile makes for a GPU needs a Triton that works, and cannot wait for a launch.
    return None if torch.compiler.is_compiling() else _first_launch(q.device)


def _span(x: Tensor) -> int:
    """Elements of memory from the tensor's first to its last."""
    return 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride()))


def attention(q: Tensor, k: Tensor, v: Tensor, takes: Sequence[Sequence[tuple[int, int, int]]]) -> Tensor:
    """See `minibaret.kernels.attention`. Raises ValueError where the kernel cannot take the tensors."""
    reason = why_not(q, k, v, takes)
    if reason:
        raise ValueError(f"the Triton kernel cannot be used here: {reason}")
    numbers = [number for row, terms in enumerate(takes) for take in terms for number in (row, *take)]
    return (traceable if torch.compiler.is_compiling() else fused_attention)(q, k, v, numbers, len(takes))


def fused_attention(q: Tensor, k: Tensor, v: Tensor, takes: Sequence[int], rows: int) -> Tensor:
    """takes: the output row and the rows of q, k and v of each term, one after another."""
    out = q.new_empty((rows, *q.shape[1:]))
    launch(q, k, v, takes, out)
    return out


traceable = torch.library.custom_op("minibaret::fused_attention", fused_attention, mutates_args=())


@traceable.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, takes: Sequence[int], rows: int) -> Tensor:
    return q.new_empty((rows, *q.shape[1:]))


def launch(q: Tensor, k: Tensor, v: Tensor, takes: Sequence[int], out: Tensor) -> None:
    """Writes every element of out (B, N, H, D), contiguous."""
    from . import triton_kernels

    if any(x.data_ptr() % 16 for x in (q, k, v)):
        raise ValueError("the Triton kernel copies 16 bytes at a time: q, k and v must begin at a multiple of 16 bytes")
    tokens, heads, features = q.shape[1:]
    chosen = _configuration(q, k.shape[1])
    strides = [stride // CHUNK for x in (q, k, v) for stride in x.stride()[:3]]
    with _device(q):
        for entries in launches(tuple(takes)):
            triton_kernels.forward[(-(-tokens // chosen.block_queries), heads, len(entries))](
                q, k, v, out, *entries, *[0] * (ENTRIES - len(entries)), *strides,
                tokens, k.shape[1], features**-0.5,
                **constants(features, k.shape[1], chosen), UPCAST=INTERPRETED and q.dtype == torch.bfloat16,
                **chosen.options,
            )  # fmt: skip


@functools.lru_cache(maxsize=256)
def launches(takes: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The packed entries of each launch. A launch writes no row twice; a row of several terms is written by one launch
    and added to by later ones. Two terms of different rows with the same map are one entry; those go first, because
    they take longest."""
    values: dict[tuple[int, int], list[tuple[int, int]]] = {}  # by map: (row of v, row of the output)
    for out, q_row, k_row, v_row in zip(*[iter(takes)] * 4):
        values.setdefault((q_row, k_row), []).append((v_row, out))
    pairs, alone = [], []
    for rows, waiting in values.items():
        while waiting:
            first = waiting.pop(0)
            second = next((other for other in waiting if other[1] != first[1]), None)
            if second:
                waiting.remove(second)
                pairs.append((rows, first, second))
            else:
                alone.append((rows, first, first))
    launched: list[tuple[list[tuple], set[int]]] = []  # (entries, rows of the output that they write)
    for entry in pairs + alone:
        outs = {out for _, out in entry[1:]}
        free = next((place for place in launched if not outs & place[1]), None)
        if free is None:
            launched.append(free := ([], set()))
        free[0].append(entry)
        free[1].update(outs)
    packed: list[tuple[int, ...]] = []
    written: set[int] = set()
    for entries, outs in launched:
        numbers = [_pack(*entry, written) for entry in entries]
        packed += [tuple(numbers[i : i + ENTRIES]) for i in range(0, len(numbers), ENTRIES)]
        written |= outs
    return packed


def _pack(rows: tuple[int, int], first: tuple[int, int], second: tuple[int, int], written: set[int]) -> int:
    """Rows of q, k, v, v, out and out, then three flags: two different rows; add to the first, to the second."""
    (v_first, out_first), (v_second, out_second) = first, second
    number = 0
    for place, row in enumerate((*rows, v_first, v_second, out_first, out_second)):
        number |= row << place * ROW_BITS
    for place, flag in enumerate((out_first != out_second, out_first in written, out_second in written)):
        number |= flag << 6 * ROW_BITS + place
    return number


def constants(features: int, keys: int, chosen: Configuration) -> dict:
    """The compile-time constants of the kernel that follow from the shapes."""
    low, high = split(features)
    return {
        "D": features,
        "LOW": low,
        "HIGH": high,
        "BLOCK_QUERIES": chosen.block_queries,
        "BLOCK_KEYS": chosen.block_keys,
        "ONE_TILE": keys <= chosen.block_keys,
        "RAGGED": keys % chosen.block_keys != 0,
    }


def split(features: int) -> tuple[int, int]:
    """The head dimension as two powers of two, the second as small as will hold the rest: 40 → (32, 8)."""
    low = 1 << (features.bit_length() - 1)
    rest = features - low
    return low, 1 << (rest - 1).bit_length() if rest else 0


def _configuration(q: Tensor, keys: int) -> Configuration:
    if INTERPRETED:
        return INTERPRETER_CROSS if 64 < keys <= FEW else INTERPRETER
    major, minor = torch.cuda.get_device_capability(q.device)
    return configuration(10 * major + minor, q.shape[-1], keys)


def _device(q: Tensor):
    """Kernels are launched on PyTorch's current device, which need not be the tensors'."""
    return torch.cuda.device(q.device) if q.is_cuda else contextlib.nullcontext()
