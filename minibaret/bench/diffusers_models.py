"""diffusers' UNet on a model's own weights, for those who have diffusers installed."""

from types import ModuleType

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..weights.loading import Model
from ..weights.settings import wanted_fields


def import_diffusers() -> ModuleType:
    """Raises InputError where diffusers is not installed."""
    try:
        import diffusers
    except ImportError:
        raise InputError("this is measured against diffusers, which is not installed: pip install diffusers") from None
    return diffusers


class DiffusersUNet(nn.Module):
    """Called as ours is: latents (B, 4, h, w), time step, context (B, 77, width) → noise."""

    def __init__(self, model: Model, trainable: bool = False):
        """The tensors are shared with the model's where their memory is laid out as diffusers has it; trainable:
        diffusers' own default, gradients for every weight."""
        super().__init__()
        fields = wanted_fields(model.config)["unet/config.json"]
        sizes = {name: values[0] for name, values in fields.items() if name != "num_attention_heads"}  # refused
        with torch.device("meta"):
            self.network = import_diffusers().UNet2DConditionModel(**sizes)
        weights = {name: value.contiguous() for name, value in model.unet.state_dict().items()}
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
