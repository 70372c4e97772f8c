"""Files of random weights at Stable Diffusion 1.5's size, as others lay theirs out: the tests write them."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch

from ..models.configs import SD15

TESTS = Path(__file__).parents[2] / "tests"
DONE = "written"  # an empty file, the last of all


def write_layouts(files: Path) -> None:
    """A Hugging Face folder with a variant, and a single file; 11 GB, unless they are there."""

    def write(checkpoints: ModuleType) -> None:
        weights = checkpoints.random_weights(SD15)
        folder = checkpoints.write_configs(files / "folder", SD15, checkpoints.full_merges())
        checkpoints.write_hugging_face(folder, weights)
        checkpoints.write_hugging_face(folder, weights, variant="fp16", dtype=torch.float16)
        checkpoints.write_single(files / "single.safetensors", checkpoints.ldm_tensors(weights))

    _once(files, "11 GB", write)


def write_folder(folder: Path) -> None:
    """A Hugging Face folder; 4.3 GB, unless it is there."""

    def write(checkpoints: ModuleType) -> None:
        checkpoints.write_configs(folder, SD15, checkpoints.full_merges())
        checkpoints.write_hugging_face(folder, checkpoints.random_weights(SD15))

    _once(folder, "4.3 GB", write)


def _once(folder: Path, size: str, write: Callable[[ModuleType], None]) -> None:
    if (folder / DONE).exists():
        return
    print(f"writing {size} of random weights …", file=sys.stderr)
    if str(TESTS) not in sys.path:
        sys.path.insert(0, str(TESTS))
    import checkpoints

    write(checkpoints)
    (folder / DONE).touch()
