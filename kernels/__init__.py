"""Attention by row numbers. Imports nothing of minibaret but itself.

    attention(q, k, v, takes)    out[b] = Σ softmax(q[i] k[j]ᵀ / √D) v[l]  over the triples (i, j, l) of takes[b]

Replacing a row's queries and keys replaces its attention map, so the map never has to exist in memory; what takes the
same map shares one QKᵀ and one softmax, which makes attention with injection cheaper than without. README.md has more.
"""

from collections.abc import Sequence

from torch import Tensor

from . import reference, torch_maps, torch_sdpa, triton_attention
from .triton_attention import triton_problem

__all__ = ["IMPLEMENTATIONS", "WORTH_SHARING", "attention", "attention_maps", "triton_problem"]

Takes = Sequence[Sequence[tuple[int, int, int]]]  # by output row: triples (row of q, row of k, row of v), summed

IMPLEMENTATIONS = {
    "reference": reference.attention,  # the definition: slow, any dtype
    "torch": torch_sdpa.attention,  # everywhere, with gradients
    "triton": triton_attention.attention,  # one fused kernel, on GPUs in half precision, without gradients
}
WORTH_SHARING = 1024  # queries from which `auto` prefers the Triton kernel; a prediction, no GPU has measured it


def attention(q: Tensor, k: Tensor, v: Tensor, takes: Takes | None = None, implementation: str = "auto") -> Tensor:
    """Row b is the sum, over the triples (i, j, l) of takes[b], of softmax(q[i] k[j]ᵀ / √D) v[l].

    q: (Gq, N, H, D), k: (Gk, M, H, D), v: (Gv, M, H, D), any strides with the features adjacent. takes: for each output
    row at least one triple; None: plain attention, Gq = Gk = Gv. Returns (B, N, H, D). `implementation` is "auto" (the
    Triton kernel where rows share a map and it is likely to pay, else PyTorch) or a name of IMPLEMENTATIONS; a name
    never falls back. Raises ValueError where the shapes, the rows, the name or the named implementation do not fit.
    """
    takes = _checked(q, k, v, takes)
    if implementation == "auto":
        implementation = _automatic(q, k, v, takes)
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"attention must be auto or one of {', '.join(IMPLEMENTATIONS)}, got {implementation!r}")
    return IMPLEMENTATIONS[implementation](q, k, v, takes)


def attention_maps(q: Tensor, k: Tensor) -> Tensor:
    """Softmax(q kᵀ / √D), the mean of the heads, to look at; `attention` itself never has it in memory.

    q: (G, N, H, D), k: (G, M, H, D), row by row. Returns (G, N, M) in float32 or wider. Raises ValueError where the
    shapes do not fit.
    """
    _check_shapes(q, k, k)
    if len(q) != len(k):
        raise ValueError(f"q and k must have the same rows, got {len(q)} and {len(k)}")
    return torch_maps.attention_maps(q, k)


def _automatic(q: Tensor, k: Tensor, v: Tensor, takes: Takes) -> str:
    maps = {take[:2] for terms in takes for take in terms}
    shares = sum(map(len, takes)) > len(maps)
    if not (q.is_cuda and shares and q.shape[1] >= WORTH_SHARING):
        return "torch"
    return "torch" if triton_attention.why_not(q, k, v, takes) else "triton"


def _check_shapes(q: Tensor, k: Tensor, v: Tensor) -> None:
    shapes = f"got {tuple(q.shape)}, {tuple(k.shape)} and {tuple(v.shape)}"
    if q.dim() != 4 or k.dim() != 4 or v.dim() != 4:
        raise ValueError(f"q, k and v must have shape [rows, tokens, heads, features], {shapes}")
    if not all((*q.shape, *k.shape, *v.shape)):
        raise ValueError(f"q, k and v must have at least one row, token, head and feature, {shapes}")
    if q.shape[2:] != k.shape[2:] or k.shape[1:] != v.shape[1:]:
        raise ValueError(f"q, k and v must have shape [Gq, N, H, D], [Gk, M, H, D] and [Gv, M, H, D], {shapes}")


def _checked(q: Tensor, k: Tensor, v: Tensor, takes: Takes | None) -> Takes:
    """The takes as tuples of tuples of tuples, each row there."""
    _check_shapes(q, k, v)
    rows = (len(q), len(k), len(v))
    if takes is None:
        if len(set(rows)) > 1:
            raise ValueError(f"without takes q, k and v must have the same rows, got {', '.join(map(str, rows))}")
        return tuple(((row, row, row),) for row in range(len(q)))
    try:
        takes = tuple(tuple(tuple(take) for take in terms) for terms in takes)
    except TypeError:
        raise ValueError(f"takes must hold a list of (q row, k row, v row) triples for each row, got {takes}") from None
    if not takes or not all(takes):
        raise ValueError(f"takes must hold at least one (q row, k row, v row) triple for each row, got {takes}")
    for take in (take for terms in takes for take in terms):
        if len(take) != 3 or not all(isinstance(row, int) and 0 <= row < count for row, count in zip(take, rows)):
            raise ValueError(
                f"a take must name a row of q in [0, {rows[0]}), of k in [0, {rows[1]}) and of v in [0, {rows[2]}), "
                f"got {take}"
            )
    return takes
