"""The project's own layout: one folder with config.json, merges.txt and a safetensors file for each network."""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from ..errors import InputError
from ..models.configs import ImageEncoderConfig, ModelConfig, TextEncoderConfig, UNetConfig, VAEConfig
from ..models.image_encoder import ImageTower
from ..models.text_encoder import TextEncoder
from ..models.tokenizer import ClipTokenizer
from ..models.unet import UNet
from ..models.vae import VAE

MINIATURE_FOLDER = Path(__file__).parent / "miniature"
CONFIG, MERGES = "config.json", "merges.txt"
PARTS = {
    "unet": UNetConfig,
    "text_encoder": TextEncoderConfig,
    "vae": VAEConfig,
    "image_encoder": ImageEncoderConfig,
}


@dataclass(frozen=True)
class Model:
    config: ModelConfig
    tokenizer: ClipTokenizer
    text_encoder: TextEncoder
    vae: VAE
    unet: UNet


def load_model(folder: Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Model:
    """The networks of a folder, frozen, ready to run. Raises InputError where something is missing or does not fit."""
    config = read_config(folder)

    def network(make: Callable[[], nn.Module], name: str) -> nn.Module:
        return load_part(make, folder / f"{name}.safetensors", device, dtype)

    return Model(
        config=config,
        tokenizer=read_tokenizer(folder),
        text_encoder=network(lambda: TextEncoder(config.text_encoder), "text_encoder"),
        vae=network(lambda: VAE(config.vae), "vae"),
        unet=network(lambda: UNet(config.unet), "unet"),
    )


def load_image_encoder(folder: Path = MINIATURE_FOLDER) -> ImageTower:
    """The image half of the folder's CLIP pair, with the text's projection."""
    config = read_config(folder)
    if config.image_encoder is None:
        raise InputError(f"{folder} has no image encoder")
    return load_part(
        lambda: ImageTower(config.text_encoder, config.image_encoder), folder / "image_encoder.safetensors"
    )


def load_part(
    make: Callable[[], nn.Module], path: Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> nn.Module:
    """Builds a network without initialising it and fills it from one file: every tensor, no other, of its shape."""
    with torch.device("meta"):
        module = make()
    wanted = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    state = read_tensors(path, device)
    problem = _difference(wanted, {name: tuple(value.shape) for name, value in state.items()})
    if problem:
        raise InputError(f"{path} does not fit this {type(module).__name__}: {problem}")
    module.load_state_dict({name: value.to(dtype) for name, value in state.items()}, assign=True)
    return module.requires_grad_(False).eval()


def read_tensors(path: Path, device: torch.device | str = "cpu") -> dict[str, torch.Tensor]:
    """Every tensor of a safetensors file. Raises InputError where it is missing or not one."""
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dict
    except SafetensorError as error:
        raise InputError(f"{path} is not a whole safetensors file: {error}") from None


def read_tokenizer(folder: Path) -> ClipTokenizer:
    path = folder / MERGES
    if not path.is_file():
        raise InputError(f"there is no tokenizer: {path} is missing")
    return ClipTokenizer.from_merges(path)


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
    except (ValueError, TypeError, KeyError) as error:
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


def _difference(wanted: dict[str, tuple], got: dict[str, tuple]) -> str:
    """What is missing, unknown or of another shape, in words; empty where nothing is."""
    missing, unknown = sorted(wanted.keys() - got.keys()), sorted(got.keys() - wanted.keys())
    shapes = [f"{k} has shape {got[k]}, wanted {wanted[k]}" for k in wanted.keys() & got.keys() if wanted[k] != got[k]]
    said = [(missing, "missing"), (unknown, "unknown"), (sorted(shapes), "of the wrong shape")]
    return "; ".join(f"{len(names)} tensors {what} ({', '.join(names[:5])})" for names, what in said if names)
