"""What the shipped networks can do, each on its own, on held-out scenes."""

from collections.abc import Iterator
from itertools import combinations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..editor import Editor
from ..images import psnr, to_pixels
from ..models.image_encoder import ImageTower
from ..progress import Count, nobody
from .sampling import sample
from .training.clip import relative_distance
from .world.drawing import render
from .world.scene import ANIMALS, MEASURED_SEEDS, POSTURES, Scene
from .world.tasks import KINDS, variants

SAMPLING_STEPS = 25
BATCH = 25  # pictures sampled at once


def measure(editor: Editor, tower: ImageTower, count: int, watch: Count = nobody) -> dict[str, float]:
    """Scores over the first `count` measured scenes.

    zero_shot_*: how often the CLIP pair tells a drawn scene from the scenes that differ from it in that attribute.
    caption_distance_*: the least relative distance between the embeddings of two captions that differ in it.
    vae_psnr: dB of pictures coded and decoded. generated_*: as zero_shot, for pictures sampled from captions.
    """
    scenes = [Scene.random(seed) for seed in MEASURED_SEEDS[:count]]
    drawn = [render(scene) for scene in scenes]
    made = []
    for picture in generate(editor, scenes):
        made.append(picture)
        watch("pictures from captions", len(made), count)
    coded = [editor.decode(editor.encode(picture)) for picture in drawn]
    scores = {f"zero_shot_{name}": value for name, value in named_rightly(editor, tower, scenes, drawn).items()}
    scores |= {f"caption_distance_{name}": value for name, value in caption_distances(editor).items()}
    scores["vae_psnr"] = float(np.mean([psnr(a, b) for a, b in zip(coded, drawn)]))
    scores |= {f"generated_{name}": value for name, value in named_rightly(editor, tower, scenes, made).items()}
    return scores


def generate(editor: Editor, scenes: list[Scene]) -> Iterator[Image.Image]:
    """A picture from each scene's caption, at the model's own guidance."""
    side, null = editor.config.image_size // editor.config.latent_factor, editor.embed("", allow_empty=True)
    guidance = editor.settings().guidance
    for start in range(0, len(scenes), BATCH):
        texts = torch.cat([editor.embed(scene.caption()) for scene in scenes[start : start + BATCH]])
        for latents in sample(editor.model.unet, texts, null, side, SAMPLING_STEPS, guidance, seed=start).split(1):
            yield editor.decode(latents)


@torch.no_grad()
def named_rightly(
    editor: Editor, tower: ImageTower, scenes: list[Scene], pictures: list[Image.Image]
) -> dict[str, float]:
    """By attribute: how often the CLIP pair finds a picture nearest to its scene's own caption among the variants'."""
    images = torch.cat([tower.image_encoder(to_pixels(picture)) for picture in pictures])
    right = {attribute: [] for attribute in KINDS}
    for scene, image in zip(scenes, images):
        for attribute in KINDS:
            choices = variants(scene, attribute)
            texts = torch.cat([pooled_text(editor, tower, choice.caption()) for choice in choices])
            right[attribute].append(choices[int((texts @ image).argmax())] == scene)
    return {attribute: float(np.mean(values)) for attribute, values in right.items()}


@torch.no_grad()
def pooled_text(editor: Editor, tower: ImageTower, text: str) -> Tensor:
    """The text in the space it shares with pictures: (1, width)."""
    ids = editor.model.tokenizer(text)
    return tower.project_text(editor.embed(text), torch.tensor([ids.index(editor.model.tokenizer.end)]))


@torch.no_grad()
def caption_distances(editor: Editor) -> dict[str, float]:
    """By attribute: the least distance of two captions, over every animal, between any two values of the attribute."""
    least = {}
    for attribute in ("animal", "posture", "colour", "ground"):
        distances = []
        for animal in ANIMALS:
            scene = Scene(0, animal, POSTURES[animal][0], "brown", "grass")
            for a, b in combinations([variant.caption() for variant in variants(scene, attribute)], 2):
                ids = [torch.tensor([editor.model.tokenizer(text)]) for text in (a, b)]
                end = (ids[0] == editor.model.tokenizer.end).int().argmax(-1)
                distances.append(relative_distance(editor.embed(a), editor.embed(b), *ids, end).item())
        least[attribute] = min(distances)
    return least
