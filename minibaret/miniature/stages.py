"""The three stages of training by name; each is imported only when it is built."""

from importlib import import_module
from pathlib import Path

from .data import training_pictures
from .loop import Stage

STAGES = {"clip": "ClipStage", "vae": "VaeStage", "unet": "UNetStage"}  # in the order they are trained


def prepare(name: str, runs: Path, weights: Path, scenes: int) -> None:
    """Draws the training pictures, and for the UNet encodes them, so that the workers find them ready."""
    training_pictures(runs, scenes)
    if name == "unet":
        from .train_unet import training_latents

        training_latents(runs, weights, scenes)


def build(name: str, runs: Path, weights: Path, scenes: int) -> Stage:
    """The stage `name`, ready to train on that many scenes; earlier stages are read from `weights`."""
    module = import_module(f".train_{name}", __package__)
    return getattr(module, STAGES[name])(runs, weights, scenes)
