"""Stage 2, the VAE: pictures through 4 × 16 × 16 numbers and back; L1 and squared error on the pixels, L1 on their
gradients, a light KL."""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from minibaret.images import to_image
from minibaret.models.vae import VAE
from minibaret.sheet import columns_sheet
from minibaret.weights.folder import save_part
from minibaret.weights.strict import load_part

from ..config import MINIATURE
from .data import normalized, training_pictures
from .loop import Stage

SQUARED_WEIGHT = 8.0
LEARN_ENCODER = True  # False: the decoder alone learns, and a UNet that was trained on these latents stays of use
KL_WEIGHT = 6.4e-4  # of a latent number's mean, against a pixel's


class VaeStage(Stage):
    name = "vae"
    parts = ("vae",)
    learning_rate = 1e-3 if LEARN_ENCODER else 5e-4
    batch = 8

    def __init__(self, runs: Path, weights: Path, count: int):
        self.pictures = training_pictures(runs, count)
        self.vae = VAE(MINIATURE.vae)
        for part in (self.vae.encoder, self.vae.quant_conv):
            part.requires_grad_(LEARN_ENCODER)
        self.modules = nn.ModuleDict({"vae": self.vae})

    def loss(self, batch: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        indices = torch.randint(len(self.pictures), (batch,), generator=generator)
        pixels = normalized(self.pictures[indices]).contiguous()
        mean, logvar = (moment.float() for moment in self.vae.moments(pixels))
        made = self.vae.decode(sample_latents(mean, logvar, generator)).float()
        error = made - pixels
        edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        psnr = -10 * (error.square().mean() / 4).log10().item()
        loss = error.abs().mean() + edges + SQUARED_WEIGHT * error.square().mean() + KL_WEIGHT * kl
        return loss, {"psnr": psnr, "kl": kl.item(), "deviation": mean.std().item()}

    def samples(self, path: Path) -> None:
        pixels = normalized(self.pictures[:12])
        made = self.vae.decode(self.vae.encode(pixels))
        grid(torch.cat([pixels, made]), 6).save(path)

    @staticmethod
    def read(weights: Path) -> nn.ModuleDict:
        return nn.ModuleDict({"vae": load_part(lambda: VAE(MINIATURE.vae), weights / "vae.safetensors")})

    def export(self, weights: Path) -> None:
        save_part(self.vae, weights / "vae.safetensors")


def sample_latents(mean: Tensor, logvar: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """A draw from the latents' distribution, before scaling."""
    noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
    return mean + noise * (0.5 * logvar).exp()


def grid(pixels: Tensor, columns: int) -> Image.Image:
    """Pictures (B, 3, H, W) in [-1, 1] as one picture, `columns` wide."""
    return columns_sheet([[to_image(picture) for picture in row.split(1)] for row in pixels.split(columns)])
