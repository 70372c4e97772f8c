"""Random weights written the way others write Stable Diffusion 1.5: every spelling of names that minibaret reads.

Nothing of minibaret.weights is used here.
"""

import dataclasses
import json
from pathlib import Path

import torch
from ldm_names import OLD_ATTENTION, SCHEDULE, Weights, ldm_names
from safetensors.torch import save_file
from torch import Tensor

from minibaret.models.configs import ModelConfig, TextEncoderConfig, UNetConfig, VAEConfig
from minibaret.models.text_encoder import TextEncoder
from minibaret.models.unet import UNet
from minibaret.models.vae import VAE

MERGES = [("a", "b"), ("ab", "c"), ("#", "a"), ("d", "o"), ("do", "g</w>"), ("c", "a"), ("ca", "t</w>")]
TINY = ModelConfig(  # every block of Stable Diffusion 1.5, narrow: the same tensors under the same names
    name="tiny",
    image_size=64,
    unet=UNetConfig(channels=(16, 32, 64, 64), heads=2, context_width=24, groups=8),
    text_encoder=TextEncoderConfig(vocabulary=514 + len(MERGES), width=24, layers=12, heads=2, mlp_width=48),
    vae=VAEConfig(channels=(8, 16, 32, 32), groups=4),
)


def random_weights(config: ModelConfig, seed: int = 0) -> Weights:
    """Random numbers for every tensor of the three networks, of a size that keeps activations near 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        networks = {
            "unet": UNet(config.unet),
            "vae": VAE(config.vae),
            "text_encoder": TextEncoder(config.text_encoder),
        }
    return {
        part: {name: _random(name, value.shape, generator) for name, value in network.state_dict().items()}
        for part, network in networks.items()
    }


def _random(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    values = torch.empty(shape).normal_(generator=generator)
    if len(shape) == 1:  # biases, and the scales of the normalisations
        return values.mul_(0.1).add_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
    return values.div_(shape[1:].numel() ** 0.5)


def ldm_tensors(
    weights: Weights, *, text_model: bool = True, matrices: bool = False, ema: bool = False
) -> dict[str, Tensor]:
    """The tensors of v1-5-pruned-emaonly, or with `ema` of v1-5-pruned, whose plain UNet weights are then other ones.

    text_model=False: as merges write that lost `text_model.`; matrices: 1×1 convolutions of the UNet as [C, C].
    """
    names = ldm_names(weights)
    tensors = {}
    for name, value in weights["unet"].items():
        if matrices and name.endswith(("proj_in.weight", "proj_out.weight")):
            value = value[:, :, 0, 0]
        key = "model.diffusion_model." + names["unet"][name]
        if ema:
            tensors["model_ema." + key[len("model.") :].replace(".", "")] = value
            value = value + 1
        tensors[key] = value
    for name, value in weights["vae"].items():
        if ".attentions." in name and value.dim() == 2:
            value = value[:, :, None, None]
        tensors["first_stage_model." + names["vae"][name]] = value
    for name, value in weights["text_encoder"].items():
        key = names["text_encoder"][name]
        tensors["cond_stage_model.transformer." + (key if text_model else key[len("text_model.") :])] = value
    text = "text_model." if text_model else ""
    tensors[f"cond_stage_model.transformer.{text}embeddings.position_ids"] = torch.arange(77)[None]
    tensors |= {name: torch.rand(1000) for name in SCHEDULE}
    tensors |= {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(9, dtype=torch.int32)}
    return tensors


def write_single(path: Path, tensors: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> Path:
    """A single file, its tokenizer beside it."""
    write_merges(path.parent)
    save_file({name: _cast(value, dtype) for name, value in tensors.items()}, path)
    return path


def write_hugging_face(
    folder: Path,
    weights: Weights,
    *,
    variant: str = "",
    dtype: torch.dtype = torch.float32,
    old_attention: bool = False,
    text_model: bool = True,
    position_ids: bool = True,
    shards: int = 0,
) -> Path:
    """The safetensors files of a Hugging Face folder, or one variant of them."""
    parts = {part: dict(tensors) for part, tensors in weights.items()}
    if old_attention:
        for ours, theirs in OLD_ATTENTION:
            parts["vae"] = {
                name.replace(f"mid_block.attentions.0.{ours}.", f"mid_block.attentions.0.{theirs}."): value
                for name, value in parts["vae"].items()
            }
    text = "text_model." if text_model else ""
    parts["text_encoder"] = {text + name: value for name, value in parts["text_encoder"].items()}
    if position_ids:
        parts["text_encoder"][f"{text}embeddings.position_ids"] = torch.arange(77)[None]
    dot = f".{variant}" if variant else ""
    for part, tensors in parts.items():
        place = folder / part
        place.mkdir(parents=True, exist_ok=True)
        stem = "model" if part == "text_encoder" else "diffusion_pytorch_model"
        tensors = {name: _cast(value, dtype) for name, value in tensors.items()}
        if not shards:
            save_file(tensors, place / f"{stem}{dot}.safetensors")
            continue
        names, where = sorted(tensors), {}
        for i in range(shards):
            file = f"{stem}{dot}-{i + 1:05}-of-{shards:05}.safetensors"
            save_file({name: tensors[name] for name in names[i::shards]}, place / file)
            where |= dict.fromkeys(names[i::shards], file)
        (place / f"{stem}.safetensors.index{dot}.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder


def write_configs(folder: Path, config: ModelConfig, merges: list[tuple[str, str]] = MERGES) -> Path:
    """The JSON files and the tokenizer of a Hugging Face folder, as Stable Diffusion 1.5 has them but for the sizes."""
    unet, vae, text = config.unet, config.vae, config.text_encoder
    cross = ["CrossAttn" if attention else "" for attention in unet.attention]
    levels = len(vae.channels)
    files = {
        "model_index.json": {
            "_class_name": "StableDiffusionPipeline",
            "scheduler": ["diffusers", "PNDMScheduler"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        },
        "unet/config.json": {
            "_class_name": "UNet2DConditionModel",
            "attention_head_dim": unet.heads,
            "block_out_channels": unet.channels,
            "cross_attention_dim": unet.context_width,
            "down_block_types": [f"{kind}DownBlock2D" for kind in cross],
            "in_channels": unet.latent_channels,
            "layers_per_block": unet.layers_per_block,
            "norm_num_groups": unet.groups,
            "out_channels": unet.latent_channels,
            "sample_size": 64,
            "up_block_types": [f"{kind}UpBlock2D" for kind in reversed(cross)],
        },
        "vae/config.json": {
            "_class_name": "AutoencoderKL",
            "block_out_channels": vae.channels,
            "down_block_types": ["DownEncoderBlock2D"] * levels,
            "latent_channels": vae.latent_channels,
            "layers_per_block": vae.layers_per_block,
            "norm_num_groups": vae.groups,
            "sample_size": 512,
            "up_block_types": ["UpDecoderBlock2D"] * levels,
        },
        "text_encoder/config.json": {
            "architectures": ["CLIPTextModel"],
            "model_type": "clip_text_model",
            "hidden_act": "quick_gelu",
            "hidden_size": text.width,
            "intermediate_size": text.mlp_width,
            "max_position_embeddings": text.positions,
            "num_attention_heads": text.heads,
            "num_hidden_layers": text.layers,
            "vocab_size": text.vocabulary,
            "bos_token_id": 0,
            "pad_token_id": 1,
            "eos_token_id": 2,
        },
        "scheduler/scheduler_config.json": {
            "_class_name": "PNDMScheduler",
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "beta_start": 0.00085,
            "num_train_timesteps": 1000,
            "set_alpha_to_one": False,
            "skip_prk_steps": True,
            "steps_offset": 1,
        },
        "tokenizer/tokenizer_config.json": {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77},
        "tokenizer/vocab.json": vocabulary(merges),
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    write_merges(folder / "tokenizer", merges)
    return folder


def write_minibaret(folder: Path, weights: Weights, config: ModelConfig) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(dataclasses.asdict(config)))
    for part, tensors in weights.items():
        save_file(tensors, folder / f"{part}.safetensors")
    write_merges(folder)
    return folder


def vocabulary(merges: list[tuple[str, str]]) -> dict[str, int]:
    """vocab.json: CLIP's symbols for the 256 bytes, the same at the end of a word, the merges, start, end."""
    themselves = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    symbols = [chr(byte) for byte in themselves] + [chr(0x100 + i) for i in range(256 - len(themselves))]
    words = [*symbols, *(symbol + "</w>" for symbol in symbols), *(a + b for a, b in merges)]
    return {word: number for number, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}


def full_merges() -> list[tuple[str, str]]:
    """As many merges as CLIP has, made up: any two symbols, the second of which ends a word."""
    symbols = list(vocabulary([]))[:256]
    return [(a, b + "</w>") for b in symbols for a in symbols][:48_894]


def write_merges(folder: Path, merges: list[tuple[str, str]] = MERGES) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "merges.txt"
    path.write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges), encoding="utf-8")
    return path


def _cast(value: Tensor, dtype: torch.dtype) -> Tensor:
    return value.to(dtype).contiguous() if value.is_floating_point() else value
