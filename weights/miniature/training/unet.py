"""Stage 3, the UNet: predicts the noise in the VAE's latents from a caption's embeddings. The noise is independent of
the picture, and many captions are wrong, partial or empty, as those of pictures from the web are."""

import dataclasses
import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn

from minibaret.files import write_whole
from minibaret.models.text_encoder import TextEncoder
from minibaret.models.tokenizer import ClipTokenizer
from minibaret.models.unet import Attention, UNet
from minibaret.models.vae import VAE
from minibaret.sampler import TRAINING_STEPS, cumulative_alphas
from minibaret.weights.folder import MERGES, read_config, save_config, save_part
from minibaret.weights.strict import load_part

from ..config import MINIATURE
from ..sampling import sample
from ..world.fingerprint import world_fingerprint
from .data import EMBEDDING_SCALE, OMISSIONS, all_captions, attributes, normalized, training_pictures, training_scene
from .loop import Stage
from .vae import grid

EMPTY_CAPTIONS = 0.1
SNR_LIMIT = 5.0  # min-SNR weighting (Hang et al. 2023)
HIGH_NOISE_POWER = -0.5  # of the signal-to-noise ratio, the weight where it is below 1: there the layout is decided
WRONG_CAPTIONS = 0.3  # of another scene: without guidance a caption is then half believed
OMISSION_ODDS = (0.7, 0.1, 0.1, 0.1)  # whole captions, and those that leave out colour, ground or both


class UNetStage(Stage):
    name = "unet"
    parts = ("unet",)
    learning_rate = 5e-4
    batch = 64

    def __init__(self, runs: Path, weights: Path, count: int):
        scale, self.latents = training_latents(runs, weights, count)
        self.vae_config = dataclasses.replace(MINIATURE.vae, scaling_factor=scale)
        self.vae = load_part(lambda: VAE(self.vae_config), weights / "vae.safetensors")
        self.texts, self.row = caption_embeddings(weights)
        self.scenes = [training_scene(index) for index in range(count)]
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
        latents = self.latents[indices].float()
        noise = torch.randn(latents.shape, generator=generator)
        noisy = alphas.sqrt() * latents + (1 - alphas).sqrt() * noise
        predicted = self.unet(noisy, timesteps, self._captions(indices, generator)).float()
        error = (predicted - noise).square().mean((1, 2, 3))
        loss = (error * noise_weight((alphas / (1 - alphas)).flatten())).mean()
        figures = {"error": error.mean(), "noisy": 2 * (error * (timesteps >= 500)).mean()}
        return loss, {name: value.item() for name, value in figures.items()}

    def _captions(self, indices: Tensor, generator: torch.Generator) -> Tensor:
        """Embeddings (B, 77, width) of the scenes' captions: some of another scene, some with omissions, some empty."""
        count = len(indices)
        wrong, empty = (torch.rand(count, generator=generator) < share for share in (WRONG_CAPTIONS, EMPTY_CAPTIONS))
        told = torch.where(wrong, torch.randint(len(self.scenes), (count,), generator=generator), indices)
        omitted = torch.multinomial(torch.tensor(OMISSION_ODDS), count, replacement=True, generator=generator)
        rows = [self.row[attributes(self.scenes[i], OMISSIONS[o])] for i, o in zip(told.tolist(), omitted.tolist())]
        return self.texts[torch.where(empty, 0, torch.tensor(rows))].float()

    def samples(self, path: Path) -> None:
        """Training captions 0 … 11 from fixed noise, 25 steps: at guidance 1 above, at 7.5 below."""
        texts = self.texts[[self.row[attributes(scene)] for scene in self.scenes[:12]]].float()
        side, null = self.latents.shape[-1], self.texts[:1].float()
        latents = [sample(self.unet, texts, null, side, steps=25, guidance=guidance) for guidance in (1.0, 7.5)]
        grid(self.vae.decode(torch.cat(latents)), 6).save(path)

    @staticmethod
    def read(weights: Path) -> nn.ModuleDict:
        unet = load_part(lambda: UNet(MINIATURE.unet), weights / "unet.safetensors")
        scale_context(unet, EMBEDDING_SCALE)
        return nn.ModuleDict({"unet": unet})

    def export(self, weights: Path) -> None:
        scale_context(self.unet, 1 / EMBEDDING_SCALE)
        save_part(self.unet, weights / "unet.safetensors")
        scale_context(self.unet, EMBEDDING_SCALE)
        defaults = read_config(weights).defaults
        save_config(dataclasses.replace(MINIATURE, vae=self.vae_config, defaults=defaults), weights)


@torch.no_grad()
def scale_context(unet: UNet, factor: float) -> None:
    """Multiplies what reads the text's embeddings, so that embeddings divided by the factor give the same noise."""
    for name, value in unet.named_parameters():
        if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")):
            value.mul_(factor)


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
    """Embeddings (captions + 1, 77, width) of every caption, as large as before EMBEDDING_SCALE, the empty in row 0;
    and each caption's row by attributes."""
    tokenizer = ClipTokenizer.from_merges(weights / MERGES)
    encoder = load_part(lambda: TextEncoder(MINIATURE.text_encoder), weights / "text_encoder.safetensors")
    captions = all_captions()
    ids = torch.tensor([tokenizer(text) for text in ("", *captions.values())])
    embeddings = torch.cat([encoder(part) for part in ids.split(64)])
    return (embeddings / EMBEDDING_SCALE).half(), {key: 1 + row for row, key in enumerate(captions)}
