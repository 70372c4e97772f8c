"""Pictures side by side, each with its label under it."""

import math
import textwrap
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .result import Result

MARGIN = 8  # pixels
PAPER, INK = (250, 249, 245), (60, 56, 50)
Cell = tuple[Image.Image | None, Sequence[str]]  # a picture, or an empty place, and the lines under it


def contact_sheet(rows: list[list[Cell]], title: str = "", scale: int = 1) -> Image.Image:
    """Rows of pictures, each over its lines, under a title. All pictures have the first one's size, where there is none
    128 pixels; `scale` enlarges them by whole pixels. A title that is wider than the row widens the sheet; a line that
    is wider than its picture goes on in the next."""
    first = next((picture.size for row in rows for picture, _ in row if picture), (128, 128))
    width, height = (side * scale for side in first)
    font = ImageFont.load_default(max(12, height // 18))
    rows = [
        [(picture, [part for text in label for part in _wrapped(text, font, width)]) for picture, label in row]
        for row in rows
    ]
    line = int(font.size * 1.4)
    lines = [max(len(label) for _, label in row) for row in rows]  # of each row
    top = MARGIN + (line + MARGIN if title else 0)
    wide = MARGIN + max(map(len, rows)) * (width + MARGIN)
    tall = top + sum(height + MARGIN + count * line for count in lines)
    size = max(wide, math.ceil(font.getlength(title)) + 2 * MARGIN), tall
    left = MARGIN + (size[0] - wide) // 2
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    if title:
        draw.text((size[0] / 2, MARGIN), title, INK, font, anchor="ma")
    for row, count in zip(rows, lines):
        for column, (picture, label) in enumerate(row):
            x = left + column * (width + MARGIN)
            if picture is not None:
                sheet.paste(picture.resize((width, height), Image.Resampling.NEAREST), (x, top))
            for number, text in enumerate(label):
                draw.text((x + width / 2, top + height + 2 + number * line), text, INK, font, anchor="ma")
        top += height + MARGIN + count * line
    return sheet


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """In lines of as many letters as fit."""
    for letters in range(len(text), 1, -1):
        lines = textwrap.wrap(text, letters)
        if max(map(font.getlength, lines), default=0) <= width:
            return lines
    return [text]


def columns_sheet(rows: Sequence[Sequence[Image.Image | None]], labels: Sequence[str] = ()) -> Image.Image:
    """Rows of pictures over one line of labels, one for each column; None leaves a place empty."""
    cells = [[(picture, ()) for picture in row] for row in rows]
    if labels:
        cells[-1] = [(picture, [label]) for picture, label in zip(rows[-1], labels)]
    return contact_sheet(cells)


def edit_sheet(result: Result, prompt: str) -> Image.Image:
    """The input, the branches whose pictures were asked for, and the edit, under the prompt."""
    order = [name for name in result.images if name != "edit"]
    cells = [(result.input, ["input"])] + [(result.images[name], [name]) for name in (*order, "edit")]
    return contact_sheet([cells], f"“{prompt}”", max(1, 256 // result.input.height))


def maps_sheet(result: Result, prompt: str, step: int | None = None) -> Image.Image:
    """The paper's Figure 3: for each branch, a row each, the picture and where it looks at each of the recorded words;
    at one step, or the mean of all recorded ones. A word's maps share one scale, from their lowest value to their
    highest; a word that a branch's prompt does not have leaves its place empty."""
    words, names = result.maps.request.words, [name for name in result.images if name in result.maps.branches]
    maps = {word: torch.stack([result.maps.of_word(word, name, step) for name in names]) for word in words}
    known = {word: found[found.isfinite()] for word, found in maps.items()}
    maps = {word: (found - known[word].min()) / (known[word].max() - known[word].min()) for word, found in maps.items()}
    rows = []
    for index, name in enumerate(names):
        picture = result.images[name]
        rows.append([(picture, [name])])
        for word in words:
            there = maps[word][index].isfinite().all()
            rows[-1].append((heat(picture, maps[word][index]), [word]) if there else (None, [f"no {word}"]))
    which = f"mean of {len(result.maps.words)} steps" if step is None else f"step {step}"
    return contact_sheet(rows, f"“{prompt}”, {which}", max(1, 256 // result.input.height))


def heat(picture: Image.Image, values: Tensor) -> Image.Image:
    """Values (h, w) in [0, 1] as black, red, yellow, white over the darkened grey picture."""
    size = picture.size
    values = Image.fromarray(values.float().numpy(), mode="F").resize(size, Image.Resampling.BICUBIC)
    value = np.asarray(values).clip(0, 1)[..., None]
    colour = (3 * value - np.arange(3)).clip(0, 1)  # red fills first, then green, then blue
    grey = np.asarray(picture.convert("L"), dtype=np.float32)[..., None] / 255
    blend = value * colour + (1 - value) * 0.35 * grey
    return Image.fromarray((blend * 255).round().astype(np.uint8))
