"""Weights in 8 bits: whole numbers from -127 to 127, and for each output channel what they are multiplied by.

In a minibaret folder "conv.weight" is then int8, and beside it "conv.weight.scale" float32, one number for each output
channel. Only weights are so: activations stay in the dtype that the network is computed in.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError
from .files import StoredTensor, shown

SCALE = ".scale"
CLIPS = (1.0, 0.9, 0.8, 0.7)  # what may become 127, as a share of a channel's largest weight


@dataclass(frozen=True)
class Quantised(StoredTensor):
    """A tensor of int8 in a file, with its scale; read as what they stand for."""

    scale: StoredTensor | None = None
    is_weight = True

    def read(self, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Tensor:
        """The tensor on a device, in `dtype` (float32 if None)."""
        place = torch.empty(self.shape, device=device, dtype=dtype or torch.float32)
        self.read_into(place)
        return place

    def read_into(self, place: Tensor) -> None:
        super().read_into(place)
        place.mul_(by_channel(self.scale.read(place.device), place))


def with_scales(tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Puts tensors of int8 and their scales together. Raises InputError for one without the other."""
    found = {}
    for name, tensor in tensors.items():
        scale, whole = tensors.get(name + SCALE), tensors.get(name.removesuffix(SCALE))
        if tensor.dtype == torch.int8:
            if scale is None or scale.dtype != torch.float32 or scale.shape != tensor.shape[:1]:
                raise InputError(f"{tensor.path} is damaged: {shown(name)} is int8, but has no scale that fits")
            found[name] = Quantised(**vars(tensor), scale=scale)
        elif not (name.endswith(SCALE) and whole is not None and whole.dtype == torch.int8):
            found[name] = tensor
    return found


def best_scale(weight: Tensor) -> tuple[Tensor, float]:
    """Of a weight (O, …), float32: for each channel the scale (O,), of those tried, whose squared error is the least;
    and the error of all, as a share of the weight's own square."""
    largest = weight.flatten(1).abs().amax(1).clamp_min(1e-30)
    scale, least = largest / 127, torch.full_like(largest, math.inf)
    for share in CLIPS:
        tried = largest * share / 127
        error = (dequantised(to_int8(weight, tried), tried) - weight).square_().flatten(1).sum(1)
        scale, least = torch.where(error < least, tried, scale), torch.minimum(error, least)
    return scale, (least.sum() / weight.square().sum().clamp_min(1e-30)).item()


def to_int8(weight: Tensor, scale: Tensor) -> Tensor:
    return (weight / by_channel(scale, weight)).round_().clamp_(-127, 127).to(torch.int8)


def dequantised(values: Tensor, scale: Tensor) -> Tensor:
    """What the int8 values stand for, float32."""
    return values * by_channel(scale, values)


def by_channel(scale: Tensor, weight: Tensor) -> Tensor:
    return scale.view(-1, *[1] * (weight.dim() - 1))
