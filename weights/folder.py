"""The project's own layout: one folder with config.json, merges.txt and a safetensors file for each network."""

import dataclasses
import json
from dataclasses import replace
from pathlib import Path

from safetensors.torch import save as to_bytes
from torch import nn

from ..errors import InputError
from ..files import brief, read_json, write_whole
from ..models.configs import ImageEncoderConfig, ModelConfig, TextEncoderConfig, UNetConfig, VAEConfig
from ..models.image_encoder import ImageTower
from ..models.tokenizer import LENGTH
from .files import StoredTensor
from .strict import load_part

MINIATURE_FOLDER = Path(__file__).parent / "miniature"
CONFIG, MERGES = "config.json", "merges.txt"
IMAGE_ENCODER = "image_encoder.safetensors"  # of a CLIP pair that weights may bring
CHANNELS_LAST = ".channels_last"
PART_CONFIGS = {
    "unet": UNetConfig,
    "text_encoder": TextEncoderConfig,
    "vae": VAEConfig,
    "image_encoder": ImageEncoderConfig,
}
REQUIRED = ("unet", "text_encoder", "vae")
# Sizes far beyond any model of this kind, which networks can still be made of in seconds.
MOST = {"layers": 64, "layers_per_block": 16, "positions": 4096, "heads": 512}
MOST_OF_OTHERS = 1_000_000
MOST_LEVELS = 8


def load_image_encoder(folder: Path = MINIATURE_FOLDER) -> ImageTower:
    """The image half of the folder's CLIP pair, with the text's projection."""
    config = read_config(folder)
    if config.image_encoder is None:
        raise InputError(f"{folder} has no image encoder")
    return load_part(lambda: ImageTower(config.text_encoder, config.image_encoder), folder / IMAGE_ENCODER)


def read_config(folder: Path) -> ModelConfig:
    """config.json as dataclasses. Raises InputError where the folder or the file is not what it should be."""
    if not folder.is_dir():
        raise InputError(f"weights must be a folder with {CONFIG} and safetensors files, but {folder} is no folder")
    path = folder / CONFIG
    if not path.is_file() and not path.is_symlink():
        raise InputError(f"{folder} holds no {CONFIG}, so it is no folder of minibaret weights")
    values = read_json(path)
    try:
        return _parse_config(values)
    except (ValueError, TypeError) as error:
        raise InputError(f"{path} is not a minibaret config: {error}") from None


def _parse_config(values: object) -> ModelConfig:
    """Raises ValueError (InputError is one) or TypeError, saying what was wanted."""
    values = _object(values, "the file")
    for name, part in PART_CONFIGS.items():
        if name in REQUIRED or values.get(name) is not None:
            values[name] = _sizes(part, _object(values.get(name), name), name)
    values["defaults"] = _object(values.get("defaults", {}), "defaults")
    values["origin"] = _object(values.get("origin", {}), "origin")
    config = ModelConfig(**values)
    if not (isinstance(config.name, str) and config.name.isprintable()) or not _alike(config.image_size, 1):
        said = f"got {brief(config.name)}, {brief(config.image_size)}"
        raise ValueError(f"name must be a text and image_size a whole number, {said}")
    if not isinstance(config.words, tuple) or not all(isinstance(word, str) for word in config.words):
        raise ValueError(f"words must be a list of words, got {brief(config.words)}")
    if not all(isinstance(word, str) and word.isprintable() for pair in config.origin.items() for word in pair):
        raise ValueError(f"origin must have a text for each file, got {brief(config.origin)}")
    _check_agreement(config)
    return config


def _check_agreement(config: ModelConfig) -> None:
    """Raises ValueError where the sizes of one network are not those that another needs."""
    unet, vae, text = config.unet, config.vae, config.text_encoder
    for fits, said in (
        (text.positions >= LENGTH, f"positions of text_encoder must be at least {LENGTH}, got {text.positions}"),
        (text.width == unet.context_width, f"unet reads text of width {unet.context_width}, but it has {text.width}"),
        (vae.latent_channels == unet.latent_channels, "vae and unet must have as many latent_channels as each other"),
        (len(unet.attention) == len(unet.channels), "unet must have as many values of attention as of channels"),
        (unet.channels[0] % 2 == 0, f"the first of unet's channels must be even, got {unet.channels[0]}"),
    ):
        if not fits:
            raise ValueError(said)


def _object(values: object, name: str) -> dict:
    if not isinstance(values, dict):
        raise ValueError(f"{name} must be an object, {{…}}, got {brief(values)}")
    return tuples(values)


def _sizes(part: type, values: dict, name: str) -> object:
    for field in dataclasses.fields(part):
        most = MOST.get(field.name, MOST_OF_OTHERS)
        if field.name in values and not _alike(values[field.name], field.default, most):
            kind = f"a value like {json.dumps(field.default)}, at most {most:,}"
            raise ValueError(f"{field.name} of {name} must be {kind}, got {brief(values[field.name])}")
    return part(**values)


def _alike(value: object, default: object, most: int = MOST_OF_OTHERS) -> bool:
    """Whether a value of a config could stand for the default: the same type, above 0 and at most `most`."""
    if isinstance(default, tuple):
        fits = isinstance(value, tuple) and 0 < len(value) <= MOST_LEVELS
        return fits and all(_alike(part, default[0], most) for part in value)
    if isinstance(default, bool):
        return isinstance(value, bool)
    kinds = int | float if isinstance(default, float) else int
    return isinstance(value, kinds) and not isinstance(value, bool) and 0 < value <= most


def in_shape(tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The tensors of a folder's file under the networks' own names. A name that ends in CHANNELS_LAST is that of a
    convolution's weight in this order: what it is computed in in half precision, so that it is used where it lies."""
    found = {}
    for name, tensor in tensors.items():
        if name.endswith(CHANNELS_LAST) and len(tensor.shape) == 4:
            out, height, width, into = tensor.shape
            tensor = replace(tensor, shape=(out, into, height, width), channels_last=True)
            name = name.removesuffix(CHANNELS_LAST)
        found[name] = tensor
    return found


def save_config(config: ModelConfig, folder: Path) -> None:
    write_whole(folder / CONFIG, (json.dumps(dataclasses.asdict(config), indent=2) + "\n").encode())


def save_merges(merges: list[tuple[str, str]], path: Path) -> None:
    """Writes a merges.txt."""
    write_whole(path, ("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges)).encode())


def save_part(module: nn.Module, path: Path) -> None:
    """Writes a network's tensors, all in float16, whole or not at all."""
    state = {name: value.half().contiguous() for name, value in module.state_dict().items()}
    write_whole(path, to_bytes(state))


def tuples(values: dict) -> dict:
    """JSON has lists where the dataclasses have tuples."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
