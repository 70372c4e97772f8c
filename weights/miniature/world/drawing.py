"""Painting a scene: sky, hill, ground and stones first, then the animal and what was added to it.

Everything is painted `_FINE` times larger than asked and then averaged down, which softens every edge.
"""

from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from .animals import SIZES, Layer, body, hat
from .poses import POSES
from .scene import Layout, Scene

_FINE = 3

# The fur and its shades: lit from above, on the far side, on the chest, in ears and spots, along the outline.
_COAT_TONES = ("fur", "lit", "far", "pale", "dark", "rim")
_COATS = {
    "brown": ("#985e32", "#aa6e40", "#804e2a", "#d2a06e", "#6e4022", "#4c2a18"),
    "black": ("#302e37", "#3e3c47", "#26242b", "#605e6c", "#1c1a22", "#0e0c12"),
    "white": ("#eee9e6", "#fdfaf5", "#dad5d3", "#fffffd", "#cec6c1", "#7c747c"),
    "orange": ("#ee8a28", "#fa9e3e", "#d47420", "#ffd290", "#c4601a", "#823c12"),
    "grey": ("#96969b", "#a9a9ad", "#7e7e84", "#d0d0d2", "#6a6a72", "#40404a"),
}
COATS = {colour: dict(zip(_COAT_TONES, tones, strict=True)) for colour, tones in _COATS.items()}
FIXED_TONES = {
    "eye": (26, 20, 24),
    "shine": (255, 255, 255),
    "nose": (214, 110, 116),
    "blush": (238, 148, 138),
    "beak": (248, 178, 44),
}
HAT_TONES = {"hat": (204, 32, 40), "hat lit": (228, 58, 58), "band": (255, 226, 150), "rim": (120, 16, 26)}
_LIT_TONES = {"fur": "lit", "hat": "hat lit"}  # the tones that have a lit core, and its tone
# Each ground's colour at the horizon and at the bottom of the frame.
GROUND_COLOURS = {
    "grass": ((156, 206, 104), (96, 166, 72)),
    "sand": ((248, 228, 172), (232, 200, 130)),
    "snow": ((244, 249, 255), (214, 228, 246)),
    "stone": ((142, 162, 192), (104, 124, 156)),
    "earth": ((132, 76, 62), (98, 54, 46)),
}
# The sky's colour at the top and at the horizon, at noon and in the evening.
SKY_NOON = ((116, 184, 236), (222, 240, 246))
SKY_EVENING = ((150, 168, 226), (255, 218, 188))
SUN, CLOUD = (255, 224, 112), (255, 252, 246)
# The two ends of what no caption names: hills are grey to blue, stones and the light on them dark to light.
HILLS = ((170, 170, 174), (136, 168, 206))
STONES, STONE_LIGHTS = ((96, 92, 98), (200, 196, 198)), ((132, 127, 132), (238, 235, 234))
SHADOW = (30, 24, 40)
BALL, BALL_LIGHT, BALL_RIM, BALL_RADIUS = (40, 98, 220), (132, 180, 255), (20, 50, 130), 0.075


def render(scene: Scene, size: int = 128) -> Image.Image:
    """The scene as an RGB picture of size x size pixels; the same scene always gives the same pixels."""
    layout = scene.layout()
    canvas = _background(layout, scene.ground, size * _FINE)
    _paint_animal_shadow(canvas, scene, layout)
    _paint_layers(canvas, body(scene.animal, scene.posture), scene, layout, COATS[scene.colour] | FIXED_TONES)
    if scene.addition == "a red hat":
        _paint_layers(canvas, hat(scene.animal, scene.posture), scene, layout, HAT_TONES)
    if scene.addition == "a blue ball":
        _paint_ball(canvas, layout)
    return canvas.reduce(_FINE)


def _background(layout: Layout, ground: str, side: int) -> Image.Image:
    sky = _mix(SKY_NOON, SKY_EVENING, layout.warmth)
    canvas = _gradient(sky[0], sky[1], round(layout.horizon * side), side)
    pen = ImageDraw.Draw(canvas)
    _soft_disc(canvas, (255, 244, 200), layout.sun_x, layout.sun_y, 0.17, 0.17, 0.8)
    _ellipse(pen, SUN, layout.sun_x, layout.sun_y, 0.065, 0.065)
    for dx, dy, radius in ((-0.07, 0.01, 0.035), (0.0, -0.012, 0.05), (0.075, 0.01, 0.035)):
        _ellipse(pen, CLOUD, layout.cloud_x + dx, layout.cloud_y + dy, radius * 1.4, radius)
    hill = _between(*HILLS, layout.hill_tint)
    _ellipse(pen, hill, layout.hill_x, layout.horizon + 0.04, 0.42, layout.hill_height + 0.04)
    far, close = GROUND_COLOURS[ground]
    top = round(layout.horizon * side)
    canvas.paste(_gradient(far, close, side - top, side).crop((0, 0, side, side - top)), (0, top))
    stone_colour, stone_light = (_between(*ends, layout.stone_shade) for ends in (STONES, STONE_LIGHTS))
    for stone in layout.stones:
        x, y, r = stone.x, stone.y, stone.radius
        _soft_disc(canvas, SHADOW, x, y + 0.55 * r, 1.3 * r, 0.03, 0.35)
        _ellipse(pen, stone_colour, x, y, r, 0.68 * r)
        _ellipse(pen, stone_light, x, y - 0.15 * r, 0.8 * r, 0.46 * r)
    return canvas


