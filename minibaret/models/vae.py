"""The autoencoder of Stable Diffusion 1.5: pictures (B, 3, H, W) in [-1, 1] to latents (B, 4, H/8, W/8) and back.

Modules carry diffusers' names; the original is LDM's Encoder and Decoder (diffusionmodules/model.py). GroupNorm's eps
is 1e-6 throughout.
"""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from .configs import VAEConfig
from .layers import Downsample, ResnetBlock, Upsample

EPS = 1e-6


class VAE(nn.Module):
    def __init__(self, config: VAEConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.quant_conv = nn.Conv2d(2 * config.latent_channels, 2 * config.latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(config.latent_channels, config.latent_channels, 1)
        self.decoder = Decoder(config)

    def moments(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) in [-1, 1] → mean and log-variance (clamped to [-30, 20]) of the latents' distribution, before
        scaling, (B, 4, H/8, W/8) each."""
        mean, logvar = self.quant_conv(self.encoder(pixels)).chunk(2, dim=1)
        return mean, logvar.clamp(-30.0, 20.0)

    def encode(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] → (B, 4, H/8, W/8), the scaled mean: the latents the diffusion works on."""
        return self.moments(pixels)[0] * self.config.scaling_factor

    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents (B, 4, H/8, W/8) → pixels (B, 3, H, W), about [-1, 1], not clamped."""
        return self.decoder(self.post_quant_conv(latents / self.config.scaling_factor))


class Encoder(nn.Module):
    def __init__(self, config: VAEConfig):
        super().__init__()
        widths = config.channels
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        width = widths[0]
        for level, out in enumerate(widths):
            last = level == len(widths) - 1
            sampler = None if last else Downsample(out, asymmetric=True)
            self.down_blocks.append(Level(config, width, out, config.layers_per_block, downsampler=sampler))
            width = out
        self.mid_block = Middle(config, width)
        self.conv_norm_out = nn.GroupNorm(config.groups, width, EPS)
        self.conv_out = nn.Conv2d(width, 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        x = self.mid_block(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class Decoder(nn.Module):
    def __init__(self, config: VAEConfig):
        super().__init__()
        widths = config.channels[::-1]
        width = widths[0]
        self.conv_in = nn.Conv2d(config.latent_channels, width, 3, padding=1)
        self.mid_block = Middle(config, width)
        self.up_blocks = nn.ModuleList()
        for level, out in enumerate(widths):
            last = level == len(widths) - 1
            sampler = None if last else Upsample(out)
            self.up_blocks.append(Level(config, width, out, config.layers_per_block + 1, upsampler=sampler))
            width = out
        self.conv_norm_out = nn.GroupNorm(config.groups, width, EPS)
        self.conv_out = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(x))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class Level(nn.Module):
    """ResBlocks at one resolution, then the step to the next."""

    def __init__(
        self,
        config: VAEConfig,
        width_in: int,
        width_out: int,
        layers: int,
        downsampler: nn.Module | None = None,
        upsampler: nn.Module | None = None,
    ):
        super().__init__()
        widths = [width_in] + [width_out] * layers
        self.resnets = nn.ModuleList(ResnetBlock(a, b, config.groups, EPS) for a, b in pairwise(widths))
        if downsampler is not None:
            self.downsamplers = nn.ModuleList([downsampler])
        if upsampler is not None:
            self.upsamplers = nn.ModuleList([upsampler])

    def forward(self, x: Tensor) -> Tensor:
        for resnet in self.resnets:
            x = resnet(x)
        for sampler in [*getattr(self, "downsamplers", ()), *getattr(self, "upsamplers", ())]:
            x = sampler(x)
        return x


class Middle(nn.Module):
    def __init__(self, config: VAEConfig, width: int):
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(width, width, config.groups, EPS) for _ in range(2))
        self.attentions = nn.ModuleList([PixelAttention(width, config.groups)])

    def forward(self, x: Tensor) -> Tensor:
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class PixelAttention(nn.Module):
    """Self-attention over the pixels with a single head, added to the input."""

    def __init__(self, width: int, groups: int):
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, width, EPS)
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)  # [B, HW, C]
        q, k, v = (layer(tokens)[:, None] for layer in (self.to_q, self.to_k, self.to_v))
        tokens = self.to_out[0](F.scaled_dot_product_attention(q, k, v)[:, 0])
        return x + tokens.transpose(1, 2).reshape(x.shape)
