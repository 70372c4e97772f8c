"""Gradient checkpointing (Chen et al. 2016, "Training deep nets with sublinear memory cost"): of a layer only what goes
in is kept for the gradient, and the layer runs once more when that is wanted.

PyTorch's own (torch.utils.checkpoint) imports its compiler first, which takes 120 MB and two seconds.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def checkpoint(layer: Callable[..., Tensor], *arguments) -> Tensor:
    """layer(*arguments), one tensor. The gradient reaches the tensors among the arguments and, where one of these needs
    it, the layer's weights."""
    return _Checkpoint.apply(layer, *arguments)


class _Checkpoint(torch.autograd.Function):
    @staticmethod
    def forward(ctx, layer: Callable[..., Tensor], *arguments) -> Tensor:
        ctx.layer, ctx.others = layer, [None if isinstance(value, Tensor) else value for value in arguments]
        ctx.save_for_backward(*(value if isinstance(value, Tensor) else None for value in arguments))
        return layer(*arguments)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple:
        arguments = [
            other if saved is None else saved.detach().requires_grad_(needed)
            for saved, other, needed in zip(ctx.saved_tensors, ctx.others, ctx.needs_input_grad[1:])
        ]
        with torch.enable_grad():
            out = ctx.layer(*arguments)
        torch.autograd.backward(out, gradient)
        return None, *(value.grad if isinstance(value, Tensor) else None for value in arguments)