def _paint_animal_shadow(canvas: Image.Image, scene: Scene, layout: Layout) -> None:
    x, half_width = POSES[scene.animal][scene.posture].shadow
    unit = SIZES[scene.animal] * layout.scale
    _soft_disc(canvas, SHADOW, layout.x + layout.facing * x * unit, layout.y, 1.25 * half_width * unit, 0.04, 0.55)


def _paint_ball(canvas: Image.Image, layout: Layout) -> None:
    pen = ImageDraw.Draw(canvas)
    x, y, r = layout.ball_x, layout.ball_y, BALL_RADIUS
    _soft_disc(canvas, SHADOW, x, y + 0.01, 1.3 * r, 0.03, 0.55)
    _ellipse(pen, BALL_RIM, x, y - r, r, r)
    _ellipse(pen, BALL, x, y - r, 0.86 * r, 0.86 * r)
    _ellipse(pen, BALL_LIGHT, x - 0.25 * r, y - 1.3 * r, 0.34 * r, 0.3 * r)


def _paint_layers(
    canvas: Image.Image, layers: tuple[Layer, ...], scene: Scene, layout: Layout, tones: dict[str, tuple]
) -> None:
    """Paint each layer: the outline, the parts on it, their lit cores, and the details last."""
    pen, side = ImageDraw.Draw(canvas), canvas.width
    unit = SIZES[scene.animal] * layout.scale * side
    stretch, origin = np.array([layout.facing * unit, -unit]), np.array([layout.x * side, layout.y * side])

    def fill(polygons: tuple[np.ndarray, ...], tone: str) -> None:
        for polygon in polygons:
            pen.polygon((polygon * stretch + origin).ravel().tolist(), fill=tones[tone])

    for layer in layers:
        for part in layer.parts:
            fill(part.grown, "rim")
        for part in layer.parts:
            fill(part.polygons, part.tone)
        for part in layer.parts:
            if part.tone in _LIT_TONES:
                fill(part.core, _LIT_TONES[part.tone])
        for part in layer.details:
            fill(part.polygons, part.tone)


def _ellipse(pen: ImageDraw.ImageDraw, colour, x: float, y: float, rx: float, ry: float) -> None:
    side = pen.im.size[0]
    pen.ellipse([side * (x - rx), side * (y - ry), side * (x + rx), side * (y + ry)], fill=colour)


def _soft_disc(canvas: Image.Image, colour: tuple, x: float, y: float, rx: float, ry: float, strength: float) -> None:
    """Blend in an ellipse that fades out from its centre, where it covers `strength` of what is below."""
    side = canvas.width
    width, height = round(2 * rx * side), round(2 * ry * side)
    mask = _fading_disc(strength).resize((width, height), Image.Resampling.BILINEAR)
    canvas.paste(colour, (round((x - rx) * side), round((y - ry) * side)), mask)


@cache
def _fading_disc(strength: float) -> Image.Image:
    axis = np.linspace(-1, 1, 64)
    distance = np.hypot(axis[:, None], axis[None, :])
    cover = np.clip(1.0 - distance, 0, 1)
    return Image.fromarray((255 * strength * cover * cover * (3 - 2 * cover)).astype(np.uint8))


def _gradient(top, bottom, height: int, side: int) -> Image.Image:
    """A side x side picture running from colour `top` to `bottom` over its first `height` rows."""
    share = np.clip(np.arange(side) / max(height, 1), 0, 1)[:, None]
    column = np.array(top) + share * (np.array(bottom) - np.array(top))
    strip = Image.fromarray(column.round().astype(np.uint8)[:, None, :])
    return strip.resize((side, side), Image.Resampling.NEAREST)


def _between(a, b, share: float) -> tuple[int, int, int]:
    return tuple(_mix(a, b, share).round().astype(int).tolist())


def _mix(a, b, share: float) -> np.ndarray:
    return (1 - share) * np.array(a) + share * np.array(b)
