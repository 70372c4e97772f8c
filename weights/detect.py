"""What a file or folder of weights is: one of three layouts, or a model that minibaret does not run, by name.

single file             everything in one safetensors file, in LDM naming
Hugging Face folder     unet/, vae/, text_encoder/, with or without variants and shards
minibaret folder        config.json, unet.safetensors, vae.safetensors, text_encoder.safetensors, merges.txt
"""

import re
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..errors import InputError
from ..files import absent
from ..models.configs import SD15, ModelConfig
from .files import PICKLES, StoredTensor, open_tensors, refuse_pickle
from .folder import CONFIG, in_shape, read_config
from .int8 import with_scales
from .names import PARTS, Named, from_hugging_face, from_ldm
from .settings import check_settings
from .strict import count, first

STEMS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}  # Hugging Face's
TRAINED = "non_ema"  # the variant with the weights in training, where a file or folder has their averages too
CONTEXT_WIDTHS = {1024: "a Stable Diffusion 2.x", 2048: "a Stable Diffusion XL"}
INPUT_CHANNELS = {9: "an inpainting", 8: "an InstructPix2Pix", 7: "an upscaling", 5: "a depth-to-image"}
LORA = re.compile(r"lora_(unet|te\d?)_.*|.*[._]lora[._].*|.*\.lora_(up|down|[AB])\..*")


@dataclass(frozen=True)
class Checkpoint:
    """Weights that were recognised, before anything of them is read."""

    path: Path
    layout: str
    config: ModelConfig
    parts: dict[str, dict[str, StoredTensor]]  # unet, vae, text_encoder, under the networks' names
    dropped: list[str] = field(default_factory=list)
    unet_is: str = ""  # of the two UNets of a file with moving averages, in words


def find_checkpoint(path: Path, variant: str | None = None, config: ModelConfig = SD15) -> Checkpoint:
    """Recognises the weights at a path. `config` holds the sizes of every layout that does not state its own.

    Raises InputError where there is nothing, something broken, or another model.
    """
    if not path.exists():
        raise InputError(absent(path) if path.is_symlink() else f"there is no file or folder {path}")
    folder = path.is_dir()
    if folder and ((path / "unet").is_dir() or (path / "model_index.json").is_file()):
        return _hugging_face(path, variant, config)
    if not folder:
        return _single_file(path, variant, config)
    if variant:
        raise InputError(f"a variant ({variant}) was wanted, but {path} is no Hugging Face folder")
    if (path / CONFIG).is_file():
        parts = {part: with_scales(in_shape(open_tensors(path / f"{part}.safetensors"))) for part in PARTS}
        return Checkpoint(path, "minibaret folder", read_config(path), parts)
    raise InputError(_unusable(path))


def _single_file(path: Path, variant: str | None, config: ModelConfig) -> Checkpoint:
    refuse_pickle(path)
    if variant not in (None, TRAINED):
        raise InputError(
            f"a variant ({variant}) was wanted, but {path} is no folder: of a file there is only {TRAINED}"
        )
    tensors = open_tensors(path)
    if any(LORA.fullmatch(name) for name in tensors):
        raise InputError(
            f"{path} is a LoRA file, which holds changes to a model and no model; minibaret wants the model itself"
        )
    if any(name.startswith("conditioner.embedders.") for name in tensors):
        raise InputError(_another_model(path, "a Stable Diffusion XL"))
    named = from_ldm(tensors, config, trained=variant == TRAINED)
    if not named.parts["unet"]:
        raise InputError(
            f"{path} is no Stable Diffusion checkpoint: a single file has its UNet under model.diffusion_model., "
            f"this one has tensors such as {first(sorted(tensors)) or 'none at all'}"
        )
    checkpoint = _checkpoint(path, "single file, LDM names", named, config)
    if not named.averaged and not variant:
        return checkpoint
    if not named.averaged:
        raise InputError(f"a variant ({variant}) was wanted, but {path} has no moving averages (EMA), so only one UNet")
    both = ("the moving average (EMA) of the weights in training", "the weights in training, not their average (EMA)")
    return replace(checkpoint, unet_is=both[bool(variant)] + "; the other is dropped")


