"""Pictures side by side, each with its label under it."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .result import Result

MARGIN = 8  # pixels
PAPER, INK = (250, 249, 245), (60, 56, 50)
PROCESSES = ("reconstruction", "transition", "edit")


def contact_sheet(
    rows: list[list[Image.Image | None]], labels: Sequence[str] = (), title: str = "", scale: int = 1
) -> Image.Image:
    """Each list is one row of pictures, under a title and over the labels of the columns; None leaves a place empty.

    All pictures have the first one's size; `scale` enlarges them by whole pixels. A title that is wider than the row
    widens the sheet.
    """
    width, height = (side * scale for side in rows[0][0].size)
    font = ImageFont.load_default(max(12, height // 18))
    line = int(font.size * 1.6)
    top = MARGIN + (line if title else 0)
    bottom = top + len(rows) * (height + MARGIN)
    wide = MARGIN + len(rows[0]) * (width + MARGIN)
    size = (max(wide, math.ceil(font.getlength(title)) + 2 * MARGIN), bottom + (line if labels else 0))
    left = MARGIN + (size[0] - wide) // 2
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    if title:
        draw.text((size[0] / 2, MARGIN), title, INK, font, anchor="ma")
    for row, pictures in enumerate(rows):
        for column, picture in enumerate(pictures):
            if picture is not None:
                place = (left + column * (width + MARGIN), top + row * (height + MARGIN))
                sheet.paste(picture.resize((width, height), Image.Resampling.NEAREST), place)
    for column, label in enumerate(labels):
        draw.text((left + column * (width + MARGIN) + width / 2, bottom), label, INK, font, anchor="ma")
    return sheet


def edit_sheet(result: Result, text: str) -> Image.Image:
    """Input, reconstruction, transition and edit of one run, under its text."""
    pictures = [result.input, *(result.images.get(name) for name in PROCESSES)]
    scale = max(1, 256 // result.input.height)
    return contact_sheet([pictures], ["input", *PROCESSES], f"“{text}”", scale)


def maps_sheet(result: Result, text: str, step: int | None = None) -> Image.Image:
    """The paper's Figure 3: for reconstruction, transition and edit, a row each, the picture and where it looks at each
    of the recorded words; at one step, or the mean of all recorded ones. A word's maps share one scale, from their
    lowest value to their highest."""
    pictures = [result.images[name] for name in PROCESSES]
    words = result.maps.request.words
    maps = {(word, process): result.maps.of_word(word, process, step) for word in words for process in PROCESSES}
    for word in words:
        values = torch.stack([maps[word, process] for process in PROCESSES])
        for process in PROCESSES:
            maps[word, process] = (maps[word, process] - values.min()) / (values.max() - values.min())
    rows = [
        [picture, *(heat(picture, maps[word, process]) for word in words)]
        for process, picture in zip(PROCESSES, pictures)
    ]
    scale = max(1, 256 // result.input.height)
    which = f"mean of {len(result.maps.words)} steps" if step is None else f"step {step}"
    title = f"“{text}”, {which}; from the top: {', '.join(PROCESSES)}"
    return contact_sheet(rows, ["", *words], title, scale)


def heat(picture: Image.Image, values: Tensor) -> Image.Image:
    """Values (h, w) in [0, 1] as black, red, yellow, white over the darkened grey picture."""
    size = picture.size
    values = Image.fromarray(values.float().numpy(), mode="F").resize(size, Image.Resampling.BICUBIC)
    value = np.asarray(values).clip(0, 1)[..., None]
    colour = (3 * value - np.arange(3)).clip(0, 1)  # red fills first, then green, then blue
    grey = np.asarray(picture.convert("L"), dtype=np.float32)[..., None] / 255
    blend = value * colour + (1 - value) * 0.35 * grey
    return Image.fromarray((blend * 255).round().astype(np.uint8))
