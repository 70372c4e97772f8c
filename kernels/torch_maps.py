"""Attention maps in PyTorch, a head and a chunk of queries at a time: the whole maps of all heads never exist."""

import torch
from torch import Tensor

SCORES = 1 << 22  # in memory at once


def attention_maps(q: Tensor, k: Tensor, queries: Tensor, keys: Tensor, mean: bool) -> Tensor:
    """See `minibaret.kernels.attention_maps`; the heads' dimension is 1 if `mean`."""
    rows, _, heads, features = q.shape
    dtype = torch.promote_types(q.dtype, torch.float32)
    out = q.new_zeros((rows, 1 if mean else heads, len(queries), len(keys)), dtype=dtype)
    step = max(1, SCORES // (rows * k.shape[1]))
    for head in range(heads):
        k_t = k[:, :, head].to(dtype).mT  # [G, D, M]
        for start in range(0, len(queries), step):
            chunk = q[:, queries[start : start + step], head].to(dtype)
            maps = (chunk @ k_t * features**-0.5).softmax(-1)[..., keys]
            out[:, 0 if mean else head, start : start + step] += maps / heads if mean else maps
    return out
