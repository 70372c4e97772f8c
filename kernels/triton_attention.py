"""The operator as one fused kernel: what it can take, in which configuration it runs, the PyTorch operator around it.

Triton is imported when the first kernel is launched, not before. There is no backward pass.
"""

import contextlib
import functools
import importlib.util
import os
from dataclasses import dataclass
from typing import Sequence  # noqa: UP035 - for custom_op, PyTorch before 2.7 knows no other

import torch
from torch import Tensor

INSTALLED = importlib.util.find_spec("triton") is not None
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # kernels run on the CPU, slowly, to be tested
DTYPES = (torch.float16, torch.bfloat16)
MAX_FEATURES = 160
CHUNK = 8  # elements copied at once, 16 bytes


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
        64: Configuration(128, 64, 8, 2),
        80: Configuration(128, 32, 8, 3),
        160: Configuration(32, 32, 4, 2),
    },
    90: {
        64: Configuration(128, 64, 8, 2),
        80: Configuration(128, 64, 8, 2),
        160: Configuration(64, 32, 4, 2),
    },
}
FEW = 128  # keys; cross-attention to a text has at most so many
CROSS_CONFIGURATIONS = {  # the same for at most FEW keys
    80: {80: Configuration(64, 32, 4, 2), 160: Configuration(32, 32, 4, 2)},
    90: {160: Configuration(64, 32, 4, 2)},
}
MAPS = Configuration(32, 64, 4, 2)
INTERPRETER = Configuration(64, 64, 1, 1)


def configuration(capability: int, features: int, keys: int) -> Configuration:
    """capability: 80 for 8.0, 90 for 9.0, …; 9.0 and 10.0 have the shared memory that 9.0's configurations want, all
    others run those of 8.0."""
    table = (CROSS_CONFIGURATIONS if keys <= FEW else CONFIGURATIONS)[90 if 90 <= capability < 110 else 80]
    return next(table[most] for most in table if features <= most)


def why_not(q: Tensor, k: Tensor, v: Tensor, takes=None) -> str | None:
    """One sentence on why the kernel cannot take these tensors, or None if it can."""
    if not INSTALLED:
        return "the triton package is not installed"
    if not INTERPRETED and not (q.is_cuda and k.is_cuda and v.is_cuda):
        return f"it runs on CUDA, the tensors are on {q.device}, {k.device} and {v.device}"
    if not q.device == k.device == v.device:
        return f"the tensors must be on one device, they are on {q.device}, {k.device} and {v.device}"
    if not INTERPRETED and torch.cuda.get_device_capability(q.device) < (8, 0):
        major, minor = torch.cuda.get_device_capability(q.device)
        return f"it needs compute capability 8.0, this GPU has {major}.{minor}"
    if not q.dtype == k.dtype == v.dtype or q.dtype not in (*DTYPES, *([torch.float32] if INTERPRETED else [])):
        return f"it takes float16 or bfloat16, one for all, got {q.dtype}, {k.dtype} and {v.dtype}"
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        return "it has no backward pass and an input needs a gradient"
    if q.shape[-1] % CHUNK or q.shape[-1] > MAX_FEATURES:
        return f"it takes head dimensions that are multiples of 8 up to {MAX_FEATURES}, got {q.shape[-1]}"
    if v.shape[0] * q[0].numel() >= 2**31:
        return f"it writes less than 2**31 elements, asked for {v.shape[0] * q[0].numel()}"
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
    return None


def _span(x: Tensor) -> int:
    """Elements of memory from the tensor's first to its last."""
    return 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride()))


def attention(q: Tensor, k: Tensor, v: Tensor, source: Sequence[int] | None = None) -> Tensor:
    """See `minibaret.kernels.attention`. Raises ValueError where the kernel cannot take the tensors."""
    _require(q, k, v)
    return fused_attention(q, k, v, list(range(v.shape[0]) if source is None else source), False)[0]


def attention_and_lse(q: Tensor, k: Tensor, v: Tensor, source: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
    """The same, and (B, H, N) float32: the logarithm of the sum of exp(q kᵀ / √D) over the keys, of each row's map."""
    _require(q, k, v)
    return fused_attention(q, k, v, list(range(v.shape[0]) if source is None else source), True)


def _require(q: Tensor, k: Tensor, v: Tensor) -> None:
    reason = why_not(q, k, v)
    if reason:
        raise ValueError(f"the Triton kernel cannot be used here: {reason}")


@torch.library.custom_op("minibaret::fused_attention", mutates_args=())
def fused_attention(q: Tensor, k: Tensor, v: Tensor, source: Sequence[int], lse: bool) -> tuple[Tensor, Tensor]:
    out, sums = _outputs(q, v, lse)
    launch(q, k, v, source, out, sums if lse else None)
    return out, sums


@fused_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, source: Sequence[int], lse: bool) -> tuple[Tensor, Tensor]:
    return _outputs(q, v, lse)


