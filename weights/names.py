"""What checkpoints call the tensors, as templates: the names in a file on the left, the networks' own on the right.

The networks carry the names of diffusers and transformers (text encoder without `text_model.`); nothing outside this
file knows any other. In a template a word in braces stands for what PIECES says; a template fits a whole name or not at
all. Names in files are those of CompVis/latent-diffusion (`ldm/modules/diffusionmodules/`) and of early diffusers
(`AttentionBlock`).
"""

import re
from dataclasses import dataclass, field, replace
from functools import cache

from ..models.configs import ModelConfig
from .files import StoredTensor

PARTS = ("unet", "vae", "text_encoder")
LDM_PREFIXES = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text_encoder": "cond_stage_model.transformer.",
}
EMA_PREFIX = "model_ema."  # then the name after `model.`, its dots deleted
EMA_LEAST = 100  # moving averages from which on a file counts as having them

# Tensors that are no weights of the three networks, all that may be dropped. A name that is neither here nor in a
# template is an error: some say that the model is another one, as "v_pred" does.
DROPPED_LDM = re.compile(
    # the schedule
    r"betas|(sqrt_)?alphas_cumprod(_prev)?|(log|sqrt)_one_minus_alphas_cumprod|sqrt_recip(m1)?_alphas_cumprod"
    r"|posterior_(variance|log_variance_clipped|mean_coef[12])|logvar|lvlb_weights|scale_factor"
    r"|ddim_(sigmas|alphas|alphas_prev|sqrt_one_minus_alphas|timesteps)|denoiser\.(log_)?sigmas"
    # of the training
    r"|model_ema\.(decay|num_updates)|global_step|epoch|embedding_manager\..+|first_stage_model\.loss\..+"
    # what CLIP compares texts and pictures with
    r"|cond_stage_model\.(logit_scale|text_projection(\.weight)?)"
)
DROPPED_TEXT = re.compile(r"(text_model\.)?embeddings\.position_ids|logit_scale|text_projection(\.weight)?")

