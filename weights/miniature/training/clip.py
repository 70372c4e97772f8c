"""Stage 1, the CLIP pair: pictures and captions into one space, and captions that differ in a word kept well apart."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minibaret.models.configs import ImageEncoderConfig, TextEncoderConfig
from minibaret.models.image_encoder import ImageTower
from minibaret.models.text_encoder import TextEncoder
from minibaret.models.tokenizer import ClipTokenizer
from minibaret.weights.folder import IMAGE_ENCODER, save_part
from minibaret.weights.strict import load_part

from ..config import MINIATURE
from .data import (
    EMBEDDING_SCALE,
    OMISSIONS,
    UNNAMED,
    all_captions,
    attributes,
    normalized,
    training_pictures,
    training_scene,
)
from .loop import Stage

SHORT, FULL_ODDS = 20, 0.1  # nine steps of ten read only the first tokens, which hold every caption and some padding
APART = 0.6  # the least relative distance wanted between the embeddings of captions that differ in one word


class ClipPair(ImageTower):
    """A text encoder and an image encoder whose outputs for a picture and its caption point the same way."""

    def __init__(self, text: TextEncoderConfig, image: ImageEncoderConfig):
        super().__init__(text, image)
        self.text_encoder = TextEncoder(text)
        self.logit_scale = nn.Parameter(torch.tensor(2.6592))  # ln(1 / 0.07), as CLIP starts


class ClipStage(Stage):
    """CLIP's contrastive loss with three additions.

    A caption fits every picture that has what it names, so the targets are shared among all that fit. Each caption
    brings one that differs in a single attribute, as a further negative. Their token embeddings are pushed apart
    where they are closer than APART, since the diffusion model reads the tokens and not the pooled text; and the text
    is read off at a random token from its end on, so that padding, which the diffusion model reads too, carries it as
    well.
    """

    name = "clip"
    parts = ("text_encoder", "image_encoder")
    batch = 128

    def __init__(self, runs: Path, weights: Path, count: int):
        self.pictures = training_pictures(runs, count)
        self.tokenizer = ClipTokenizer.from_merges(weights / "merges.txt")
        self.captions = all_captions()
        self.ids = {key: self.tokenizer(text) for key, text in self.captions.items()}
        self.pair = ClipPair(MINIATURE.text_encoder, MINIATURE.image_encoder)
        self.modules = nn.ModuleDict({"clip": self.pair})

    def loss(self, batch: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng(int(torch.randint(2**31, (1,), generator=generator)))
        indices = rng.integers(len(self.pictures), size=batch)
        scenes = [training_scene(int(index)) for index in indices]
        shown = np.array([attributes(scene) for scene in scenes])
        told = np.array([attributes(scene, OMISSIONS[rng.choice(4, p=(0.7, 0.1, 0.1, 0.1))]) for scene in scenes])
        other = np.array([_one_word_off(row, rng, self.captions) for row in told])
        texts = np.concatenate([told, other])
        ids = torch.tensor([self.ids[tuple(row)] for row in texts.tolist()])
        ids = ids if rng.random() < FULL_ODDS else ids[:, :SHORT]
        hidden = self.pair.text_encoder(ids)
        ends = (ids == self.tokenizer.end).int().argmax(-1)
        later = (torch.rand(len(ids), generator=generator) * (ids.shape[1] - ends)).long()
        later *= torch.rand(len(ids), generator=generator) < 0.5  # half of them at the end token itself
        text = self.pair.project_text(hidden, ends + later)
        image = self.pair.image_encoder(normalized(self.pictures[indices]))
        logits = self.pair.logit_scale.exp().clamp(max=100) * image @ text.T  # [B, 2B]
        fits = torch.from_numpy(((texts[None] == UNNAMED) | (texts[None] == shown[:, None])).all(-1)).float()
        to_text = F.cross_entropy(logits, fits / fits.sum(1, keepdim=True))
        to_image = F.cross_entropy(logits[:, :batch].T, fits[:, :batch].T / fits[:, :batch].sum(0)[:, None])
        distance = relative_distance(hidden[:batch].float(), hidden[batch:].float(), ids[:batch], ids[batch:], ends)
        apart = (APART - distance).clamp(min=0).square().mean()
        right = fits.gather(1, logits.argmax(1, keepdim=True)).mean()
        figures = {"right": right.item(), "distance": distance.mean().item(), "closest": distance.min().item()}
        return 0.5 * (to_text + to_image) + 4 * apart, figures

    def samples(self, path: Path) -> None:
        """A contrastive pair draws nothing; its figures are in the log."""

    @staticmethod
    def read(weights: Path) -> nn.ModuleDict:
        """All but the temperature, which is not exported and begins anew."""
        pair = ClipPair(MINIATURE.text_encoder, MINIATURE.image_encoder)
        text_encoder = load_part(lambda: TextEncoder(MINIATURE.text_encoder), weights / "text_encoder.safetensors")
        pair.text_encoder.load_state_dict(text_encoder.state_dict())
        scale_embedding(pair.text_encoder, 1 / EMBEDDING_SCALE)
        tower = load_part(lambda: ImageTower(MINIATURE.text_encoder, MINIATURE.image_encoder), weights / IMAGE_ENCODER)
        pair.load_state_dict(tower.state_dict(), strict=False)
        return nn.ModuleDict({"clip": pair})

    def export(self, weights: Path) -> None:
        scale_embedding(self.pair.text_encoder, EMBEDDING_SCALE)
        save_part(self.pair.text_encoder, weights / "text_encoder.safetensors")
        scale_embedding(self.pair.text_encoder, 1 / EMBEDDING_SCALE)
        tower = ImageTower(MINIATURE.text_encoder, MINIATURE.image_encoder)
        tower.load_state_dict({name: self.pair.state_dict()[name] for name in tower.state_dict()})
        save_part(tower, weights / IMAGE_ENCODER)


@torch.no_grad()
def scale_embedding(encoder: TextEncoder, factor: float) -> None:
    """Multiplies what the encoder returns; what reads it afterwards must be divided."""
    encoder.final_layer_norm.weight.mul_(factor)
    encoder.final_layer_norm.bias.mul_(factor)


def relative_distance(a: Tensor, b: Tensor, ids_a: Tensor, ids_b: Tensor, ends_a: Tensor) -> Tensor:
    """RMS difference of two captions' embeddings over the RMS of the embeddings, from the first token that differs to
    the first caption's end token. a, b: (B, n, width) → (B,)."""
    positions = torch.arange(ids_a.shape[1])
    first = (ids_a != ids_b).int().argmax(-1)
    inside = ((positions >= first[:, None]) & (positions <= ends_a[: len(first), None]))[..., None].float()
    size = (0.5 * (a.square() + b.square()) * inside).sum((1, 2))
    return (((a - b).square() * inside).sum((1, 2)) / size + 1e-8).sqrt()


def _one_word_off(row: np.ndarray, rng: np.random.Generator, captions: dict) -> tuple[int, ...]:
    """The attributes of a caption that differs in one of those named."""
    while True:
        changed = row.copy()
        place = rng.integers(len(row))
        changed[place] = rng.integers(5)
        if row[place] != UNNAMED and changed[place] != row[place] and tuple(changed.tolist()) in captions:
            return tuple(changed.tolist())
