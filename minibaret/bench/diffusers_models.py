"""diffusers' UNet on a model's own weights, for those who have diffusers installed."""

from types import ModuleType

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..models.configs import UNetConfig
from ..models.unet import UNet


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
        with torch.device("meta"):
            self.network = import_diffusers().UNet2DConditionModel(**unet_sizes(unet.config))
        weights = {name: value.contiguous() for name, value in unet.state_dict().items()}
        self.network.load_state_dict(weights, assign=True)
        self.network.eval().requires_grad_(trainable)

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
