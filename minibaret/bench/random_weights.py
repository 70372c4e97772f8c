"""Random weights of any size: a model in memory, and files of it as others write them."""

import dataclasses
import itertools
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..models.configs import MINIATURE, SD15, ModelConfig, TextEncoderConfig, UNetConfig, VAEConfig
from ..models.text_encoder import TextEncoder
from ..models.tokenizer import WORD_END, ClipTokenizer, save_merges
from ..models.unet import UNet
from ..models.vae import VAE
from ..weights.loading import Model, read_network
from ..weights.names import LDM, LDM_PREFIXES, PIECES, translate

NETWORKS = {"unet": UNet, "vae": VAE, "text_encoder": TextEncoder}
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


def random_model(
    config: ModelConfig, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0
) -> Model:
    """Networks of random numbers, frozen, and a tokenizer of made-up merges."""
    generator, networks = torch.Generator(device).manual_seed(seed), {}
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
    """A minibaret folder, unless it is there; 4.3 GB at Stable Diffusion 1.5's size."""

    def write() -> None:
        model = random_model(config)
        for part in NETWORKS:
            save_file(_tensors(model, part), folder / f"{part}.safetensors")
        (folder / "config.json").write_text(json.dumps(dataclasses.asdict(config)))
        save_merges(made_up_merges(config), folder / "merges.txt")

    return _once(folder, write)


def write_layouts(files: Path, config: ModelConfig) -> Path:
    """A Hugging Face folder with an fp16 variant, as diffusers writes it, and a single file in LDM naming, unless they
    are there; 11 GB at Stable Diffusion 1.5's size."""

    def write() -> None:
        from .diffusers_models import pipeline  # diffusers, which may not be installed

        model = random_model(config)
        merges = files / "merges.txt"
        save_merges(made_up_merges(config), merges)
        for dtype, variant in ((torch.float16, "fp16"), (torch.float32, None)):  # the last one's is in the config
            pipeline(model, merges).to(dtype).save_pretrained(files / "folder", variant=variant)
        single = {}
        for part in NETWORKS:
            tensors, names = _tensors(model, part), ldm_names(model, part)
            single |= {LDM_PREFIXES[part] + names[name]: value for name, value in tensors.items()}
        save_file(single, files / "single.safetensors")

    return _once(files, write)


def ldm_names(model: Model, part: str) -> dict[str, str]:
    """What LDM's naming calls a network's tensors: the templates of weights/names.py, backwards. Of all names that
    they fit, those that they bring to a tensor that there is."""
    wanted = set(getattr(model, part).state_dict())
    if part == "text_encoder":
        return {name: f"text_model.{name}" for name in wanted}
    inner = {name.partition(".attentions.")[2].partition(".")[2] for name in wanted}
    words = {piece: values if isinstance(values, dict) else values.split("|") for piece, values in PIECES.items()}
    words["transformer"] = {name.rpartition(".")[0] for name in inner if name}
    words["n"] = words["i"] = words["j"] = [str(number) for number in range(3 * len(model.config.unet.channels))]
    found = {}
    for left, _ in LDM[part]:
        pieces = list(dict.fromkeys(re.findall(r"\{(\w+)\}", left)))
        for chosen in itertools.product(*(words[piece] for piece in pieces)):
            name = left.format_map(dict(zip(pieces, chosen)))
            ours = translate(name, LDM[part], model.config)
            if ours in wanted:
                found[ours] = name
    for name in [name for name in found if ".upsamplers." in name and part == "unet"]:
        level = len(model.config.unet.channels) - 1 - int(name.split(".")[1])
        place = 2 if model.config.unet.attention[level] else 1  # after the ResBlock and the transformer, if any
        found[name] = re.sub(r"\.[12]\.conv", f".{place}.conv", found[name])
    return found


def _tensors(model: Model, part: str) -> dict[str, Tensor]:
    return {name: value.contiguous() for name, value in getattr(model, part).state_dict().items()}


def _once(folder: Path, write: Callable[[], None]) -> Path:
    """Writes what was not written to its end before."""
    if not (folder / DONE).exists():
        print(f"writing random weights to {folder} …", file=sys.stderr)
        folder.mkdir(parents=True, exist_ok=True)
        write()
        (folder / DONE).touch()
    return folder
