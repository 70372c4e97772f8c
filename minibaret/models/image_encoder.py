"""The image half of a small CLIP pair: pictures to unit vectors in the space that text and pictures share.

Stable Diffusion 1.5 has no such part; the miniature's pair gives it a text encoder that was trained against pictures,
and a CLIPScore.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .configs import ImageEncoderConfig, TextEncoderConfig
from .layers import Downsample, ResnetBlock


class ImageEncoder(nn.Module):
    """A convolutional tower: a 7×7 convolution to a quarter of the size, a ResBlock and half the size at each level,
    the mean over what remains, a projection."""

    def __init__(self, config: ImageEncoderConfig):
        super().__init__()
        widths = config.channels
        self.conv_in = nn.Conv2d(3, widths[0], 7, stride=4, padding=3)
        layers: list[nn.Module] = []
        for a, b in zip(widths, (*widths[1:], widths[-1])):
            layers += [ResnetBlock(a, b, config.groups, 1e-5), Downsample(b)]
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(widths[-1])
        self.projection = nn.Linear(widths[-1], config.width, bias=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels (B, 3, H, W) in [-1, 1] → (B, width), length 1."""
        x = self.conv_in(pixels)
        for layer in self.layers:
            x = layer(x)
        return F.normalize(self.projection(self.norm(x.flatten(2).mean(-1))).float(), dim=-1)


class ImageTower(nn.Module):
    """What a CLIPScore needs beside the text encoder: the image encoder and the text's projection."""

    def __init__(self, text: TextEncoderConfig, image: ImageEncoderConfig):
        super().__init__()
        self.image_encoder = ImageEncoder(image)
        self.text_projection = nn.Linear(text.width, image.width, bias=False)

    def project_text(self, hidden: Tensor, positions: Tensor) -> Tensor:
        """Token embeddings (B, n, width), read off at one position per row → (B, shared width), length 1."""
        chosen = hidden[torch.arange(len(hidden), device=hidden.device), positions]
        return F.normalize(self.text_projection(chosen).float(), dim=-1)
