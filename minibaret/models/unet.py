"""The UNet of Stable Diffusion 1.5: predicts the noise in latents, given a time step and a text embedding.

Modules carry diffusers' names. Every spatial transformer has a self-attention site (attn1) and a cross-attention site
(attn2); `Injection` says, for each kind of site, which row of the batch every row takes its attention map from.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..kernels import attention
from ..kernels.rows import take_rows
from .configs import UNetConfig
from .injection import NO_INJECTION, Injection, Share
from .layers import Downsample, ResnetBlock, Upsample
from .recorder import MapRecorder

KeysValues = tuple[Tensor, Tensor]  # of one text at one cross-attention site, [B, 77, H, D] each
ProjectedText = list[KeysValues]  # of one text at every cross-attention site, in the order that `forward` meets them
Shares = tuple[Share | None, Share | None]  # for self-attention, for cross-attention


class UNet(nn.Module):
    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = config
        widths, time_width = config.channels, 4 * config.channels[0]
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.time_embedding = TimeEmbedding(widths[0], time_width)
        self.down_blocks, self.up_blocks = nn.ModuleList(), nn.ModuleList()
        skips = [widths[0]]
        width = widths[0]
        for level, out in enumerate(widths):
            block = Block(config, time_width, config.attention[level])
            for _ in range(config.layers_per_block):
                block.append(width, out)
                width = out
                skips.append(width)
            if level < len(widths) - 1:
                block.downsamplers = nn.ModuleList([Downsample(width)])
                skips.append(width)
            self.down_blocks.append(block)
        self.mid_block = Block(config, time_width, True)
        self.mid_block.append(width, width)
        self.mid_block.resnets.append(ResnetBlock(width, width, config.groups, 1e-5, time_width))
        for level, out in reversed(list(enumerate(widths))):
            block = Block(config, time_width, config.attention[level])
            for _ in range(config.layers_per_block + 1):
                block.append(width + skips.pop(), out)
                width = out
            if level > 0:
                block.upsamplers = nn.ModuleList([Upsample(width)])
            self.up_blocks.append(block)
        self.conv_norm_out = nn.GroupNorm(config.groups, width, 1e-5)
        self.conv_out = nn.Conv2d(width, config.latent_channels, 3, padding=1)

    def set_checkpointing(self, on: bool) -> None:
        """Gradient checkpointing, layer by layer: less memory for one more forward, and the same gradient."""
        for block in (*self.down_blocks, self.mid_block, *self.up_blocks):
            block.checkpointing = on

    def forward(
        self,
        latents: Tensor,
        timesteps: Tensor,
        text: Tensor | ProjectedText,
        injection: Injection = NO_INJECTION,
        recorder: MapRecorder | None = None,
    ) -> Tensor:
        """latents (B, 4, H/8, W/8), timesteps (B,) or (), text: embeddings (B, 77, width) or what `project_text` made
        of them → predicted noise, shaped as the latents. recorder: writes down attention maps, where somebody wants to
        see them."""
        texts = iter(self.project_text(text) if isinstance(text, Tensor) else text)
        shares = injection.shares(latents.shape[0])
        time = self.time_embedding(timesteps.expand(latents.shape[0]))  # [B, 4C]
        x = self.conv_in(latents)
        skips = [x]
        for block in self.down_blocks:
            for layer in range(len(block.resnets)):
                x = block.layer(layer, x, time, next(texts) if block.attends else None, shares, recorder)
                skips.append(x)
            if hasattr(block, "downsamplers"):
                x = block.downsamplers[0](x)
                skips.append(x)
        x = self.mid_block.layer(0, x, time, next(texts), shares, recorder)
        x = self.mid_block.resnets[1](x, time)
        for block in self.up_blocks:
            for layer in range(len(block.resnets)):
                x = torch.cat([x, skips.pop()], dim=1)
                x = block.layer(layer, x, time, next(texts) if block.attends else None, shares, recorder)
            if hasattr(block, "upsamplers"):
                x = block.upsamplers[0](x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))

    def project_text(self, context: Tensor) -> ProjectedText:
        """Embeddings (B, 77, width) → the keys and values of every cross-attention site. They do not depend on latents
        or time step, so a text that stays the same is projected once."""
        blocks = (*self.down_blocks, self.mid_block, *self.up_blocks)
        transformers = [transformer for block in blocks if block.attends for transformer in block.attentions]
        return [transformer.transformer_blocks[0].attn2.project(context.to(self.dtype)) for transformer in transformers]

    @property
    def dtype(self) -> torch.dtype:
        return self.conv_in.weight.dtype


def join_texts(texts: Sequence[ProjectedText]) -> ProjectedText:
    """Projected texts as the rows of one batch."""
    return [tuple(torch.cat(rows) for rows in zip(*site)) for site in zip(*texts)]


class Block(nn.Module):
    """One level on the way down or up, or the middle: ResBlocks, each followed by a spatial transformer where there
    are any."""

    checkpointing = False  # where a gradient is wanted, keep a layer's input only and compute it once more backwards

    def __init__(self, config: UNetConfig, time_width: int, transformers: bool):
        super().__init__()
        self.config, self.time_width, self.attends = config, time_width, transformers
        self.resnets = nn.ModuleList()
        if transformers:
            self.attentions = nn.ModuleList()

    def append(self, width_in: int, width_out: int) -> None:
        self.resnets.append(ResnetBlock(width_in, width_out, self.config.groups, 1e-5, self.time_width))
        if self.attends:
            self.attentions.append(SpatialTransformer(width_out, self.config))

    def layer(self, *arguments) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(self._layer, *arguments, use_reentrant=False, preserve_rng_state=False)
        return self._layer(*arguments)

    def _layer(
        self, index: int, x: Tensor, time: Tensor, text: KeysValues | None, shares: Shares, recorder: MapRecorder | None
    ) -> Tensor:
        x = self.resnets[index](x, time)
        return self.attentions[index](x, text, shares, recorder) if self.attends else x


class TimeEmbedding(nn.Module):
    """Sinusoids of the time step, cosines first, in float32 whatever the weights, then two linear layers."""

    def __init__(self, width: int, width_out: int):
        super().__init__()
        self.width = width
        self.linear_1 = nn.Linear(width, width_out)
        self.linear_2 = nn.Linear(width_out, width_out)

    def forward(self, timesteps: Tensor) -> Tensor:
        half = self.width // 2
        exponents = torch.arange(half, device=timesteps.device, dtype=torch.float32) / half
        angles = timesteps.float()[:, None] * torch.exp(-math.log(10000) * exponents)
        sinusoids = torch.cat([angles.cos(), angles.sin()], dim=-1).to(self.linear_1.weight.dtype)
        return self.linear_2(F.silu(self.linear_1(sinusoids)))


class SpatialTransformer(nn.Module):
    """GroupNorm, 1×1 convolution, a transformer block over the pixels, 1×1 convolution, added to the input."""

    def __init__(self, width: int, config: UNetConfig):
        super().__init__()
        self.norm = nn.GroupNorm(config.groups, width, eps=1e-6)
        self.proj_in = nn.Conv2d(width, width, 1)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(width, config)])
        self.proj_out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor, text: KeysValues, shares: Shares, recorder: MapRecorder | None) -> Tensor:
        batch, channels, height, width = x.shape
        tokens = self.norm(x).permute(0, 2, 3, 1).reshape(batch, -1, channels)  # [B, HW, C], no copy when channels_last
        tokens = F.linear(tokens, self.proj_in.weight.flatten(1), self.proj_in.bias)  # the 1×1 convolution, on tokens
        tokens = self.transformer_blocks[0](tokens, text, shares, recorder)
        tokens = F.linear(tokens, self.proj_out.weight.flatten(1), self.proj_out.bias)
        return x + tokens.view(batch, height, width, channels).permute(0, 3, 1, 2)


class TransformerBlock(nn.Module):
    def __init__(self, width: int, config: UNetConfig):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn1 = Attention(width, width, config.heads)
        self.norm2 = nn.LayerNorm(width)
        self.attn2 = Attention(width, config.context_width, config.heads)
        self.norm3 = nn.LayerNorm(width)
        self.ff = FeedForward(width)

    def forward(self, x: Tensor, text: KeysValues, shares: Shares, recorder: MapRecorder | None) -> Tensor:
        self_share, cross_share = shares
        x = x + self.attn1(self.norm1(x), None, self_share, recorder and recorder.record_self)
        x = x + self.attn2(self.norm2(x), text, cross_share, recorder and recorder.record_cross)
        return x + self.ff(self.norm3(x))


class Attention(nn.Module):
    """Multi-head attention from x to a text, or to x itself where there is none. With a share, only the rows whose maps
    are taken project queries and keys. record(q, k, source), if given, is called with the queries and keys of all maps
    to choose from, and each row's choice."""

    implementation = "auto"  # of `minibaret.kernels.attention`

    def __init__(self, width: int, context_width: int, heads: int):
        super().__init__()
        if width % heads:
            raise ValueError(f"{heads} heads cannot share a width of {width}")
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context_width, width, bias=False)
        self.to_v = nn.Linear(context_width, width, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(
        self,
        x: Tensor,
        text: KeysValues | None = None,
        share: Share | None = None,
        record: Callable[[Tensor, Tensor, Sequence[int] | None], None] | None = None,
    ) -> Tensor:
        mapped = x if share is None else take_rows(x, share.project)
        q = self._split(self.to_q(mapped))
        if text is None:
            k, v = self._split(self.to_k(mapped)), self._split(self.to_v(x))
        else:
            k, v = text if share is None else (take_rows(text[0], share.project), text[1])
        if share is not None:
            q, k = share.exchange(self, q, k)
        source = share and share.source
        if record is not None:
            record(q, k, source)
        return self.to_out[0](attention(q, k, v, source, self.implementation).flatten(2))

    def project(self, context: Tensor) -> KeysValues:
        return self._split(self.to_k(context)), self._split(self.to_v(context))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1))  # [B, N, H, D]


class FeedForward(nn.Module):
    """GEGLU: the first half of the projection is the value, the second half, through the exact GELU, its gate."""

    def __init__(self, width: int):
        super().__init__()
        self.net = nn.ModuleList([nn.Module(), nn.Identity(), nn.Linear(4 * width, width)])
        self.net[0].proj = nn.Linear(width, 8 * width)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.net[0].proj(x).chunk(2, dim=-1)
        return self.net[2](value * F.gelu(gate))
