"""The project's own layout: one folder with config.json, merges.txt and a safetensors file for each network."""

import dataclasses
import json
from pathlib import Path

from safetensors.torch import save as to_bytes
from torch import nn

from ..errors import InputError
from ..files import write_text_whole, write_whole
from ..models.configs import ImageEncoderConfig, ModelConfig, TextEncoderConfig, UNetConfig, VAEConfig
from ..models.image_encoder import ImageTower
from ..models.tokenizer import ClipTokenizer
from .strict import load_part
from .vocabulary import read_tokenizer_at

MINIATURE_FOLDER = Path(__file__).parent / "miniature"
CONFIG, MERGES = "config.json", "merges.txt"
PART_CONFIGS = {
    "unet": UNetConfig,
    "text_encoder": TextEncoderConfig,
    "vae": VAEConfig,
    "image_encoder": ImageEncoderConfig,
}
REQUIRED = ("unet", "text_encoder", "vae")


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
        raise InputError(f"weights must be a folder with {CONFIG} and safetensors files, but {folder} is no folder")
    path = folder / CONFIG
    if not path.is_file():
        raise InputError(f"{folder} holds no {CONFIG}, so it is no folder of minibaret weights")
    try:
        return _parse_config(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, InputError) as error:
        raise InputError(f"{path} is not a minibaret config: {error}") from None


def _parse_config(values: object) -> ModelConfig:
    """Raises ValueError, TypeError or InputError, saying what was wanted."""
    values = _object(values, "the file")
    for name, part in PART_CONFIGS.items():
        if name in REQUIRED or values.get(name) is not None:
            values[name] = _sizes(part, _object(values.get(name), name), name)
    values["defaults"] = _object(values.get("defaults", {}), "defaults")
    config = ModelConfig(**values)
    if not isinstance(config.name, str) or not _alike(config.image_size, 1):
        raise ValueError(
            f"name must be a text and image_size a whole number, got {config.name!r}, {config.image_size!r}"
        )
    return config


def _object(values: object, name: str) -> dict:
    if not isinstance(values, dict):
        raise ValueError(f"{name} must be an object, {{…}}, got {json.dumps(values)[:40]}")
    return tuples(values)


def _sizes(part: type, values: dict, name: str) -> object:
    for field in dataclasses.fields(part):
        if field.name in values and not _alike(values[field.name], field.default):
            kind = f"a value like {json.dumps(field.default)}"
            raise ValueError(f"{field.name} of {name} must be {kind}, got {json.dumps(values[field.name])[:40]}")
    return part(**values)


def _alike(value: object, default: object) -> bool:
    """Whether a value of a config could stand for the default: the same type, and above 0."""
    if isinstance(default, tuple):
        return isinstance(value, tuple) and len(value) > 0 and all(_alike(part, default[0]) for part in value)
    if isinstance(default, bool):
        return isinstance(value, bool)
    kinds = int | float if isinstance(default, float) else int
    return isinstance(value, kinds) and not isinstance(value, bool) and value > 0


def save_config(config: ModelConfig, folder: Path) -> None:
    write_text_whole(folder / CONFIG, json.dumps(dataclasses.asdict(config), indent=2) + "\n")


def save_part(module: nn.Module, path: Path) -> None:
    """Writes a network's tensors, all in float16, whole or not at all."""
    state = {name: value.half().contiguous() for name, value in module.state_dict().items()}
    write_whole(path, to_bytes(state))


def tuples(values: dict) -> dict:
    """JSON has lists where the dataclasses have tuples."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
