"""What the miniature is trained on: scenes of the training seeds, their pictures and captions. No other seed is
reachable here."""

from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from minibaret.files import write_whole

from ..world.drawing import render
from ..world.fingerprint import world_fingerprint
from ..world.scene import ADDITIONS, ANIMALS, COLOURS, GROUNDS, POSTURES, TRAINING_SEEDS, Scene

OMISSIONS = ((), ("colour",), ("ground",), ("colour", "ground"))
# The shipped text encoder's last layer norm is a tenth of the trained one, and the UNet's keys and values of the text
# are ten times theirs: the noise is the same, and Adam's step of 1e-3 on an embedding goes as far as one of 1e-2 did.
EMBEDDING_SCALE = 0.1
UNNAMED = -1  # an attribute that a caption leaves open


def training_scene(index: int) -> Scene:
    """Scene number `index` of the training set. Raises IndexError beyond the training seeds."""
    return Scene.random(TRAINING_SEEDS[index])


def training_pictures(folder: Path, count: int, size: int = 128) -> np.ndarray:
    """The first `count` training scenes as uint8 (count, size, size, 3), drawn once for a state of
    the world and kept in `folder`."""
    path = folder / f"pictures-{count}-{size}-{world_fingerprint()}.npy"

    def draw(unfinished: str) -> None:
        pictures = np.lib.format.open_memmap(unfinished, mode="w+", dtype=np.uint8, shape=(count, size, size, 3))
        for index in range(count):
            pictures[index] = np.asarray(render(training_scene(index), size))
        pictures.flush()

    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, draw)
    return np.load(path, mmap_mode="r")


def attributes(scene: Scene, omit: tuple[str, ...] = ()) -> tuple[int, ...]:
    """The named attributes as numbers: animal, posture, colour, ground, addition; UNNAMED where omitted."""
    return (
        ANIMALS.index(scene.animal),
        POSTURES[scene.animal].index(scene.posture),
        UNNAMED if "colour" in omit else COLOURS.index(scene.colour),
        UNNAMED if "ground" in omit else GROUNDS.index(scene.ground),
        ADDITIONS.index(scene.addition),
    )


def all_captions() -> dict[tuple[int, ...], str]:
    """Every caption the world has, by its attributes; whole ones and those that omit the colour, the ground or both."""
    captions = {}
    for animal, place, colour, ground, addition in product(ANIMALS, range(4), COLOURS, GROUNDS, ADDITIONS):
        scene = Scene(0, animal, POSTURES[animal][place], colour, ground, addition)
        for omit in OMISSIONS:
            captions[attributes(scene, omit)] = scene.caption(omit)
    return captions


def normalized(pictures: np.ndarray) -> Tensor:
    """uint8 (B, H, W, 3) → (B, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
