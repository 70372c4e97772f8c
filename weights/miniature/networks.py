"""What the networks can do, each on its own, on drawn scenes."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import torch
from PIL import Image

from minibaret.editor import Editor
from minibaret.evaluation.networks import pooled_text
from minibaret.evaluation.scoring import Laboratory, Scorer, Scores
from minibaret.images import psnr, to_pixels
from minibaret.models.image_encoder import ImageTower

from .sampling import sample
from .training.clip import relative_distance
from .world.drawing import render
from .world.scene import ANIMALS, POSTURES, Scene
from .world.tasks import KINDS, variants

STEPS, GUIDANCE = 50, 7.5  # of the pictures from captions
BATCH = 10  # scenes that are scored in one go


def kept_scores(scorer: Scorer, seeds: Sequence[int]) -> list[Scores]:
    """`scores` of every seed's scene, in order, made where they are not kept."""
    groups = [seeds[start : start + BATCH] for start in range(0, len(seeds), BATCH)]
    scorer.make("networks", _scores, groups, _of)
    return [scorer.kept.get(_of(seed)) for seed in seeds]


def _of(seed: int) -> dict:
    return {"networks, scene": seed}


def _scores(laboratory: Laboratory, seeds: Sequence[int]) -> list[Scores]:
    editor, networks = laboratory.open()
    return scores(editor, networks.tower, seeds)


def scores(editor: Editor, tower: ImageTower, seeds: Sequence[int]) -> list[Scores]:
    """Of each seed's scene.

    vae_psnr: dB of its picture coded and decoded. zero_shot_*: whether the CLIP pair tells the picture's caption from
    those that differ in that attribute. generated_*: the same of a picture sampled from the caption at guidance 7.5.
    wholly_right, wholly_right_at_1: whether it is right in every attribute, at guidance 7.5 and 1. saturation,
    drawn_saturation: at 7.5, and of the drawing.
    """
    scenes = [Scene.random(seed) for seed in seeds]
    made, unguided = (generate(editor, scenes, guidance) for guidance in (GUIDANCE, 1.0))
    found = []
    for scene, picture, alone in zip(scenes, made, unguided):
        drawn = render(scene, editor.config.image_size)
        shown = named_rightly(editor, tower, scene, picture)
        found.append(
            {
                "vae_psnr": psnr(editor.sd.decode(editor.sd.encode(drawn)), drawn),
                **{f"zero_shot_{kind}": right for kind, right in named_rightly(editor, tower, scene, drawn).items()},
                **{f"generated_{kind}": right for kind, right in shown.items()},
                "wholly_right": all(shown.values()),
                "wholly_right_at_1": all(named_rightly(editor, tower, scene, alone).values()),
                "saturation": saturation(picture),
                "drawn_saturation": saturation(drawn),
            }
        )
    return found


def generate(editor: Editor, scenes: list[Scene], guidance: float) -> list[Image.Image]:
    """A picture from each scene's caption; its noise is drawn from the scene's seed."""
    side, captions = editor.config.image_size // editor.config.latent_factor, [scene.caption() for scene in scenes]
    context, seeds = torch.cat([editor.sd.embed(caption) for caption in captions]), [scene.seed for scene in scenes]
    latents = sample(editor.sd.unet, context, editor.sd.embed(""), side, STEPS, guidance, seeds)
    return [editor.sd.decode(one) for one in latents.split(1)]


def saturation(picture: Image.Image) -> float:
    """The mean of its pixels' saturation (HSV), 0 to 1."""
    return float(np.asarray(picture.convert("HSV"))[..., 1].mean()) / 255


@torch.no_grad()
def named_rightly(editor: Editor, tower: ImageTower, scene: Scene, picture: Image.Image) -> dict[str, bool]:
    """By attribute: whether the CLIP pair finds the picture nearest to the scene's own caption among the variants'."""
    image, right = tower.image_encoder(to_pixels(picture))[0], {}
    for kind in KINDS:
        choices = variants(scene, kind)
        texts = torch.cat([pooled_text(editor.sd, tower, choice.caption()) for choice in choices])
        right[kind] = choices[int((texts @ image).argmax())] == scene
    return right


@torch.no_grad()
def caption_distances(editor: Editor) -> dict[str, float]:
    """By attribute: the least relative distance of two captions' embeddings, over every animal, between any two values
    of the attribute."""
    least = {}
    for attribute in ("animal", "posture", "colour", "ground"):
        scenes = [Scene(0, animal, POSTURES[animal][0], "brown", "grass") for animal in ANIMALS]
        pairs = [pair for scene in scenes for pair in combinations(variants(scene, attribute), 2)]
        distances = []
        for a, b in ([scene.caption() for scene in pair] for pair in pairs):
            ids = [torch.tensor([editor.sd.tokens(caption)]) for caption in (a, b)]
            end = (ids[0] == editor.sd.tokenizer.end).int().argmax(-1)
            distances.append(relative_distance(editor.sd.embed(a), editor.sd.embed(b), *ids, end).item())
        least[attribute] = min(distances)
    return least
