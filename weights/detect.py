"""What a file or folder of weights is: one of three layouts, or a model that minibaret does not run, by name.

single file             everything in one safetensors file, in LDM naming
Hugging Face folder     unet/, vae/, text_encoder/, with or without variants and shards
minibaret folder        config.json, unet.safetensors, vae.safetensors, text_encoder.safetensors, merges.txt
"""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import InputError
from ..models.configs import SD15, ModelConfig
from .files import PICKLES, StoredTensor, open_tensors, refuse_pickle
from .folder import CONFIG, read_config
from .names import PARTS, Named, from_hugging_face, from_ldm
from .strict import count, first

STEMS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}  # Hugging Face's
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
    ema: bool = False


def find_checkpoint(path: Path, variant: str | None = None, config: ModelConfig = SD15) -> Checkpoint:
    """Recognises the weights at a path. `config` holds the sizes of every layout that does not state its own.

    Raises InputError where there is nothing, something broken, or another model.
    """
    if not path.exists():
        raise InputError(f"there is no file or folder {path}")
    folder = path.is_dir()
    if folder and ((path / "unet").is_dir() or (path / "model_index.json").is_file()):
        return _hugging_face(path, variant, config)
    if variant:
        raise InputError(f"a variant ({variant}) was wanted, but {path} is no Hugging Face folder")
    if folder and (path / CONFIG).is_file():
        parts = {part: open_tensors(path / f"{part}.safetensors") for part in PARTS}
        return Checkpoint(path, "minibaret folder", read_config(path), parts)
    if folder:
        raise InputError(_unusable(path))
    return _single_file(path, config)


def _single_file(path: Path, config: ModelConfig) -> Checkpoint:
    refuse_pickle(path)
    tensors = open_tensors(path)
    if any(LORA.fullmatch(name) for name in tensors):
        raise InputError(
            f"{path} is a LoRA file, which holds changes to a model and no model; minibaret wants the model itself"
        )
    if any(name.startswith("conditioner.embedders.") for name in tensors):
        raise InputError(_another_model(path, "a Stable Diffusion XL"))
    named = from_ldm(tensors, config)
    if not named.parts["unet"]:
        raise InputError(
            f"{path} is no Stable Diffusion checkpoint: a single file has its UNet under model.diffusion_model., "
            f"this one has tensors such as {first(sorted(tensors)) or 'none at all'}"
        )
    return _checkpoint(path, "single file, LDM names", named, config)


def _hugging_face(folder: Path, variant: str | None, config: ModelConfig) -> Checkpoint:
    if (folder / "text_encoder_2").is_dir():
        raise InputError(_another_model(folder, "a Stable Diffusion XL"))
    files = {part: _weights_file(folder / part, STEMS[part], variant) for part in PARTS}
    if variant and not any(f".{variant}." in path.name for path in files.values()):
        raise InputError(f"{folder} has no variant {variant} of any part")
    named = from_hugging_face({part: open_tensors(path) for part, path in files.items()}, config)
    checkpoint = _checkpoint(folder, "Hugging Face folder", named, config)
    _check_settings(folder, config)
    return checkpoint


def _weights_file(folder: Path, stem: str, variant: str | None) -> Path:
    """The file of one part: the variant's where it has one, else the plain one; a whole file before shards."""
    middles = ([f".{variant}"] if variant else []) + [""]
    for middle in middles:
        for name in (f"{stem}{middle}.safetensors", f"{stem}.safetensors.index{middle}.json"):
            if (folder / name).is_file():
                return folder / name
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
    return Checkpoint(path, layout, config, named.parts, named.dropped, named.ema)


def _refuse_other_models(path: Path, unet: dict[str, StoredTensor], config: ModelConfig) -> None:
    """Raises InputError for a UNet whose widths are those of a known other model."""
    widths = {tensor.shape[-1] for name, tensor in unet.items() if name.endswith(".attn2.to_k.weight")}
    for width in widths & CONTEXT_WIDTHS.keys() - {config.unet.context_width}:
        because = f"its UNet reads text of width {width}, not {config.unet.context_width}"
        raise InputError(_another_model(path, CONTEXT_WIDTHS[width], because))
    channels = unet["conv_in.weight"].shape[1:2] if "conv_in.weight" in unet else ()
    for number in {*channels} & INPUT_CHANNELS.keys() - {config.unet.latent_channels}:
        because = f"its UNet has {number} input channels, not {config.unet.latent_channels}"
        raise InputError(_another_model(path, INPUT_CHANNELS[number], because))


def _another_model(path: Path, model: str, because: str = "") -> str:
    return f"{path} is {model} model{f' ({because})' if because else ''}; minibaret runs Stable Diffusion 1.5"


def _check_settings(folder: Path, config: ModelConfig) -> None:
    """Compares what the folder's JSON files say and shapes do not show. Raises InputError where one says otherwise."""
    wanted = {
        "unet/config.json": {"attention_head_dim": config.unet.heads, "norm_num_groups": config.unet.groups},
        "vae/config.json": {"scaling_factor": config.vae.scaling_factor, "norm_num_groups": config.vae.groups},
        "text_encoder/config.json": {"hidden_act": "quick_gelu", "num_attention_heads": config.text_encoder.heads},
        "scheduler/scheduler_config.json": {
            "prediction_type": "epsilon",
            "beta_schedule": "scaled_linear",
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "num_train_timesteps": 1000,
        },
    }
    for name, values in wanted.items():
        path = folder / name
        if not path.is_file():
            continue
        try:
            found = dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError):
            raise InputError(f"{path} is not a config: a JSON object was wanted") from None
        for key, value in values.items():
            if found.get(key, value) != value:
                raise InputError(f"{path} says {key} is {found[key]!r}; Stable Diffusion 1.5 has {value!r}")


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