RESNET = {  # the UNet's
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
VAE_RESNET = {"norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2", "nin_shortcut": "conv_shortcut"}
VAE_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
RENAMED = {"resnet": RESNET, "block": VAE_RESNET, "attention": VAE_ATTENTION, "old": OLD_ATTENTION}
PIECES = {  # what a word in braces stands for; one of RENAMED is also called otherwise in the network
    "parameter": "weight|bias",
    "transformer": r"norm|proj_in|proj_out|transformer_blocks\.0\.[\w.]+",
    "coder": "encoder|decoder",
    "conv": "conv_in|conv_out",
    "n": "0|[1-9][0-9]?",
    "i": "0|[1-9][0-9]?",
    "j": "0|[1-9][0-9]?",
    "last": "1|2",  # 2 where a transformer precedes it
    "any": ".+",
    **{piece: "|".join(map(re.escape, names)) for piece, names in RENAMED.items()},
}

LDM_UNET = (  # level and ResBlock of input block n: i_in, j_in = divmod(n - 1, 3); of output block n: divmod(n, 3)
    ("time_embed.0.{parameter}", "time_embedding.linear_1.{parameter}"),
    ("time_embed.2.{parameter}", "time_embedding.linear_2.{parameter}"),
    ("input_blocks.0.0.{parameter}", "conv_in.{parameter}"),
    ("input_blocks.{n}.0.{resnet}.{parameter}", "down_blocks.{i_in}.resnets.{j_in}.{resnet}.{parameter}"),
    ("input_blocks.{n}.1.{transformer}.{parameter}", "down_blocks.{i_in}.attentions.{j_in}.{transformer}.{parameter}"),
    ("input_blocks.{n}.0.op.{parameter}", "down_blocks.{i_in}.downsamplers.0.conv.{parameter}"),
    ("middle_block.0.{resnet}.{parameter}", "mid_block.resnets.0.{resnet}.{parameter}"),
    ("middle_block.1.{transformer}.{parameter}", "mid_block.attentions.0.{transformer}.{parameter}"),
    ("middle_block.2.{resnet}.{parameter}", "mid_block.resnets.1.{resnet}.{parameter}"),
    ("output_blocks.{n}.0.{resnet}.{parameter}", "up_blocks.{i_out}.resnets.{j_out}.{resnet}.{parameter}"),
    ("output_blocks.{n}.1.{transformer}.{parameter}", "up_blocks.{i_out}.attentions.{j_out}.{transformer}.{parameter}"),
    ("output_blocks.{n}.{last}.conv.{parameter}", "up_blocks.{i_out}.upsamplers.0.conv.{parameter}"),
    ("out.0.{parameter}", "conv_norm_out.{parameter}"),
    ("out.2.{parameter}", "conv_out.{parameter}"),
)
LDM_VAE = (  # the decoder's levels count from the finest in a file, from the coarsest in the network: up = 3 - i
    ("quant_conv.{parameter}", "quant_conv.{parameter}"),
    ("post_quant_conv.{parameter}", "post_quant_conv.{parameter}"),
    ("{coder}.{conv}.{parameter}", "{coder}.{conv}.{parameter}"),
    ("{coder}.norm_out.{parameter}", "{coder}.conv_norm_out.{parameter}"),
    ("{coder}.mid.block_1.{block}.{parameter}", "{coder}.mid_block.resnets.0.{block}.{parameter}"),
    ("{coder}.mid.attn_1.{attention}.{parameter}", "{coder}.mid_block.attentions.0.{attention}.{parameter}"),
    ("{coder}.mid.block_2.{block}.{parameter}", "{coder}.mid_block.resnets.1.{block}.{parameter}"),
    ("encoder.down.{i}.block.{j}.{block}.{parameter}", "encoder.down_blocks.{i}.resnets.{j}.{block}.{parameter}"),
    ("encoder.down.{i}.downsample.conv.{parameter}", "encoder.down_blocks.{i}.downsamplers.0.conv.{parameter}"),
    ("decoder.up.{i}.block.{j}.{block}.{parameter}", "decoder.up_blocks.{up}.resnets.{j}.{block}.{parameter}"),
    ("decoder.up.{i}.upsample.conv.{parameter}", "decoder.up_blocks.{up}.upsamplers.0.conv.{parameter}"),
)
TEXT = (
    ("text_model.{any}", "{any}"),  # transformers before 5.6
    ("{any}", "{any}"),
)
DIFFUSERS_UNET = (("{any}", "{any}"),)
DIFFUSERS_VAE = (
    ("{coder}.mid_block.attentions.0.{old}.{parameter}", "{coder}.mid_block.attentions.0.{old}.{parameter}"),
    ("{any}", "{any}"),
)
LDM = {"unet": LDM_UNET, "vae": LDM_VAE, "text_encoder": TEXT}
HUGGING_FACE = {"unet": DIFFUSERS_UNET, "vae": DIFFUSERS_VAE, "text_encoder": TEXT}

# Weights that are matrices in some files and 1×1 convolutions in others.
CONVOLUTIONS = re.compile(r"(mid_block|(down|up)_blocks\.\d+)\.attentions\.\d+\.proj_(in|out)\.weight")  # UNet
MATRICES = re.compile(r"(encoder|decoder)\.mid_block\.attentions\.0\.to_(q|k|v|out\.0)\.weight")  # VAE


@dataclass
class Named:
    """A file's tensors under the networks' names."""

    parts: dict[str, dict[str, StoredTensor]]  # unet, vae, text_encoder
    dropped: list[str] = field(default_factory=list)  # names in the file
    unknown: list[str] = field(default_factory=list)
    averaged: bool = False  # the file holds exponential moving averages of the UNet beside the weights in training


def from_ldm(tensors: dict[str, StoredTensor], config: ModelConfig, trained: bool = False) -> Named:
    """A single file in LDM naming. Of a UNet with moving averages these are taken and the weights in training dropped,
    or with `trained` the other way round."""
    named = Named({part: {} for part in PARTS})
    averages = {name for name in tensors if name.startswith(EMA_PREFIX) and not DROPPED_LDM.fullmatch(name)}
    named.averaged = len(averages) >= EMA_LEAST
    if named.averaged and trained:
        named.dropped += averages
        tensors = {name: tensor for name, tensor in tensors.items() if name not in averages}
    elif named.averaged:
        tensors, dropped = _with_averages(tensors, averages)
        named.dropped += dropped
    for name, tensor in tensors.items():
        part = next((part for part in PARTS if name.startswith(LDM_PREFIXES[part])), None)
        if DROPPED_LDM.fullmatch(name):
            named.dropped.append(name)
        elif part:
            _place(named, part, name.removeprefix(LDM_PREFIXES[part]), tensor, LDM[part], config)
        else:
            named.unknown.append(name)
    return named


def from_hugging_face(files: dict[str, dict[str, StoredTensor]], config: ModelConfig) -> Named:
    """The files of a Hugging Face folder, by part."""
    named = Named({part: {} for part in files})
    for part, tensors in files.items():
        for name, tensor in tensors.items():
            _place(named, part, name, tensor, HUGGING_FACE[part], config)
    return named


def _with_averages(tensors: dict[str, StoredTensor], averages: set[str]) -> tuple[dict[str, StoredTensor], list[str]]:
    """Puts each moving average in the place of the weight that it averages; also the names of the weights."""
    trained = [name for name in tensors if name.startswith(LDM_PREFIXES["unet"])]
    places = {EMA_PREFIX + name.removeprefix("model.").replace(".", ""): name for name in trained}
    kept = {name: tensor for name, tensor in tensors.items() if name not in {*averages, *trained}}
    return kept | {places.get(name, name): tensors[name] for name in averages}, trained


def _place(named: Named, part: str, name: str, tensor: StoredTensor, templates: tuple, config: ModelConfig) -> None:
    if part == "text_encoder" and DROPPED_TEXT.fullmatch(name):
        named.dropped.append(tensor.key)
        return
    new = translate(name, templates, config)
    if new is None or new in named.parts[part]:
        named.unknown.append(tensor.key)
    else:
        named.parts[part][new] = _with_shape(part, new, tensor)


def translate(name: str, templates: tuple[tuple[str, str], ...], config: ModelConfig) -> str | None:
    """The network's name for a tensor, by the first template that fits the whole of its name; None where none does."""
    for pattern, template in _compiled(templates):
        match = pattern.fullmatch(name)
        if match:
            found = match.groupdict()
            values = {key: RENAMED[key][value] if key in RENAMED else value for key, value in found.items()}
            if "n" in found:
                layers, n = config.unet.layers_per_block + 1, int(found["n"])
                values["i_in"], values["j_in"] = divmod(n - 1, layers)
                values["i_out"], values["j_out"] = divmod(n, layers)
            if "i" in found:
                values["up"] = len(config.vae.channels) - 1 - int(found["i"])
            return template.format_map(values)
    return None


@cache
def _compiled(templates: tuple[tuple[str, str], ...]) -> list[tuple[re.Pattern, str]]:
    def pattern(template: str) -> str:
        words = re.split(r"\{(\w+)\}", template)  # text, piece, text, piece, …, text
        groups = [f"(?P<{piece}>{PIECES[piece]})" for piece in words[1::2]]
        return "".join(re.escape(text) + group for text, group in zip(words[::2], [*groups, ""]))

    return [(re.compile(pattern(left)), right) for left, right in templates]


def _with_shape(part: str, name: str, tensor: StoredTensor) -> StoredTensor:
    shape = tensor.shape
    if part == "unet" and len(shape) == 2 and CONVOLUTIONS.fullmatch(name):
        shape = (*shape, 1, 1)
    elif part == "vae" and shape[2:] == (1, 1) and MATRICES.fullmatch(name):
        shape = shape[:2]
    return replace(tensor, shape=shape)
