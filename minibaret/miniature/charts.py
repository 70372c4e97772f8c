"""Charts drawn with Pillow: axes with round numbers, lines over them, numbered points."""

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from ..sheet import INK, PAPER

FINE = 2  # everything is drawn so many times larger, then averaged down
GRID, ACCENT, SOFT = (226, 222, 212), (196, 84, 40), (150, 146, 138)
FONT, DOT = 14, 4  # height and radius, in pixels
NEAR = 1.6  # of a letter's height: points as near as that share a label

Point = tuple[float, float]


class Axes:
    """A plot area inside `box` (left, top, right, bottom, in pixels of the chart) of a picture drawn `FINE` times."""

    def __init__(
        self,
        draw: ImageDraw.ImageDraw,
        box: tuple[int, int, int, int],
        x_range: Point,
        y_range: Point,
        title: str,
        x_label: str,
    ):
        self.draw, self.box = draw, tuple(FINE * side for side in box)
        self.x_range, self.y_range = padded(x_range), padded(y_range)
        left, top, right, bottom = self.box
        for x in ticks(*self.x_range):
            place = self.place(x, self.y_range[0])
            draw.line([(place[0], top), place], GRID, FINE)
            draw.text((place[0], bottom + 5 * FINE), plain(x), INK, font(), anchor="ma")
        for y in ticks(*self.y_range):
            place = self.place(self.x_range[0], y)
            draw.line([place, (right, place[1])], GRID, FINE)
            draw.text((left - 6 * FINE, place[1]), plain(y), INK, font(), anchor="rm")
        draw.line([(left, top), (left, bottom), (right, bottom)], INK, FINE)
        draw.text((left, top - 7 * FINE), title, INK, font(), anchor="ls")
        draw.text((right, bottom + 24 * FINE), x_label, INK, font(), anchor="ra")

    def place(self, x: float, y: float) -> Point:
        """Where a point lies on the picture; what lies outside the ranges is drawn at their edge."""
        left, top, right, bottom = self.box
        across, up = (_share(value, ends) for value, ends in ((x, self.x_range), (y, self.y_range)))
        return left + across * (right - left), bottom - up * (bottom - top)

    def line(self, points: Sequence[Point], colour=ACCENT) -> None:
        self.draw.line([self.place(*point) for point in points], colour, 2 * FINE, joint="curve")

    def upright(self, x: float) -> None:
        """A thin line at x from bottom to top."""
        self.draw.line([self.place(x, end) for end in self.y_range], SOFT, FINE)

    def dot(self, x: float, y: float, filled: bool = False) -> None:
        place, radius = self.place(x, y), DOT * FINE
        corners = [side + sign * radius for sign in (-1, 1) for side in place]
        self.draw.ellipse(corners, ACCENT if filled else PAPER, ACCENT, FINE)

    def label(self, x: float, y: float, text: str) -> None:
        """A text beside the dot at a point."""
        place = self.place(x, y)
        self.draw.text((place[0] + 1.5 * DOT * FINE, place[1] - DOT * FINE), text, INK, font(), anchor="ls")


def scatter(
    points: Sequence[Point],
    labels: Sequence[str],
    title: str,
    x_label: str,
    y_label: str,
    y_range: Point,
    marked: int | None = None,
) -> Image.Image:
    """Numbered points and, under them, what each number stands for; the marked one is filled.

    The numbers of points that lie close together stand in one label.
    """
    width, plot, line = 860, 420, 20  # pixels
    image, draw = canvas(width, plot + 90 + line * len(labels), title)
    across = [x for x, _ in points]
    axes = Axes(draw, (70, 70, width - 40, plot), (min(across), max(across)), y_range, y_label, x_label)
    groups: list[list[int]] = []
    for index, point in enumerate(points):
        place = axes.place(*point)
        near = [group for group in groups if math.dist(axes.place(*points[group[0]]), place) < NEAR * FONT * FINE]
        if near:
            near[0].append(index)
        else:
            groups.append([index])
    for group in groups:
        for index in group:
            axes.dot(*points[index])
        axes.label(*points[group[0]], ", ".join(str(index + 1) for index in group))
    if marked is not None:
        axes.dot(*points[marked], filled=True)
    for number, label in enumerate(labels, 1):
        top = (plot + 60 + line * (number - 1)) * FINE
        draw.text((90 * FINE, top), str(number), INK, font(), anchor="ra")
        draw.text((100 * FINE, top), label, INK, font(), anchor="la")
    return image.reduce(FINE)


def canvas(width: int, height: int, title: str) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """An empty chart of that many pixels, drawn `FINE` times larger, under its title."""
    image = Image.new("RGB", (width * FINE, height * FINE), PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((16 * FINE, 12 * FINE), title, INK, font(FONT + 3), anchor="la")
    return image, draw


def font(size: int = FONT) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size * FINE)


def padded(ends: Point) -> Point:
    """A range that is a twentieth wider at both ends, and never empty."""
    low, high = ends
    room = 0.05 * (high - low) or 0.5 * abs(high) or 1.0
    return low - room, high + room


def _share(value: float, ends: Point) -> float:
    """How far from the low end to the high one, 0 to 1."""
    return min(max((value - ends[0]) / (ends[1] - ends[0]), 0), 1)


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Some five round numbers from low to high: multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / about
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    return [number * step for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def plain(value: float) -> str:
    """A number as people write it: 120k for 120000, no exponent, no rounding dust."""
    if abs(value) >= 1e4:
        return f"{value / 1000:.6g}k"
    return f"{value:.6g}"
