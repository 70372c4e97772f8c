"""Stage 3, the UNet: predicts the noise in the VAE's latents from the caption's embeddings, some of them empty."""

import dataclasses
import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn

from ...files import write_whole
from ...models.configs import MINIATURE
from ...models.text_encoder import TextEncoder
from ...models.unet import Attention, UNet
from ...models.vae import VAE
from ...sampler import TRAINING_STEPS, cumulative_alphas
from ...weights.folder import load_part, read_config, read_tokenizer, save_config, save_part
from ..sampling import sample
from ..world.fingerprint import world_fingerprint
from .coupling import couple, layout_numbers, read_numbers
from .data import OMISSIONS, all_captions, attributes, normalized, training_pictures, training_scene
from .loop import Stage
from .vae import grid

EMPTY_CAPTIONS = 0.1
SNR_LIMIT = 5.0  # min-SNR weighting (Hang et al. 2023)
HIGH_NOISE_POWER = -0.75  # of the signal-to-noise ratio, the weight where it is below 1: there the layout is decided
LAYOUT_WEIGHT = 0.3  # of the squared error of the numbers that the noise tells, at every noise level the same
# The part of the pictures that is shown as DDIM inversion sees them, with the empty text. Their loss asks only for the
# layout's numbers, not for the rest of the noise: for the empty text the UNet is then not exactly a noise predictor.
INVERTED_SHARE = 0.25
OMISSION_ODDS = (0.76, 0.08, 0.08, 0.08)  # whole captions, and those that leave out colour, ground or both


