"""The names that tensors have in Stable Diffusion 1.5's single file.

The tables were written down from the layout itself, place by place; nothing of minibaret.weights is used here.
"""

from torch import Tensor

LDM_UNET = """
time_embed.0          time_embedding.linear_1
time_embed.2          time_embedding.linear_2
input_blocks.0.0      conv_in
input_blocks.1.0      down_blocks.0.resnets.0
input_blocks.1.1      down_blocks.0.attentions.0
input_blocks.2.0      down_blocks.0.resnets.1
input_blocks.2.1      down_blocks.0.attentions.1
input_blocks.3.0.op   down_blocks.0.downsamplers.0.conv
input_blocks.4.0      down_blocks.1.resnets.0
input_blocks.4.1      down_blocks.1.attentions.0
input_blocks.5.0      down_blocks.1.resnets.1
input_blocks.5.1      down_blocks.1.attentions.1
input_blocks.6.0.op   down_blocks.1.downsamplers.0.conv
input_blocks.7.0      down_blocks.2.resnets.0
input_blocks.7.1      down_blocks.2.attentions.0
input_blocks.8.0      down_blocks.2.resnets.1
input_blocks.8.1      down_blocks.2.attentions.1
input_blocks.9.0.op   down_blocks.2.downsamplers.0.conv
input_blocks.10.0     down_blocks.3.resnets.0
input_blocks.11.0     down_blocks.3.resnets.1
middle_block.0        mid_block.resnets.0
middle_block.1        mid_block.attentions.0
middle_block.2        mid_block.resnets.1
output_blocks.0.0     up_blocks.0.resnets.0
output_blocks.1.0     up_blocks.0.resnets.1
output_blocks.2.0     up_blocks.0.resnets.2
output_blocks.2.1.conv  up_blocks.0.upsamplers.0.conv
output_blocks.3.0     up_blocks.1.resnets.0
output_blocks.3.1     up_blocks.1.attentions.0
output_blocks.4.0     up_blocks.1.resnets.1
output_blocks.4.1     up_blocks.1.attentions.1
output_blocks.5.0     up_blocks.1.resnets.2
output_blocks.5.1     up_blocks.1.attentions.2
output_blocks.5.2.conv  up_blocks.1.upsamplers.0.conv
output_blocks.6.0     up_blocks.2.resnets.0
output_blocks.6.1     up_blocks.2.attentions.0
output_blocks.7.0     up_blocks.2.resnets.1
output_blocks.7.1     up_blocks.2.attentions.1
output_blocks.8.0     up_blocks.2.resnets.2
output_blocks.8.1     up_blocks.2.attentions.2
output_blocks.8.2.conv  up_blocks.2.upsamplers.0.conv
output_blocks.9.0     up_blocks.3.resnets.0
output_blocks.9.1     up_blocks.3.attentions.0
output_blocks.10.0    up_blocks.3.resnets.1
output_blocks.10.1    up_blocks.3.attentions.1
output_blocks.11.0    up_blocks.3.resnets.2
output_blocks.11.1    up_blocks.3.attentions.2
out.0                 conv_norm_out
out.2                 conv_out
"""
LDM_VAE = """
encoder.conv_in              encoder.conv_in
encoder.down.0.block.0       encoder.down_blocks.0.resnets.0
encoder.down.0.block.1       encoder.down_blocks.0.resnets.1
encoder.down.0.downsample.conv  encoder.down_blocks.0.downsamplers.0.conv
encoder.down.1.block.0       encoder.down_blocks.1.resnets.0
encoder.down.1.block.1       encoder.down_blocks.1.resnets.1
encoder.down.1.downsample.conv  encoder.down_blocks.1.downsamplers.0.conv
encoder.down.2.block.0       encoder.down_blocks.2.resnets.0
encoder.down.2.block.1       encoder.down_blocks.2.resnets.1
encoder.down.2.downsample.conv  encoder.down_blocks.2.downsamplers.0.conv
encoder.down.3.block.0       encoder.down_blocks.3.resnets.0
encoder.down.3.block.1       encoder.down_blocks.3.resnets.1
encoder.mid.block_1          encoder.mid_block.resnets.0
encoder.mid.attn_1           encoder.mid_block.attentions.0
encoder.mid.block_2          encoder.mid_block.resnets.1
encoder.norm_out             encoder.conv_norm_out
encoder.conv_out             encoder.conv_out
quant_conv                   quant_conv
post_quant_conv              post_quant_conv
decoder.conv_in              decoder.conv_in
decoder.mid.block_1          decoder.mid_block.resnets.0
decoder.mid.attn_1           decoder.mid_block.attentions.0
decoder.mid.block_2          decoder.mid_block.resnets.1
decoder.up.3.block.0         decoder.up_blocks.0.resnets.0
decoder.up.3.block.1         decoder.up_blocks.0.resnets.1
decoder.up.3.block.2         decoder.up_blocks.0.resnets.2
decoder.up.3.upsample.conv   decoder.up_blocks.0.upsamplers.0.conv
decoder.up.2.block.0         decoder.up_blocks.1.resnets.0
decoder.up.2.block.1         decoder.up_blocks.1.resnets.1
decoder.up.2.block.2         decoder.up_blocks.1.resnets.2
decoder.up.2.upsample.conv   decoder.up_blocks.1.upsamplers.0.conv
decoder.up.1.block.0         decoder.up_blocks.2.resnets.0
decoder.up.1.block.1         decoder.up_blocks.2.resnets.1
decoder.up.1.block.2         decoder.up_blocks.2.resnets.2
decoder.up.1.upsample.conv   decoder.up_blocks.2.upsamplers.0.conv
decoder.up.0.block.0         decoder.up_blocks.3.resnets.0
decoder.up.0.block.1         decoder.up_blocks.3.resnets.1
decoder.up.0.block.2         decoder.up_blocks.3.resnets.2
decoder.norm_out             decoder.conv_norm_out
decoder.conv_out             decoder.conv_out
"""
UNET_RESNET = [
    ("norm1", "in_layers.0"),
    ("conv1", "in_layers.2"),
    ("time_emb_proj", "emb_layers.1"),
    ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"),
    ("conv_shortcut", "skip_connection"),
]
LDM_ATTENTION = [("group_norm", "norm"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out")]
OLD_ATTENTION = [("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")]
SCHEDULE = [
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
]


Weights = dict[str, dict[str, Tensor]]  # unet, vae, text_encoder: name → tensor


def ldm_names(weights: Weights) -> dict[str, dict[str, str]]:
    """For each part, the networks' name of a tensor → its name in LDM's file, without the part's prefix."""
    return {
        "unet": {name: _rename(name, LDM_UNET, [(".resnets.", UNET_RESNET)]) for name in weights["unet"]},
        "vae": {
            name: _rename(
                name, LDM_VAE, [(".resnets.", [("conv_shortcut", "nin_shortcut")]), (".attentions.", LDM_ATTENTION)]
            )
            for name in weights["vae"]
        },
        "text_encoder": {name: f"text_model.{name}" for name in weights["text_encoder"]},
    }


def _rename(name: str, table: str, inner: list[tuple[str, list[tuple[str, str]]]]) -> str:
    for line in table.split("\n")[1:-1]:
        theirs, ours = line.split()
        if name.startswith(ours + "."):
            rest = name[len(ours) + 1 :]
            for place, pairs in inner:
                for ours_inside, theirs_inside in pairs:
                    if place in ours and rest.startswith(ours_inside + "."):
                        return f"{theirs}.{theirs_inside}{rest[len(ours_inside) :]}"
            return f"{theirs}.{rest}"
    raise AssertionError(f"{name} is in no table")
