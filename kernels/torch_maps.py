"""Attention maps in PyTorch, a head and a chunk of queries at a time: the whole maps of all heads never exist."""

import torch
from torch import Tensor

SCORES = 1 << 22  # in memory at once


def attention_maps(q: Tensor, k: Tensor) -> Tensor:
    """See `minibaret.kernels.attention_maps`."""
    rows, tokens, heads, features = q.shape
    dtype = torch.promote_types(q.dtype, torch.float32)
    out = q.new_zeros((rows, tokens, k.shape[1]), dtype=dtype)
    step = max(1, SCORES // (rows * k.shape[1]))
    for head in range(heads):
        k_t = k[:, :, head].to(dtype).mT  # [G, D, M]
        for start in range(0, tokens, step):
            chunk = q[:, start : start + step, head].to(dtype)
            out[:, start : start + step] += (chunk @ k_t * features**-0.5).softmax(-1) / heads
    return out
