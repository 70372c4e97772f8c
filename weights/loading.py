"""Weights of any layout to a `Model`."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ..models.configs import SD15, ModelConfig
from ..models.text_encoder import TextEncoder
from ..models.tokenizer import ClipTokenizer
from ..models.unet import UNet
from ..models.vae import VAE
from .detect import find_checkpoint
from .strict import fill
from .vocabulary import find_tokenizer, read_tokenizer_at


@dataclass(frozen=True)
class Model:
    config: ModelConfig
    tokenizer: ClipTokenizer
    text_encoder: TextEncoder
    vae: VAE
    unet: UNet


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
    config = checkpoint.config
    clip = read_tokenizer_at(find_tokenizer(path, tokenizer), config.text_encoder.vocabulary)
    networks = {
        part: fill(lambda part=part: make(part, config), tensors, f"{path} ({part})", device, dtype)
        for part, tensors in checkpoint.parts.items()
    }
    return Model(config=config, tokenizer=clip, **networks)


def make(part: str, config: ModelConfig) -> nn.Module:
    """One of the networks "unet", "vae" and "text_encoder"."""
    return {"unet": UNet, "vae": VAE, "text_encoder": TextEncoder}[part](getattr(config, part))
