"""Attention whose rows may use another row's queries and keys. Imports nothing of minibaret but itself.

    attention(q, k, v, source)    out[b] = softmax(q[source[b]] k[source[b]]ᵀ / √D) v[b]

Replacing Q and K is the same as replacing the attention map, so the map never has to exist in memory; rows that share
a source share one QKᵀ and one softmax, which makes attention with injection cheaper than without.
"""

from collections.abc import Sequence

from torch import Tensor

from . import reference, torch_sdpa

IMPLEMENTATIONS = {"reference": reference.attention, "torch": torch_sdpa.attention}


def attention(
    q: Tensor, k: Tensor, v: Tensor, source: Sequence[int] | None = None, implementation: str = "auto"
) -> Tensor:
    """Attention in which row b takes its map from row source[b] of the queries and keys, and keeps its own values.

    q: (G, N, H, D), k: (G, M, H, D), v: (B, M, H, D), any strides; source: B ints in [0, G), or None for G = B and
    plain attention. Returns (B, N, H, D). `implementation` is "auto" or a name of IMPLEMENTATIONS; a name never falls
    back. Raises ValueError where the shapes, the source or the name do not fit.
    """
    _check(q, k, v, source)
    if implementation == "auto":
        implementation = "torch"
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"attention must be auto or one of {', '.join(IMPLEMENTATIONS)}, got {implementation!r}")
    return IMPLEMENTATIONS[implementation](q, k, v, source)


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