def _outputs(q: Tensor, v: Tensor, lse: bool) -> tuple[Tensor, Tensor]:
    rows, _, heads, features = v.shape
    sums = q.new_empty((rows, heads, q.shape[1]) if lse else (0,), dtype=torch.float32)
    return q.new_empty((rows, q.shape[1], heads, features)), sums


def launch(q: Tensor, k: Tensor, v: Tensor, source: Sequence[int], out: Tensor, lse: Tensor | None) -> None:
    """Writes every element of out (B, N, H, D), contiguous, and of lse (B, H, N) where it is given."""
    from . import triton_kernels

    if any(x.data_ptr() % 16 for x in (q, k, v)):
        raise ValueError("the Triton kernel copies 16 bytes at a time: q, k and v must begin at a multiple of 16 bytes")
    tokens, heads, features = q.shape[1:]
    keys = k.shape[1]
    chosen = _configuration(q, keys)
    table = _table(tuple(source), q.device)
    strides = [stride for x in (q, k, v, out) for stride in _chunk_strides(x)]
    with _device(q):
        triton_kernels.forward[(-(-tokens // chosen.block_queries), heads, len(table))](
            q, k, v, out, out if lse is None else lse, table, *strides,
            tokens, keys, heads, features**-0.5,
            **constants(features, keys, chosen), WRITE_LSE=lse is not None, UPCAST=_upcast(q), **chosen.options,
        )  # fmt: skip


def constants(features: int, keys: int, chosen: Configuration) -> dict:
    """The compile-time constants of the forward kernel that follow from the shapes."""
    low, high = split(features)
    return {
        "D": features,
        "LOW": low,
        "HIGH": high,
        "BLOCK_QUERIES": chosen.block_queries,
        "BLOCK_KEYS": chosen.block_keys,
        "WHOLE": keys % chosen.block_keys == 0,
    }


def split(features: int) -> tuple[int, int]:
    """The head dimension as two powers of two, the second as small as will hold the rest: 40 → (32, 8)."""
    low = 1 << (features.bit_length() - 1)
    rest = features - low
    return low, 1 << (rest - 1).bit_length() if rest else 0


def entries(source: Sequence[int]) -> list[tuple[int, int, int]]:
    """The launch table: (row of q and k, row of v, second row of v with the same map or -1). Rows with one source go
    in pairs, and pairs go first, because they take longest."""
    alone: dict[int, int] = {}
    pairs = []
    for row, index in enumerate(source):
        if index in alone:
            pairs.append((index, alone.pop(index), row))
        else:
            alone[index] = row
    return pairs + [(index, row, -1) for index, row in alone.items()]


@functools.lru_cache(maxsize=64)
def _table(source: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(entries(source), dtype=torch.int32, device=device)


def attention_maps(q: Tensor, k: Tensor, queries: Tensor, keys: Tensor, mean: bool) -> Tensor:
    """(G, heads, queries, keys) float32, one mean head if `mean`; queries, keys: indices on the device."""
    from . import triton_kernels

    _require(q, k, k)
    rows, _, heads, features = q.shape
    groups = 1 if mean else heads
    out = q.new_empty((rows, groups, len(queries), len(keys)), dtype=torch.float32)
    chosen = INTERPRETER if INTERPRETED else MAPS
    low, high = split(features)
    grid = (-(-len(queries) // chosen.block_queries), -(-len(keys) // chosen.block_keys), rows * groups)
    with _device(q):
        triton_kernels.maps[grid](
            q, k, out, queries.int(), keys.int(), *_chunk_strides(q), *_chunk_strides(k),
            len(queries), len(keys), k.shape[1], groups, features**-0.5,
            D=features, LOW=low, HIGH=high, BLOCK_QUERIES=chosen.block_queries, BLOCK_KEYS=chosen.block_keys,
            HEADS=heads // groups, UPCAST=_upcast(q), **chosen.options,
        )  # fmt: skip
    return out


def _configuration(q: Tensor, keys: int) -> Configuration:
    if INTERPRETED:
        return INTERPRETER
    major, minor = torch.cuda.get_device_capability(q.device)
    return configuration(10 * major + minor, q.shape[-1], keys)


def _upcast(q: Tensor) -> bool:
    """The interpreter would multiply the bits of bfloat16 as if they were integers."""
    return INTERPRETED and q.dtype == torch.bfloat16


def _chunk_strides(x: Tensor) -> list[int]:
    """Of rows, tokens and heads, in chunks of 8 elements."""
    return [stride // CHUNK for stride in x.stride()[:3]]


def _device(q: Tensor):
    """Kernels are launched on PyTorch's current device, which need not be the tensors'."""
    return torch.cuda.device(q.device) if q.is_cuda else contextlib.nullcontext()


def triton_problem(device) -> str | None:
    return None if INSTALLED else "the triton package is not installed"
