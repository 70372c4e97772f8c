"""What the JSON files of a Hugging Face folder say of its networks, compared with what minibaret computes.

Compared is every field of diffusers' UNet2DConditionModel and AutoencoderKL, of transformers' CLIPTextConfig and of
diffusers' schedulers that changes numbers. Not compared are fields that change none (`sample_size`, `upcast_attention`,
`use_linear_projection`, dropout, …) and those of the sampler, which is always DDIM here (`clip_sample`, `steps_offset`,
`timestep_spacing`, …). A field that is not there has the value of Stable Diffusion 1.5.
"""

from pathlib import Path

from ..errors import InputError
from ..files import brief, read_json
from ..models.configs import ModelConfig

SILU = ["silu", "swish"]
# Of diffusers' UNet, by value: what Stable Diffusion 1.5 has not, and what it does not do.
UNUSED = (
    *("time_embedding_act_fn", "timestep_post_act", "time_cond_proj_dim", "cross_attention_norm", "class_embed_type"),
    *("num_class_embeds", "addition_embed_type", "encoder_hid_dim", "encoder_hid_dim_type"),
)
OFF = (
    *("center_input_sample", "resnet_skip_time_act", "only_cross_attention", "dual_cross_attention"),
    "class_embeddings_concat",
)


def check_settings(folder: Path, config: ModelConfig) -> None:
    """Raises InputError where a file of the folder says something else than the config, or is none."""
    for name, fields in wanted_fields(config).items():
        path = folder / name
        if not path.is_file() and not path.is_symlink():
            continue
        found = read_json(path)
        if not isinstance(found, dict):
            raise InputError(f"{path} is not a config: a JSON object was wanted")
        for key, values in fields.items():
            if key in found and not _means(found[key], values):
                said = f"{path} says {key} is {brief(found[key])}; Stable Diffusion 1.5 has {brief(values[0])}"
                raise InputError(said)


def _means(found: object, values: list) -> bool:
    """Whether it is one of the values, or a list that says one of them for every level."""
    return found in values or (isinstance(found, list) and len(found) > 0 and all(part in values for part in found))


def wanted_fields(config: ModelConfig) -> dict[str, dict[str, list]]:
    """By file and field: the values that mean what minibaret computes, the usual one first."""
    unet, vae, text = config.unet, config.vae, config.text_encoder
    levels = ["CrossAttn" if attention else "" for attention in unet.attention]
    return {
        "unet/config.json": {
            "in_channels": [unet.latent_channels],
            "out_channels": [unet.latent_channels],
            "conv_in_kernel": [3],
            "conv_out_kernel": [3],
            # time
            "time_embedding_type": ["positional"],
            "time_embedding_dim": [None, 4 * unet.channels[0]],
            "flip_sin_to_cos": [True],
            "freq_shift": [0],
            # blocks
            "block_out_channels": [list(unet.channels)],
            "down_block_types": [[f"{level}DownBlock2D" for level in levels]],
            "mid_block_type": ["UNetMidBlock2DCrossAttn"],
            "up_block_types": [[f"{level}UpBlock2D" for level in reversed(levels)]],
            "layers_per_block": [unet.layers_per_block],
            "downsample_padding": [1],
            "mid_block_scale_factor": [1],
            "act_fn": SILU,
            "norm_num_groups": [unet.groups],
            "norm_eps": [1e-5],
            "resnet_time_scale_shift": ["default"],
            "resnet_out_scale_factor": [1],
            # attention; `attention_head_dim` is a misnomer of diffusers' for the number of heads
            "attention_head_dim": [unet.heads, None],
            "num_attention_heads": [unet.heads, None],
            "cross_attention_dim": [unet.context_width],
            "transformer_layers_per_block": [1],
            "reverse_transformer_layers_per_block": [None, 1],
            "mid_block_only_cross_attention": [False, None],
            "attention_type": ["default"],
            **{field: [None] for field in UNUSED},
            **{field: [False] for field in OFF},
        },
        "vae/config.json": {
            "in_channels": [3],
            "out_channels": [3],
            "latent_channels": [vae.latent_channels],
            "block_out_channels": [list(vae.channels)],
            "down_block_types": [["DownEncoderBlock2D"] * len(vae.channels)],
            "up_block_types": [["UpDecoderBlock2D"] * len(vae.channels)],
            "layers_per_block": [vae.layers_per_block],
            "mid_block_add_attention": [True],
            "use_quant_conv": [True],
            "use_post_quant_conv": [True],
            "act_fn": SILU,
            "norm_num_groups": [vae.groups],
            "scaling_factor": [vae.scaling_factor],
            "shift_factor": [None, 0],
            "latents_mean": [None],
            "latents_std": [None],
        },
        "text_encoder/config.json": {
            "vocab_size": [text.vocabulary],
            "max_position_embeddings": [text.positions],
            "hidden_size": [text.width],
            "intermediate_size": [text.mlp_width],
            "num_hidden_layers": [text.layers],
            "num_attention_heads": [text.heads],
            "hidden_act": ["quick_gelu"],
            "layer_norm_eps": [1e-5],
        },
        "scheduler/scheduler_config.json": {
            "prediction_type": ["epsilon"],
            "num_train_timesteps": [1000],
            "beta_schedule": ["scaled_linear"],
            "beta_start": [0.00085],
            "beta_end": [0.012],
            "trained_betas": [None],
            "rescale_betas_zero_snr": [False],
            "use_flow_sigmas": [False],
        },
    }
