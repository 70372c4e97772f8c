"""diffusers' networks on a model's own weights, for those who have diffusers installed."""

from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..models.configs import UNetConfig
from ..models.unet import UNet
from ..weights.loading import Model


def import_diffusers() -> ModuleType:
    """Raises InputError where diffusers is not installed."""
    try:
        import diffusers
    except ImportError:
        raise InputError("this is measured against diffusers, which is not installed: pip install diffusers") from None
    return diffusers


class DiffusersUNet(nn.Module):
    """Called as ours is: latents (B, 4, h, w), time step, context (B, 77, width) → noise."""

    def __init__(self, unet: UNet, trainable: bool = False):
        """The tensors are shared with `unet` where their memory is laid out as diffusers has it; trainable: diffusers'
        own default, gradients for every weight."""
        super().__init__()
        self.network = _on_weights(import_diffusers().UNet2DConditionModel, unet_sizes(unet.config), unet)
        self.network.requires_grad_(trainable)

    def forward(self, latents: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        dtype = self.network.dtype
        return self.network(latents.to(dtype), timestep, encoder_hidden_states=context.to(dtype)).sample

    def materialise(self, maps: bool) -> None:
        """Whether attention maps are written to memory, as diffusers did before PyTorch had SDPA, and as published
        attention control does to this day."""
        from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

        self.network.set_attn_processor(AttnProcessor() if maps else AttnProcessor2_0())


def unet_sizes(config: UNetConfig) -> dict:
    kinds = ["CrossAttn" if attention else "" for attention in config.attention]
    return {
        "in_channels": config.latent_channels,
        "out_channels": config.latent_channels,
        "block_out_channels": config.channels,
        "down_block_types": [f"{kind}DownBlock2D" for kind in kinds],
        "up_block_types": [f"{kind}UpBlock2D" for kind in reversed(kinds)],
        "layers_per_block": config.layers_per_block,
        "attention_head_dim": config.heads,  # diffusers' name for their number
        "cross_attention_dim": config.context_width,
        "norm_num_groups": config.groups,
    }


def pipeline(model: Model, merges: Path):
    """A StableDiffusionPipeline of the same weights; merges: the tokenizer's file."""
    diffusers = import_diffusers()
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    vae, text = model.config.vae, model.config.text_encoder
    vae_sizes = {
        "block_out_channels": vae.channels,
        "down_block_types": ["DownEncoderBlock2D"] * len(vae.channels),
        "up_block_types": ["UpDecoderBlock2D"] * len(vae.channels),
        "latent_channels": vae.latent_channels,
        "layers_per_block": vae.layers_per_block,
        "norm_num_groups": vae.groups,
    }
    text_sizes = CLIPTextConfig(
        vocab_size=text.vocabulary,
        hidden_size=text.width,
        intermediate_size=text.mlp_width,
        num_hidden_layers=text.layers,
        num_attention_heads=text.heads,
    )
    pairs = [tuple(line.split(" ")) for line in merges.read_text(encoding="utf-8").splitlines()[1:]]
    return diffusers.StableDiffusionPipeline(
        vae=_on_weights(diffusers.AutoencoderKL, vae_sizes, model.vae),
        text_encoder=_on_weights(CLIPTextModel, {"config": text_sizes}, model.text_encoder),
        tokenizer=CLIPTokenizer(vocab=model.tokenizer.vocabulary, merges=pairs),
        unet=_on_weights(diffusers.UNet2DConditionModel, unet_sizes(model.config.unet), model.unet),
        scheduler=diffusers.PNDMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            skip_prk_steps=True,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _on_weights(kind: type[nn.Module], sizes: dict, network: nn.Module) -> nn.Module:
    with torch.device("meta"):
        theirs = kind(**sizes)
    weights = {name: value.contiguous() for name, value in network.state_dict().items()}
    known = theirs.state_dict().keys()
    theirs.load_state_dict({n if n in known else f"text_model.{n}": x for n, x in weights.items()}, assign=True)
    return theirs.eval()
