"""The UNet of Stable Diffusion 1.5: predicts the noise in latents, given a time step and a text embedding.

Modules carry diffusers' names; the original is LDM's UNetModel (openaimodel.py, attention.py). Every spatial
transformer has a self-attention layer (attn1) and a cross-attention layer (attn2). A `RowControl` (control.py) says,
for each of them, whose queries, keys and values the rows of the batch use.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checkpointing import checkpoint
from ..control import Layer, RowControl
from ..kernels import attention
from ..kernels.rows import take_rows
from .configs import UNetConfig
from .layers import Downsample, ResnetBlock, Upsample

PIECE = 1024  # tokens that the feed-forward layer transforms at once on a CPU


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
            block = Block(config, time_width, "down", level)
            for _ in range(config.layers_per_block):
                block.append(width, out)
                width = out
                skips.append(width)
            if level < len(widths) - 1:
                block.downsamplers = nn.ModuleList([Downsample(width)])
                skips.append(width)
            self.down_blocks.append(block)
        self.mid_block = Block(config, time_width, "mid", len(widths) - 1)
        self.mid_block.append(width, width)
        self.mid_block.resnets.append(ResnetBlock(width, width, config.groups, 1e-5, time_width))
        for level, out in reversed(list(enumerate(widths))):
            block = Block(config, time_width, "up", level)
            for _ in range(config.layers_per_block + 1):
                block.append(width + skips.pop(), out)
                width = out
            if level > 0:
                block.upsamplers = nn.ModuleList([Upsample(width)])
            self.up_blocks.append(block)
        self.conv_norm_out = nn.GroupNorm(config.groups, width, 1e-5)
        self.conv_out = nn.Conv2d(width, config.latent_channels, 3, padding=1)
        resnets = attentions = 0
        for block in self.blocks:
            block.first_resnet, block.first_attention = resnets, attentions
            resnets, attentions = resnets + len(block.resnets), attentions + len(block.attentions)

    @property
    def blocks(self) -> list["Block"]:
        """In the order they run."""
        return [*self.down_blocks, self.mid_block, *self.up_blocks]

    def layers(self, height: int, width: int) -> list[Layer]:
        """Every place that a control is asked about, for latents of that size, in the order they run."""
        found = []
        for block in self.blocks:
            tokens = (height >> block.level) * (width >> block.level)
            for index in range(len(block.resnets)):
                found.append(block.layer("features", index, tokens))
                if index < len(block.attentions):
                    found += [block.layer("self", index, tokens), block.layer("cross", index, tokens)]
        return found

    def set_checkpointing(self, on: bool) -> None:
        """Gradient checkpointing, layer by layer: less memory for one more forward, and the same gradient."""
        for block in self.blocks:
            block.checkpointing = on

    def forward(self, latents: Tensor, timesteps: Tensor, context: Tensor, control: RowControl | None = None) -> Tensor:
        """latents (B, 4, H/8, W/8), timesteps (B,) or (), context: prompt embeddings (B, 77, width) → predicted noise,
        shaped as the latents. control: whose queries, keys, values and features the rows use where not their own."""
        time = self.time_embedding(timesteps.expand(latents.shape[0]))  # [B, 4C]
        x = self.conv_in(latents)
        skips = [x]
        for block in self.down_blocks:
            for index in range(len(block.resnets)):
                x = block(index, x, time, context, control)
                skips.append(x)
            if hasattr(block, "downsamplers"):
                x = block.run(block.downsamplers[0], x)
                skips.append(x)
        for index in range(2):
            x = self.mid_block(index, x, time, context, control)
        for block in self.up_blocks:
            for index in range(len(block.resnets)):
                x = block(index, torch.cat([x, skips.pop()], dim=1), time, context, control)
            if hasattr(block, "upsamplers"):
                x = block.run(block.upsamplers[0], x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))

    @property
    def dtype(self) -> torch.dtype:
        return self.conv_in.weight.dtype


class Block(nn.Module):
    """One level on the way down or up, or the middle: ResBlocks, each followed by a spatial transformer where there
    is one."""

    checkpointing = False  # where a gradient is wanted, keep a layer's input only and compute it once more backwards
    ready: Callable[[nn.Module], object] | None = None  # called before each layer, where weights are streamed
    first_resnet = first_attention = 0  # how many run before this block's

    def __init__(self, config: UNetConfig, time_width: int, part: str, level: int):
        """part: "down", "mid" or "up"; level: 0 is the finest."""
        super().__init__()
        self.config, self.time_width, self.part, self.level = config, time_width, part, level
        self.resnets = nn.ModuleList()
        self.attentions = nn.ModuleList()

    def append(self, width_in: int, width_out: int) -> None:
        self.resnets.append(ResnetBlock(width_in, width_out, self.config.groups, 1e-5, self.time_width))
        if self.part == "mid" or self.config.attention[self.level]:
            self.attentions.append(SpatialTransformer(width_out, self.config))

    def layer(self, kind: str, index: int, tokens: int) -> Layer:
        first = self.first_resnet if kind == "features" else self.first_attention
        return Layer(kind, first + index, tokens, self.part, self.level)

    def forward(self, index: int, x: Tensor, time: Tensor, context: Tensor, control: RowControl | None) -> Tensor:
        """One ResBlock and its transformer."""
        tokens = x.shape[2] * x.shape[3]
        rows = control and control.features.get(self.layer("features", index, tokens))
        x = self.run(self.resnets[index], x, time, rows)
        if index < len(self.attentions):
            layers = [self.layer(kind, index, tokens) for kind in ("self", "cross")]
            x = self.run(self.attentions[index], x, context, control, *layers)
        return x

    def run(self, layer: nn.Module, *arguments) -> Tensor:
        """One layer of the block, as `checkpointing` and `ready` say."""
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(self._run, layer, *arguments)
        if torch.is_grad_enabled():  # views: a layer's gradients are summed in the order that checkpointing has
            arguments = [value.view_as(value) if isinstance(value, Tensor) else value for value in arguments]
        return self._run(layer, *arguments)

    def _run(self, layer: nn.Module, *arguments) -> Tensor:
        if self.ready is not None:
            self.ready(layer)
        return layer(*arguments)


class TimeEmbedding(nn.Module):
    """Sinusoids of the time step, cosines first, in float32 whatever the weights, then two linear layers."""

    def __init__(self, width: int, width_out: int):
        super().__init__()
        self.width = width
        self.linear_1 = nn.Linear(width, width_out)
        self.linear_2 = nn.Linear(width_out, width_out)

    def forward(self, timesteps: Tensor) -> Tensor:
        """timesteps (B,) → (B, width_out)."""
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

    def forward(self, x: Tensor, context: Tensor, control: RowControl | None, *layers: Layer) -> Tensor:
        """x (B, C, h, w), context (B, M, context width) → (B, C, h, w). layers: names of its two attention layers."""
        batch, channels, height, width = x.shape
        tokens = self.norm(x).permute(0, 2, 3, 1).reshape(batch, -1, channels)  # [B, HW, C], no copy when channels_last
        tokens = F.linear(tokens, self.proj_in.weight.flatten(1), self.proj_in.bias)  # the 1×1 convolution, on tokens
        tokens = self.transformer_blocks[0](tokens, context, control, *layers)
        tokens = F.linear(tokens, self.proj_out.weight.flatten(1), self.proj_out.bias)
        return x + tokens.view(batch, height, width, channels).permute(0, 3, 1, 2)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention and a feed-forward layer, each on normed tokens and added to them."""

    def __init__(self, width: int, config: UNetConfig):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn1 = Attention(width, width, config.heads)
        self.norm2 = nn.LayerNorm(width)
        self.attn2 = Attention(width, config.context_width, config.heads)
        self.norm3 = nn.LayerNorm(width)
        self.ff = FeedForward(width)

    def forward(
        self, x: Tensor, context: Tensor, control: RowControl | None, self_layer: Layer, cross_layer: Layer
    ) -> Tensor:
        """x (B, N, width), context (B, M, context width) → (B, N, width)."""
        h = self.norm1(x)
        x = x + self.attn1(h, h, control, self_layer)
        x = x + self.attn2(self.norm2(x), context, control, cross_layer)
        return x + self.ff(self.norm3(x))


