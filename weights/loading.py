"""Weights of any layout to a `Model`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import nn

from ..models.configs import SD15, ModelConfig
from ..models.text_encoder import TextEncoder
from ..models.tokenizer import ClipTokenizer
from ..models.unet import UNet
from ..models.vae import VAE
from .detect import Checkpoint, find_checkpoint
from .files import StoredTensor
from .strict import fill, prepare
from .vocabulary import find_tokenizer, read_tokenizer_at

NETWORKS = {"unet": UNet, "vae": VAE, "text_encoder": TextEncoder}
NARROW = 128  # channels of a UNet below which channels_last convolutions are the faster ones on a CPU


@dataclass(frozen=True)
class Model:
    config: ModelConfig
    tokenizer: ClipTokenizer
    text_encoder: TextEncoder
    vae: VAE
    unet: UNet
    digests: dict = field(default_factory=dict, init=False, compare=False)  # of the weights, where they were asked for

    @property
    def device(self) -> torch.device:
        return self.unet.conv_in.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.conv_in.weight.dtype

    def parameter_counts(self) -> dict[str, int]:
        """How many parameters each network has."""
        return {part: sum(weight.numel() for weight in getattr(self, part).parameters()) for part in NETWORKS}


def load_model(
    path: Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    variant: str | None = None,
    tokenizer: Path | None = None,
    sizes: ModelConfig = SD15,
) -> Model:
    """The networks and the tokenizer at a path, frozen and ready to run.

    path: a file or folder in one of the layouts of detect.py; variant: which of a Hugging Face folder's files, such as
    "fp16"; tokenizer: where the tokenizer is if not with the weights; sizes: of networks whose layout does not state
    them. On the CPU, weights that are stored in `dtype` stay mapped to their file: nobody may write to it meanwhile.
    Raises InputError where something is missing, broken or does not fit.
    """
    checkpoint = find_checkpoint(path, variant, sizes)
    networks = {part: prepare_network(checkpoint, part) for part in checkpoint.parts}
    clip = read_tokenizer_at(find_tokenizer(path, tokenizer), checkpoint.config.text_encoder.vocabulary)
    for part, network in networks.items():
        read_network(network, checkpoint.parts[part], device, dtype)
    return Model(config=checkpoint.config, tokenizer=clip, **networks)


def read_network(
    network: nn.Module, tensors: Mapping[str, StoredTensor], device: torch.device | str, dtype: torch.dtype
) -> None:
    """Gives a prepared network its tensors, in the memory format that its convolutions are fastest in."""
    fill(network, tensors, device, dtype)
    network.to(memory_format=fastest_format(network, torch.device(device), dtype))


def fastest_format(network: nn.Module, device: torch.device, dtype: torch.dtype) -> torch.memory_format:
    """Of the convolutions' weights there."""
    if isinstance(network, UNet):
        narrow = device.type == "cpu" and network.config.channels[0] < NARROW
        half = device.type in ("cpu", "cuda") and dtype != torch.float32  # as matrix units convolve
        if narrow or half:
            return torch.channels_last
    return torch.preserve_format


def prepare_network(checkpoint: Checkpoint, part: str) -> nn.Module:
    """The network unet, vae or text_encoder, still without values. Raises InputError where its tensors do not fit."""
    make, source = partial(NETWORKS[part], getattr(checkpoint.config, part)), f"{checkpoint.path} ({part})"
    return prepare(make, checkpoint.parts[part], source)
