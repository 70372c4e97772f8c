"""The VAE in tiles: the same numbers as `VAE.encode` and `VAE.decode`, but for rounding, in less memory.

A tile of the picture sent through the whole network has norms and an attention of its own, and its seams show. So it is
the layers that are tiled here: a layer's tiles are strips of rows, overlapping by the row that a 3×3 convolution
reaches over, and a norm takes its statistics over the whole picture first. Only a ResBlock's input and its hidden
layer exist at full size, and what can be is written over them; norms, SiLUs, copies and the convolutions' own buffers
exist a strip at a time. Attention, at an eighth of the picture's size, is left as it is.
"""

from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .memory import trim
from .models.layers import Downsample, ResnetBlock, Upsample
from .models.vae import VAE, Middle

STRIP = 2**20  # numbers in a strip, about


@torch.no_grad()
def encode(vae: VAE, pixels: Tensor) -> Tensor:
    """Pixels (B, 3, H, W) to scaled latents; see `VAE.encode`."""
    encoder = vae.encoder
    x = _convolve(pixels, encoder.conv_in)
    for block in encoder.down_blocks:
        x = _resnets(x, block.resnets)
        for sampler in getattr(block, "downsamplers", ()):
            x = _downsample(x, sampler)
    x = _convolve(_middle(x, encoder.mid_block), encoder.conv_out, encoder.conv_norm_out)
    return vae.quant_conv(x).chunk(2, dim=1)[0] * vae.config.scaling_factor


@torch.no_grad()
def decode(vae: VAE, latents: Tensor) -> Tensor:
    """Scaled latents to pixels; see `VAE.decode`."""
    decoder = vae.decoder
    x = _convolve(vae.post_quant_conv(latents / vae.config.scaling_factor), decoder.conv_in)
    x = _middle(x, decoder.mid_block)
    for block in decoder.up_blocks:
        x = _resnets(x, block.resnets)
        for sampler in getattr(block, "upsamplers", ()):
            x = _upsample(x, sampler)
    return _convolve(x, decoder.conv_out, decoder.conv_norm_out)


def _middle(x: Tensor, block: Middle) -> Tensor:
    return _resnets(block.attentions[0](_resnets(x, block.resnets[:1])), block.resnets[1:])


def _resnets(x: Tensor, blocks: Iterable[ResnetBlock]) -> Tensor:
    """Overwrites x."""
    spare = None
    for block in blocks:
        x, spare = _resnet(x, block, spare)
    return x


