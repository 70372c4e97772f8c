"""The project's own layout: one folder with config.json, merges.txt and a safetensors file for each network."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from ..errors import InputError
from ..models.configs import ImageEncoderConfig, ModelConfig, TextEncoderConfig, UNetConfig, VAEConfig
from ..models.image_encoder import ImageTower
from ..models.tokenizer import ClipTokenizer
from .strict import load_part
from .vocabulary import read_tokenizer_at

MINIATURE_FOLDER = Path(__file__).parent / "miniature"
CONFIG, MERGES = "config.json", "merges.txt"
PARTS = {
    "unet": UNetConfig,
    "text_encoder": TextEncoderConfig,
    "vae": VAEConfig,
    "image_encoder": ImageEncoderConfig,
}


def load_image_encoder(folder: Path = MINIATURE_FOLDER) -> ImageTower:
    """The image half of the folder's CLIP pair, with the text's projection."""
    config = read_config(folder)
    if config.image_encoder is None:
        raise InputError(f"{folder} has no image encoder")
    return load_part(
        lambda: ImageTower(config.text_encoder, config.image_encoder), folder / "image_encoder.safetensors"
    )


def read_tokenizer(folder: Path) -> ClipTokenizer:
    """The tokenizer of a folder. Raises InputError where it is missing or does not fit the text encoder."""
    return read_tokenizer_at(folder / MERGES, read_config(folder).text_encoder.vocabulary)


def read_config(folder: Path) -> ModelConfig:
    """config.json as dataclasses. Raises InputError where the folder or the file is not what it should be."""
    if not folder.is_dir():
        raise InputError(f"a folder with {CONFIG} and safetensors files was wanted as weights, {folder} is none")
    path = folder / CONFIG
    if not path.is_file():
        raise InputError(f"{folder} holds no {CONFIG}, so it is no folder of minibaret weights")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        for name, part in PARTS.items():
            values[name] = part(**_tuples(values[name])) if values.get(name) else None
        values["defaults"] = _tuples(values.get("defaults", {}))
        return ModelConfig(**values)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path} is not a minibaret config: {error}") from None


def save_config(config: ModelConfig, folder: Path) -> None:
    _replace(folder / CONFIG, lambda path: path.write_text(json.dumps(dataclasses.asdict(config), indent=2) + "\n"))


def save_part(module: nn.Module, path: Path, dtype: torch.dtype = torch.float16) -> None:
    """Writes a network's tensors, all in `dtype`, whole or not at all."""
    state = {name: value.to(dtype).contiguous() for name, value in module.state_dict().items()}
    _replace(path, lambda unfinished: save_file(state, unfinished))


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    unfinished = path.with_name(path.name + ".part")
    write(unfinished)
    unfinished.chmod(0o644)
    unfinished.replace(path)


def _tuples(values: dict) -> dict:
    """JSON has lists where the dataclasses have tuples."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
