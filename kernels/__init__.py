"""Attention whose rows may use another row's queries and keys. Imports nothing of minibaret but itself.

    attention(q, k, v, source)    out[b] = softmax(q[source[b]] k[source[b]]ᵀ / √D) v[b]

Replacing Q and K is the same as replacing the attention map, so the map never has to exist in memory; rows that share
a source share one QKᵀ and one softmax, which makes attention with injection cheaper than without.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from . import reference, torch_maps, torch_sdpa, triton_attention

IMPLEMENTATIONS = {
    "reference": reference.attention,  # the definition: slow, any dtype
    "torch": torch_sdpa.attention,  # everywhere, with gradients
    "triton": triton_attention.attention,  # one fused kernel, on GPUs in half precision, without gradients
}


def attention(
    q: Tensor, k: Tensor, v: Tensor, source: Sequence[int] | None = None, implementation: str = "auto"
) -> Tensor:
    """Attention in which row b takes its map from row source[b] of the queries and keys, and keeps its own values.

    q: (G, N, H, D), k: (G, M, H, D), v: (B, M, H, D), any strides; source: B ints in [0, G), or None for G = B and
    plain attention. Returns (B, N, H, D). `implementation` is "auto" (the Triton kernel where it can, else PyTorch) or
    a name of IMPLEMENTATIONS; a name never falls back. Raises ValueError where the shapes, the source, the name or
    the named implementation do not fit.
    """
    _check(q, k, v, source)
    if implementation == "auto":
        implementation = _automatic(q, k, v)
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"attention must be auto or one of {', '.join(IMPLEMENTATIONS)}, got {implementation!r}")
    return IMPLEMENTATIONS[implementation](q, k, v, source)


def attention_maps(
    q: Tensor,
    k: Tensor,
    queries: Sequence[int] | None = None,
    keys: Sequence[int] | None = None,
    heads: str = "mean",
    implementation: str = "auto",
) -> Tensor:
    """Softmax(q kᵀ / √D) at the queries and keys asked for, to look at; `attention` itself never has it in memory.

    q: (G, N, H, D), k: (G, M, H, D); queries, keys: token indices, all if None. The softmax is over all M keys
    whichever are asked for. Returns (G, queries, keys), the mean of the heads, or with heads="each"
    (G, H, queries, keys), in float32 or wider. Raises ValueError where something does not fit.
    """
    _check(q, k, k, None)
    if heads not in ("mean", "each"):
        raise ValueError(f"heads must be mean or each, got {heads!r}")
    if implementation == "auto":
        implementation = _automatic(q, k, k)
    if implementation not in ("torch", "triton"):
        raise ValueError(f"attention maps must be auto, torch or triton, got {implementation!r}")
    make = torch_maps.attention_maps if implementation == "torch" else triton_attention.attention_maps
    maps = make(q, k, _tokens("queries", queries, q), _tokens("keys", keys, k), heads == "mean")
    return maps[:, 0] if heads == "mean" else maps


def _automatic(q: Tensor, k: Tensor, v: Tensor) -> str:
    return "triton" if q.is_cuda and triton_attention.why_not(q, k, v) is None else "torch"


def _tokens(name: str, wanted: Sequence[int] | None, x: Tensor) -> Tensor:
    if wanted is None:
        return torch.arange(x.shape[1], device=x.device)
    if not all(0 <= token < x.shape[1] for token in wanted):
        raise ValueError(f"{name} must be tokens in [0, {x.shape[1]}), got {list(wanted)}")
    return torch.tensor(list(wanted), dtype=torch.int64, device=x.device)


def _check(q: Tensor, k: Tensor, v: Tensor, source: Sequence[int] | None) -> None:
    if q.dim() != 4 or k.dim() != 4 or v.dim() != 4:
        raise ValueError(
            "q, k and v must have shape [rows, tokens, heads, features], "
            f"got {tuple(q.shape)}, {tuple(k.shape)} and {tuple(v.shape)}"
        )
    if q.shape[0] != k.shape[0] or q.shape[2:] != k.shape[2:] or k.shape[1:] != v.shape[1:]:
        raise ValueError(
            "q, k and v must have shape [G, N, H, D], [G, M, H, D] and [B, M, H, D], "
            f"got {tuple(q.shape)}, {tuple(k.shape)} and {tuple(v.shape)}"
        )
    if source is None:
        if q.shape[0] != v.shape[0]:
            raise ValueError(f"without a source q and v must have the same rows, got {q.shape[0]} and {v.shape[0]}")
    elif len(source) != v.shape[0] or not all(0 <= row < q.shape[0] for row in source):
        raise ValueError(
            f"source must hold {v.shape[0]} rows, one for each row of v, each in [0, {q.shape[0]}), got {list(source)}"
        )
