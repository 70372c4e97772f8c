"""A UNet whose weights are in memory a layer at a time.

Weights that are stored as they are computed with are used where they lie, in the mapped file; the others are converted
into one buffer, which the layers use in turn. A layer's weights are there from when it is asked for until another is:
in a forward, and in a backward whose gradient checkpointing runs each layer anew before its gradient.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..memory import trim
from ..models.layers import Downsample, ResnetBlock, Upsample
from ..models.unet import SpatialTransformer, UNet
from .files import StoredTensor
from .loading import fastest_format

LAYERS = (ResnetBlock, SpatialTransformer, Downsample, Upsample)
ALIGNED = 64  # numbers from one place of the buffer to the next are a multiple of it


@dataclass
class Weights:
    """Of one layer."""

    mapped: list[StoredTensor] = field(default_factory=list)  # used where they lie
    converted: list[tuple[Tensor, StoredTensor]] = field(default_factory=list)  # each into its place in the buffer


class Stream:
    """Called with the layer that runs next: hands the weights of the last one back, and makes this one's ready."""

    def __init__(self) -> None:
        self.weights: dict[nn.Module, Weights] = {}
        self.last: nn.Module | None = None

    def __call__(self, layer: nn.Module) -> None:
        if layer is self.last:
            return
        for stored in self.weights[self.last].mapped if self.last else ():
            stored.release()
        trim()
        for place, stored in self.weights[layer].converted:
            stored.read_into(place)
        self.last = layer


def stream(unet: UNet, tensors: Mapping[str, StoredTensor], device: torch.device, dtype: torch.dtype) -> None:
    """Gives a prepared UNet, without values, its weights: those of a layer when it runs, the few others for good."""
    unet.eval().to(memory_format=fastest_format(unet, device, dtype))
    wanted, values, found = unet.state_dict(), {}, Stream()
    buffer = torch.empty(0, device=device, dtype=dtype)
    for prefix, layer in unet.named_modules():
        if not isinstance(layer, LAYERS):
            continue
        found.weights[layer], place = Weights(), 0
        for name, _ in layer.named_parameters(prefix):
            shape, strides, stored = wanted[name].shape, wanted[name].stride(), tensors[name]
            if device.type == "cpu" and stored.dtype == dtype and stored.aligned and stored.mapped.stride() == strides:
                values[name] = stored.mapped
                found.weights[layer].mapped.append(stored)
            else:
                end = place + stored.numel
                if buffer.numel() < end:
                    buffer.resize_(end)  # places that were given before stay in the same storage
                values[name] = buffer.as_strided(shape, strides, place)
                found.weights[layer].converted.append((values[name], stored))
                place = -(-end // ALIGNED) * ALIGNED
    for name in wanted.keys() - values.keys():
        values[name] = torch.empty_strided(wanted[name].shape, wanted[name].stride(), device=device, dtype=dtype)
        tensors[name].read_into(values[name])
    unet.load_state_dict(values, assign=True)
    unet.requires_grad_(False)
    for block in unet.blocks:
        block.ready = found