def _resnet(x: Tensor, block: ResnetBlock, spare: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """What the block makes of x, and a tensor of that shape that is left over, for the next one's `spare`. Overwrites
    x and `spare`."""
    shortcut, width = getattr(block, "conv_shortcut", None), block.conv1.out_channels
    norm, narrowing = _scale_and_shift(x, block.norm1), shortcut is not None and x.shape[1] >= 2 * width
    if narrowing:  # there is room in x for both the hidden layer and the shortcut
        hidden, out = x[:, :width], x[:, width : 2 * width]
    else:
        hidden = spare if spare is not None and shortcut is None else x.new_empty(x.shape[0], width, *x.shape[2:])
        out = x if shortcut is None else hidden
    for begin, end, window in _windows(x):
        kept = shortcut(x[:, :, begin:end]) if narrowing else None
        hidden[:, :, begin:end] = _convolve_window(_activate(window, *norm), block.conv1, begin == 0, end == x.shape[2])
        if narrowing:
            out[:, :, begin:end] = kept
    norm = _scale_and_shift(hidden, block.norm2)
    for begin, end, window in _windows(hidden):
        strip = _convolve_window(_activate(window, *norm), block.conv2, begin == 0, end == x.shape[2])
        kept = x[:, :, begin:end] if not narrowing else out[:, :, begin:end]
        out[:, :, begin:end] = strip.add_(kept if narrowing or shortcut is None else shortcut(kept))
    return out, None if out is hidden else hidden


def _convolve(x: Tensor, conv: nn.Conv2d, norm: nn.GroupNorm | None = None) -> Tensor:
    """3×3; with a norm, after it and a SiLU."""
    scale_and_shift = _scale_and_shift(x, norm) if norm else None
    out = x.new_empty(x.shape[0], conv.out_channels, *x.shape[2:])
    for begin, end, window in _windows(x, enlarged=max(1, conv.out_channels // conv.in_channels)):
        if scale_and_shift:
            window = _activate(window, *scale_and_shift)
        out[:, :, begin:end] = _convolve_window(window, conv, begin == 0, end == x.shape[2])
    return out


def _upsample(x: Tensor, sampler: Upsample) -> Tensor:
    batch, channels, height, width = x.shape
    out = x.new_empty(batch, channels, 2 * height, 2 * width)
    for begin, end, window in _windows(x, enlarged=4):
        rows = F.interpolate(window, scale_factor=2.0, mode="nearest")
        rows = rows[:, :, begin > 0 : rows.shape[2] - (end < height)]  # of a neighbour's two rows only the nearer
        out[:, :, 2 * begin : 2 * end] = _convolve_window(rows, sampler.conv, begin == 0, end == height)
    return out


def _downsample(x: Tensor, sampler: Downsample) -> Tensor:
    batch, channels, height, width = x.shape
    out = x.new_empty(batch, channels, height // 2, width // 2)
    step = _strip_rows(x)
    for begin in range(0, height // 2, step):
        rows = x[:, :, 2 * begin : 2 * (begin + step) + 1]
        rows = F.pad(rows, (0, 1, 0, int(2 * (begin + step) >= height)))
        out[:, :, begin : begin + step] = sampler.conv(rows)
    return out


def _windows(x: Tensor, enlarged: int = 1) -> Iterator[tuple[int, int, Tensor]]:
    """From the top, (begin, end, copy of the rows begin-1 … end that there are). The rows begin … end-1 of x may be
    overwritten before the next window is asked for. enlarged: how many times its size a window will grow."""
    step = max(1, _strip_rows(x) // enlarged)
    above = x[:, :, :0]
    for begin in range(0, x.shape[2], step):
        end = min(begin + step, x.shape[2])
        window = torch.cat([above, x[:, :, begin : end + 1]], dim=2)
        above = x[:, :, end - 1 : end].clone()
        yield begin, end, window
        trim()


def _strip_rows(x: Tensor) -> int:
    return max(1, STRIP // (x.shape[0] * x.shape[1] * x.shape[3]))


def _convolve_window(window: Tensor, conv: nn.Conv2d, top: bool, bottom: bool) -> Tensor:
    """The convolution of a window, without the rows that overlap; zeros only beyond the picture's own border."""
    if top or bottom:
        window = F.pad(window, (0, 0, int(top), int(bottom)))
    return F.conv2d(window, conv.weight, conv.bias, padding=(0, 1))


def _scale_and_shift(x: Tensor, norm: nn.GroupNorm) -> tuple[Tensor, Tensor]:
    """The norm over the whole picture as a factor and an addend for each channel: (B, C, 1, 1), float32."""
    groups = x.unflatten(1, (norm.num_groups, -1))  # [B, G, C / G, H, W]
    means, variances = [], []
    for group in groups.unbind(1):
        group = group.float()
        means.append(group.mean((1, 2, 3)))
        variances.append((group - means[-1][:, None, None, None]).square_().mean((1, 2, 3)))
    each = norm.num_channels // norm.num_groups
    mean, variance = (torch.stack(v, 1).repeat_interleave(each, 1) for v in (means, variances))  # [B, C]
    scale = norm.weight.float() * (variance + norm.eps).rsqrt()
    return scale[:, :, None, None], (norm.bias.float() - mean * scale)[:, :, None, None]


def _activate(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """SiLU of the norm."""
    return F.silu(torch.addcmul(shift, x.float(), scale).to(x.dtype), inplace=True)
