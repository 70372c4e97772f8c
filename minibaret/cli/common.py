"""What several commands do with their options."""

import argparse
import sys
from pathlib import Path

from PIL import Image

from ..editor import Editor
from ..errors import InputError
from ..files import same_place
from ..images import check_writable, write_image
from ..loading import load
from ..memory import Savings
from ..methods.common import fits
from ..sampler import Schedule
from .options import PROG


def open_editor(options: argparse.Namespace) -> Editor:
    return load(*loading(options))


def loading(options: argparse.Namespace) -> tuple:
    """The arguments of `load`."""
    savings = Savings(options.on_demand, options.tiled_vae, options.checkpointing)
    model = (options.weights, options.device, options.dtype, options.variant, options.tokenizer)
    return (*model, options.memory, savings, options.compile)


def size_of(options: argparse.Namespace, editor: Editor, size: tuple[int, int] | None = None) -> tuple[int, int]:
    width, height = size or 2 * [editor.config.image_size]
    return editor.check_size(
        (width if options.width is None else options.width, height if options.height is None else options.height)
    )


def check_outputs(options: argparse.Namespace, *paths: Path | None) -> None:
    """Raises InputError where a picture could not be written to one of these, before any work is done for it."""
    paths = [path for path in paths if path]
    if len(paths) == 2 and same_place(*paths):
        raise InputError(f"--output and --sheet must be two files, got {paths[0]} for both")
    for path in paths:
        check_writable(path, options.force)


def check_pictures(
    options: argparse.Namespace, size: tuple[int, int], pictures: dict[Path | None, tuple[int, int]]
) -> None:
    """Raises InputError where a file cannot hold the columns and rows of pictures of that size given for it."""
    for path, (columns, rows) in pictures.items():
        if path:
            check_writable(path, options.force, (columns * size[0], rows * size[1]))


def write_picture(options: argparse.Namespace, picture: Image.Image, path: Path) -> None:
    write_image(picture, path, options.force)
    options.written.append(path)


def warn_of_steps(steps: int | None) -> None:
    warning = Schedule(steps).warning() if fits("steps", steps) else None
    if warning:
        print(f"{PROG}: {warning}", file=sys.stderr)


def warn_of_words(editor: Editor, options: argparse.Namespace) -> None:
    words = editor.config.unknown_words(f"{options.prompt} {options.source_prompt or ''}")
    if words:
        said = f"{editor.config.name} does not know these words and takes no sense from them: {', '.join(words)}"
        print(f"{PROG}: {said}; Stable Diffusion 1.5 knows most words (--weights PATH)", file=sys.stderr)