def _hugging_face(folder: Path, variant: str | None, config: ModelConfig) -> Checkpoint:
    if (folder / "text_encoder_2").is_dir():
        raise InputError(_another_model(folder, "a Stable Diffusion XL"))
    files = {part: _weights_file(folder / part, STEMS[part], variant) for part in PARTS}
    if variant and not any(f".{variant}." in path.name for path in files.values()):
        raise InputError(f"{folder} has no variant {variant} of any part")
    named = from_hugging_face({part: open_tensors(path) for part, path in files.items()}, config)
    checkpoint = _checkpoint(folder, "Hugging Face folder", named, config)
    check_settings(folder, config)
    return checkpoint


def _weights_file(folder: Path, stem: str, variant: str | None) -> Path:
    """The file of one part: the variant's where it has one, else the plain one; a whole file before shards."""
    middles = ([f".{variant}"] if variant else []) + [""]
    for middle in middles:
        for name in (f"{stem}{middle}.safetensors", f"{stem}.safetensors.index{middle}.json"):
            if (folder / name).is_file():
                return folder / name
            if (folder / name).is_symlink():
                raise InputError(absent(folder / name))
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    others = [name for name in names if name.startswith(stem) and name.endswith(".safetensors")]
    pickles = [name for name in names if name.endswith(PICKLES)]
    said = "is missing"
    if others and _variant(others[0]).isdecimal():
        said = f"is missing; there is {first(others)}, one piece of several, without the {stem}.safetensors.index.json"
    elif others:
        said = f"is missing; there is {first(others)}, which --variant {_variant(others[0])} chooses"
    elif pickles:
        said = f"is missing; there is only {first(pickles)}, a pickle, which minibaret never opens"
    raise InputError(f"{folder / stem}{middles[0]}.safetensors {said}")


def _variant(name: str) -> str:
    return re.split(r"[.-]", name)[1]


def _checkpoint(path: Path, layout: str, named: Named, config: ModelConfig) -> Checkpoint:
    _refuse_other_models(path, named.parts["unet"], config)
    if named.unknown:
        names = sorted(named.unknown)
        raise InputError(f"{path} is no Stable Diffusion 1.5 checkpoint: {count(names)} unknown: {first(names)}")
    return Checkpoint(path, layout, config, named.parts, named.dropped)


def _refuse_other_models(path: Path, unet: dict[str, StoredTensor], config: ModelConfig) -> None:
    """Raises InputError for a UNet whose widths are those of a known other model."""
    keys = [tensor.shape for name, tensor in unet.items() if name.endswith(".attn2.to_k.weight")]
    for width in {width for shape in keys for width in shape[-1:]} & CONTEXT_WIDTHS.keys() - {
        config.unet.context_width
    }:
        because = f"its UNet reads text of width {width}, not {config.unet.context_width}"
        raise InputError(_another_model(path, CONTEXT_WIDTHS[width], because))
    channels = unet["conv_in.weight"].shape[1:2] if "conv_in.weight" in unet else ()
    for number in {*channels} & INPUT_CHANNELS.keys() - {config.unet.latent_channels}:
        because = f"its UNet has {number} input channels, not {config.unet.latent_channels}"
        raise InputError(_another_model(path, INPUT_CHANNELS[number], because))


def _another_model(path: Path, model: str, because: str = "") -> str:
    return f"{path} is {model} model{f' ({because})' if because else ''}; minibaret runs Stable Diffusion 1.5"


def _unusable(folder: Path) -> str:
    """Why a folder of no layout cannot be used, and what could be."""
    names = sorted(path.name for path in folder.iterdir())
    files = [name for name in names if name.endswith(".safetensors")]
    pickles = [name for name in names if name.endswith(PICKLES)]
    if not names:
        return f"{folder} is an empty folder"
    if files:
        return f"{folder} is no folder of weights, but holds {first(files)}: name the file itself"
    if pickles:
        return f"{folder} holds only pickles ({first(pickles)}), never opened here; .safetensors files were wanted"
    return f"{folder} holds no weights: unet/, vae/ and text_encoder/ were wanted, or {CONFIG} with .safetensors files"
