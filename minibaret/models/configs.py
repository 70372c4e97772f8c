"""The networks' sizes as frozen dataclasses; `SD15` are Stable Diffusion 1.5's."""

import re
from dataclasses import dataclass, field


@dataclass(frozen=True)
class UNetConfig:
    latent_channels: int = 4
    channels: tuple[int, ...] = (320, 640, 1280, 1280)  # one per level, finest first
    attention: tuple[bool, ...] = (True, True, True, False)  # levels with spatial transformers
    layers_per_block: int = 2  # ResBlocks per level on the way down; one more on the way up
    heads: int = 8
    context_width: int = 768
    groups: int = 32


@dataclass(frozen=True)
class TextEncoderConfig:
    vocabulary: int = 49408
    positions: int = 77
    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp_width: int = 3072


@dataclass(frozen=True)
class VAEConfig:
    latent_channels: int = 4
    channels: tuple[int, ...] = (128, 256, 512, 512)  # finest first; the picture is halved between levels: f = 8
    layers_per_block: int = 2  # ResBlocks per level in the encoder; one more in the decoder
    groups: int = 32
    scaling_factor: float = 0.18215  # 1 / standard deviation of the latents


@dataclass(frozen=True)
class ImageEncoderConfig:
    """The image half of the miniature's CLIP pair; Stable Diffusion 1.5 ships none."""

    channels: tuple[int, ...] = (24, 48, 96, 160)
    groups: int = 8
    width: int = 128  # of the space that text and pictures share


@dataclass(frozen=True)
class ModelConfig:
    name: str
    image_size: int  # pixels, the side pictures are brought to by default
    unet: UNetConfig = UNetConfig()
    text_encoder: TextEncoderConfig = TextEncoderConfig()
    vae: VAEConfig = VAEConfig()
    image_encoder: ImageEncoderConfig | None = None
    # Knobs this model wants instead of the papers': by name, for every method that has them; by method, for that one.
    defaults: dict[str, object] = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)  # of a conversion: SHA-256 by file
    words: tuple[str, ...] = ()  # all that it knows, lower case, where they are so few that they can be listed

    @property
    def latent_factor(self) -> int:
        """Pixels of the picture to one of the latents, each way."""
        return 2 ** (len(self.vae.channels) - 1)

    @property
    def size_multiple(self) -> int:
        """Picture sides are a multiple of this many pixels, so that every level of the UNet halves evenly."""
        return self.latent_factor * 2 ** (len(self.unet.channels) - 1)

    def unknown_words(self, text: str) -> list[str]:
        """The words of a text that are not among the model's, lower case, each once; none where it lists no words."""
        found = re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", text.lower()) if self.words else []
        return [word for word in dict.fromkeys(found) if word not in self.words]


SD15 = ModelConfig(name="stable-diffusion-1.5", image_size=512)
