"""The three stages of training by name, in the order they are trained, and what each finds ready."""

import shutil
from pathlib import Path

from minibaret.errors import InputError
from minibaret.files import write_whole
from minibaret.weights.folder import CONFIG, IMAGE_ENCODER, MERGES, save_config, save_merges

from ..config import MINIATURE
from .clip import ClipStage
from .data import all_captions, training_pictures
from .merges import learn_merges
from .unet import UNetStage, training_latents
from .vae import VaeStage

EARLIER = {"clip": (), "vae": (), "unet": ("vae", "text_encoder")}  # what must be trained before
LATER = {"clip": ("unet",), "vae": ("unet",), "unet": ()}  # what is of no use after
# Each is built from runs, weights and scenes; earlier stages are read from `weights`.
STAGES = {"clip": ClipStage, "vae": VaeStage, "unet": UNetStage}


def prepare(name: str, runs: Path, weights: Path, scenes: int, start: Path | None = None) -> None:
    """Makes what the workers should find ready: the weights' folder with its config and the captions' merges, the
    training pictures, and for the UNet their latents.

    What a stage needs of earlier ones and the folder lacks is copied from `start`. Raises InputError where it is
    nowhere, and where the folder holds a later stage, which would not fit the new weights.
    """
    for part in LATER[name]:
        if (weights / f"{part}.safetensors").exists():
            raise InputError(
                f"{weights} holds a {part}, which is of no use with a new {name}: move it away, or name another folder"
            )
    weights.mkdir(parents=True, exist_ok=True)
    if start is not None:
        earlier = ("text_encoder.safetensors", IMAGE_ENCODER, "vae.safetensors") if name == "unet" else ()
        for file in (CONFIG, MERGES, *earlier):
            if (start / file).exists() and not (weights / file).exists():
                write_whole(weights / file, lambda unfinished, file=file: shutil.copyfile(start / file, unfinished))
    for part in EARLIER[name]:
        if not (weights / f"{part}.safetensors").is_file():
            raise InputError(f"the {name} is trained after the {part}, but there is no {part}.safetensors in {weights}")
    if not (weights / CONFIG).exists():
        save_config(MINIATURE, weights)
    if not (weights / MERGES).exists():
        merges = MINIATURE.text_encoder.vocabulary - 2 * 256 - 2  # all but the bytes, in two forms, and both ends
        save_merges(learn_merges(all_captions().values(), merges), weights / MERGES)
    training_pictures(runs, scenes)
    if name == "unet":
        training_latents(runs, weights, scenes)
