"""Random weights of any size: a model in memory, and a folder of it."""

import itertools
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..models.configs import SD15, ModelConfig, TextEncoderConfig, UNetConfig, VAEConfig
from ..models.tokenizer import WORD_END, ClipTokenizer
from ..weights.folder import MERGES, save_config, save_merges
from ..weights.loading import NETWORKS, Model, read_network
from ..weights.miniature.config import MINIATURE

TINY = ModelConfig(  # every block of Stable Diffusion 1.5, narrow
    name="tiny",
    image_size=64,
    unet=UNetConfig(channels=(16, 32, 64, 64), heads=2, context_width=24, groups=8),
    text_encoder=TextEncoderConfig(vocabulary=600, width=24, layers=2, heads=2, mlp_width=48),
    vae=VAEConfig(channels=(8, 16, 32, 32), groups=4),
)
RANDOM = {"sd15-random": SD15, "miniature-random": MINIATURE, "tiny-random": TINY}
DONE = "written"  # an empty file, the last of all


@dataclass
class RandomTensor:
    """Read like a tensor of a file. Of a size that keeps activations near 1."""

    name: str
    shape: torch.Size
    generator: torch.Generator

    def read(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        values = torch.empty(self.shape, device=device, dtype=dtype).normal_(generator=self.generator)
        if len(self.shape) == 1:  # biases, and the scales of the normalisations
            return values.mul_(0.1).add_(1.0 if "norm" in self.name and self.name.endswith("weight") else 0.0)
        return values.div_(self.shape[1:].numel() ** 0.5)


def random_model(config: ModelConfig, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Model:
    """Networks of random numbers, frozen, and a tokenizer of made-up merges."""
    generator, networks = torch.Generator(device).manual_seed(0), {}
    for part, kind in NETWORKS.items():
        with torch.device("meta"):
            networks[part] = kind(getattr(config, part))
        values = networks[part].state_dict().items()
        read_network(networks[part], {n: RandomTensor(n, x.shape, generator) for n, x in values}, device, dtype)
    return Model(config=config, tokenizer=ClipTokenizer(made_up_merges(config)), **networks)


def made_up_merges(config: ModelConfig) -> list[tuple[str, str]]:
    """As many as the text encoder's vocabulary wants: any two bytes, the second of which ends a word."""
    symbols = list(ClipTokenizer([]).vocabulary)[:256]
    pairs = ((a, b + WORD_END) for b in symbols for a in symbols)
    return list(itertools.islice(pairs, config.text_encoder.vocabulary - ClipTokenizer([]).size))


def write_folder(folder: Path, config: ModelConfig) -> Path:
    """A minibaret folder, unless it was written to its end before; 4.3 GB at Stable Diffusion 1.5's size."""
    if not (folder / DONE).exists():
        print(f"writing random weights to {folder} …", file=sys.stderr)
        folder.mkdir(parents=True, exist_ok=True)
        model = random_model(config)
        for part in NETWORKS:
            tensors = {name: value.contiguous() for name, value in getattr(model, part).state_dict().items()}
            save_file(tensors, folder / f"{part}.safetensors")
        save_config(config, folder)
        save_merges(made_up_merges(config), folder / MERGES)
        (folder / DONE).touch()
    return folder
