"""Pictures side by side, each with its label under it."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from .editor import Result

MARGIN = 8  # pixels
PAPER, INK = (250, 249, 245), (60, 56, 50)


def contact_sheet(
    rows: list[list[Image.Image | None]], labels: Sequence[str] = (), title: str = "", scale: int = 1
) -> Image.Image:
    """One row of pictures a list, under a title and over the labels of the columns; None leaves a place empty.

    All pictures have the first one's size; `scale` enlarges them by whole pixels.
    """
    width, height = (side * scale for side in rows[0][0].size)
    font = ImageFont.load_default(max(12, height // 18))
    line = int(font.size * 1.6)
    top = MARGIN + (line if title else 0)
    bottom = top + len(rows) * (height + MARGIN)
    size = (MARGIN + len(rows[0]) * (width + MARGIN), bottom + (line if labels else 0))
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    if title:
        draw.text((size[0] / 2, MARGIN), title, INK, font, anchor="ma")
    for row, pictures in enumerate(rows):
        for column, picture in enumerate(pictures):
            if picture is not None:
                place = (MARGIN + column * (width + MARGIN), top + row * (height + MARGIN))
                sheet.paste(picture.resize((width, height), Image.Resampling.NEAREST), place)
    for column, label in enumerate(labels):
        draw.text((MARGIN + column * (width + MARGIN) + width / 2, bottom), label, INK, font, anchor="ma")
    return sheet


def edit_sheet(result: Result, text: str) -> Image.Image:
    """Input, reconstruction, transition and edit of one run, under its text."""
    pictures = [result.input, result.reconstruction, result.transition, result.image]
    scale = max(1, 256 // result.input.height)
    return contact_sheet([pictures], ["input", "reconstruction", "transition", "edit"], f"“{text}”", scale)