class UNetStage(Stage):
    name = "unet"
    parts = ("unet",)
    learning_rate = 5e-4
    batch = 32
    ema = 0.999

    def __init__(self, runs: Path, weights: Path, count: int):
        scale, self.latents = training_latents(runs, weights, count)
        self.vae_config = dataclasses.replace(MINIATURE.vae, scaling_factor=scale)
        self.vae = load_part(lambda: VAE(self.vae_config), weights / "vae.safetensors")
        self.texts, self.row = caption_embeddings(weights)
        self.scenes = [training_scene(index) for index in range(count)]
        self.numbers = layout_numbers(self.scenes)
        self.alphas = cumulative_alphas()
        self.unet = UNet(MINIATURE.unet)
        for module in self.unet.modules():
            if isinstance(module, Attention):
                module.implementation = "reference"  # an eighth faster here than PyTorch's, whose backward pass is slow
        self.modules = nn.ModuleDict({"unet": self.unet})

    def loss(self, batch: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        indices = torch.randint(len(self.latents), (batch,), generator=generator)
        timesteps = torch.randint(TRAINING_STEPS, (batch,), generator=generator)
        alphas = self.alphas[timesteps][:, None, None, None]
        latents, numbers = self.latents[indices].float(), self.numbers[indices]
        inverted = torch.rand(batch, generator=generator) < INVERTED_SHARE
        empty = torch.rand(batch, generator=generator) < EMPTY_CAPTIONS
        texts = self._captions(indices, inverted | empty, generator)

        noise = couple(torch.randn(latents.shape, generator=generator), numbers)
        guess = as_an_inversion_guesses(noise, numbers, timesteps, generator)
        shown = torch.where(inverted[:, None, None, None], guess, noise)
        residual = self.unet(alphas.sqrt() * latents + (1 - alphas).sqrt() * shown, timesteps, texts).float() - noise
        error = residual.square().mean((1, 2, 3)) * ~inverted / (1 - INVERTED_SHARE)
        layout_error = read_numbers(residual).square().mean(1)
        # `error` leaves out the inverted pictures; what it is divided by makes its mean that over the others
        loss = (error * noise_weight((alphas / (1 - alphas)).flatten()) + LAYOUT_WEIGHT * layout_error).mean()
        figures = {
            "error": error.mean(),
            "noisy": 2 * (error * (timesteps >= 500)).mean(),
            "layout": (layout_error * inverted).sum() / inverted.sum().clamp(min=1),
        }
        return loss, {name: value.item() for name, value in figures.items()}

    def _captions(self, indices: Tensor, empty: Tensor, generator: torch.Generator) -> Tensor:
        """Embeddings (B, 77, width) of the scenes' captions, some of them with omissions."""
        omitted = torch.multinomial(torch.tensor(OMISSION_ODDS), len(indices), replacement=True, generator=generator)
        rows = [self.row[attributes(self.scenes[i], OMISSIONS[o])] for i, o in zip(indices.tolist(), omitted.tolist())]
        return self.texts[torch.where(empty, 0, torch.tensor(rows))].float()

    def samples(self, path: Path) -> None:
        """Training captions 0 … 23 from fixed noise, 25 steps, guidance 3."""
        texts = self.texts[[self.row[attributes(scene)] for scene in self.scenes[:24]]].float()
        latents = sample(self.unet, texts, self.texts[:1].float(), self.latents.shape[-1], steps=25, guidance=3.0)
        grid(self.vae.decode(latents), 8).save(path)

    @staticmethod
    def read(weights: Path) -> nn.ModuleDict:
        return nn.ModuleDict({"unet": load_part(lambda: UNet(MINIATURE.unet), weights / "unet.safetensors")})

    def export(self, weights: Path) -> None:
        save_part(self.unet, weights / "unet.safetensors")
        defaults = read_config(weights).defaults
        save_config(dataclasses.replace(MINIATURE, vae=self.vae_config, defaults=defaults), weights)


def as_an_inversion_guesses(noise: Tensor, numbers: Tensor, timesteps: Tensor, generator: torch.Generator) -> Tensor:
    """A rough stand-in, not measured, for the noise that DDIM inversion has built up when it reaches a timestep: weaker
    than the real noise, with numbers of the layout that are less accurate the closer it still is to the picture."""
    share = (timesteps / TRAINING_STEPS)[:, None]
    guess = share.sqrt() * numbers + (1 - share).sqrt() * torch.randn(numbers.shape, generator=generator)
    return torch.rand(len(noise), 1, 1, 1, generator=generator) * couple(noise, guess)


def noise_weight(snr: Tensor) -> Tensor:
    """The weight of the error of the predicted noise, by the signal-to-noise ratio: min-SNR's above 1, more below.

    Where there is almost nothing but noise, the error of the predicted noise is small whatever the model says of the
    picture, and min-SNR's weight of 1 would leave the layout, which is decided there, nearly untrained.
    """
    return snr.clamp(max=SNR_LIMIT) / snr * snr.clamp(max=1) ** HIGH_NOISE_POWER


@torch.no_grad()
def training_latents(runs: Path, weights: Path, count: int) -> tuple[float, Tensor]:
    """The scale factor, and the first `count` training pictures as scaled latents, float16 (count, 4, 16, 16).

    Encoded once for a VAE and kept in `runs`.
    """
    file = weights / "vae.safetensors"
    path = runs / f"latents-{count}-{world_fingerprint()}-{hashlib.sha256(file.read_bytes()).hexdigest()[:16]}.pt"
    if not path.exists():
        pictures = training_pictures(runs, count)
        vae = load_part(lambda: VAE(MINIATURE.vae), file).to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            means = [vae.moments(normalized(pictures[i : i + 50]))[0].float() for i in range(0, count, 50)]
        unscaled = torch.cat(means)
        scale = 1 / unscaled.std().item()
        found = {"scale": scale, "latents": (unscaled * scale).half()}
        write_whole(path, lambda unfinished: torch.save(found, unfinished))
    saved = torch.load(path, weights_only=True)
    return saved["scale"], saved["latents"]


@torch.no_grad()
def caption_embeddings(weights: Path) -> tuple[Tensor, dict[tuple[int, ...], int]]:
    """Embeddings (captions + 1, 77, width) of every caption, the empty one in row 0, and each caption's row by
    attributes."""
    tokenizer = read_tokenizer(weights)
    encoder = load_part(lambda: TextEncoder(MINIATURE.text_encoder), weights / "text_encoder.safetensors")
    captions = all_captions()
    ids = torch.tensor([tokenizer(text) for text in ("", *captions.values())])
    embeddings = torch.cat([encoder(part) for part in ids.split(64)])
    return embeddings.half(), {key: 1 + row for row, key in enumerate(captions)}