class Attention(nn.Module):
    """Multi-head attention from x to a context: a prompt's embedding, or x itself. Only the queries, keys and values
    that some row uses are projected."""

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
        self, x: Tensor, context: Tensor, control: RowControl | None = None, layer: Layer | None = None
    ) -> Tensor:
        """x (B, N, width), context (B, M, context width) → (B, N, width)."""
        rows = control and control.attention.get(layer)
        in_q, in_k, in_v = (x, context, context) if rows is None else map(take_rows, (x, context, context), rows[:3])
        q, k, v = self._split(self.to_q(in_q)), self._split(self.to_k(in_k)), self._split(self.to_v(in_v))
        if rows and rows.words:
            mixed = [torch.einsum("mn,nhd->mhd", words.to(v.dtype), v[place])[None] for place, words in rows.words]
            v = torch.cat([v, *mixed])
        if control:
            control.record(layer, q, k, rows)
        out = attention(q, k, v, rows and rows.takes, self.implementation)
        return self.to_out[0](out.flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1))  # [B, N, H, D]


class FeedForward(nn.Module):
    """GEGLU: the first half of the projection is the value, the second half, through the exact GELU, its gate.

    The hidden layer is eight times as wide as x, and at 4096 tokens a row too large for a processor's cache: on a CPU
    the tokens go through in pieces.
    """

    def __init__(self, width: int):
        super().__init__()
        self.net = nn.ModuleList([nn.Module(), nn.Identity(), nn.Linear(4 * width, width)])
        self.net[0].proj = nn.Linear(width, 8 * width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, width) → the same shape."""
        tokens = x.flatten(0, -2)
        pieces = tokens.split(PIECE) if x.device.type == "cpu" else [tokens]
        return torch.cat([self._transform(piece) for piece in pieces]).view(x.shape)

    def _transform(self, tokens: Tensor) -> Tensor:
        project = self.net[0].proj
        halves = zip(project.weight.chunk(2), project.bias.chunk(2))  # as two products: each is contiguous
        value, gate = (F.linear(tokens, *half) for half in halves)
        return self.net[2](value * F.gelu(gate))
