"""diffusers' UNet on a UNet's own weights, for those who have diffusers installed."""

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..models.unet import UNet


class DiffusersUNet(nn.Module):
    """Called as ours is: latents (B, 4, h, w), time step, context (B, 77, width) → noise."""

    def __init__(self, unet: UNet, trainable: bool = False):
        """The tensors are shared with `unet` where their memory is laid out as diffusers has it; trainable: diffusers'
        own default, gradients for every weight."""
        super().__init__()
        network, config = import_diffusers(), unet.config
        kinds = ["CrossAttn" if attention else "" for attention in config.attention]
        with torch.device("meta"):
            self.network = network(
                in_channels=config.latent_channels,
                out_channels=config.latent_channels,
                block_out_channels=config.channels,
                down_block_types=[f"{kind}DownBlock2D" for kind in kinds],
                up_block_types=[f"{kind}UpBlock2D" for kind in reversed(kinds)],
                layers_per_block=config.layers_per_block,
                attention_head_dim=config.heads,  # diffusers' name for their number
                cross_attention_dim=config.context_width,
                norm_num_groups=config.groups,
            )
        weights = {name: value.contiguous() for name, value in unet.state_dict().items()}
        self.network.load_state_dict(weights, assign=True)
        self.network.requires_grad_(trainable).eval()

    def forward(self, latents: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        dtype = self.network.dtype
        return self.network(latents.to(dtype), timestep, encoder_hidden_states=context.to(dtype)).sample

    def materialise(self, maps: bool) -> None:
        """Whether attention maps are written to memory, as diffusers did before PyTorch had SDPA, and as published
        attention control does to this day."""
        from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

        self.network.set_attn_processor(AttnProcessor() if maps else AttnProcessor2_0())


def import_diffusers() -> type[nn.Module]:
    """UNet2DConditionModel. Raises InputError where diffusers is not installed."""
    try:
        from diffusers import UNet2DConditionModel
    except ImportError:
        raise InputError("this is measured against diffusers, which is not installed: pip install diffusers") from None
    return UNet2DConditionModel
