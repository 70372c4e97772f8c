"""What happens to a picture between its drawing and its edit: compression, scaling, a shift, noise, a screen's tint.

A distorted picture is compared with right answers that were distorted in the same way. An edit should keep what it was
given, tint and grain included; answers without them would punish it for that.
"""

from functools import partial
from io import BytesIO

import numpy as np
from PIL import Image

NOISE = 8.0  # standard deviation, of 255
SHIFT = 3  # pixels, to the right and down
# A screen, photographed: red, green and blue as gain · value + offset, then a tenth less light in the corners.
TINT_GAIN, TINT_OFFSET, VIGNETTE = (0.84, 0.90, 0.93), (14.0, 12.0, 18.0), 0.1


def distort(picture: Image.Image, name: str | None, seed: int) -> Image.Image:
    """The picture after the distortion `name`, or as it is for None; the same seed always gives the same pixels.

    The rescaled pictures have another size, and are meant to be fitted back by stretching: that alone undoes the change
    of shape, so that the right answer stays exact.
    """
    return DISTORTIONS[name](picture, seed) if name else picture


def compressed(picture: Image.Image, _seed: int, quality: int = 60) -> Image.Image:
    file = BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def rescaled(picture: Image.Image, _seed: int, size: tuple[int, int]) -> Image.Image:
    return picture.resize(size, Image.Resampling.BICUBIC)


def shifted(picture: Image.Image, _seed: int) -> Image.Image:
    """Moved to the right and down; the first column and row fill the gap."""
    pixels = np.pad(np.asarray(picture), ((SHIFT, 0), (SHIFT, 0), (0, 0)), mode="edge")
    return Image.fromarray(np.ascontiguousarray(pixels[:-SHIFT, :-SHIFT]))


def noisy(picture: Image.Image, seed: int) -> Image.Image:
    noise = np.random.default_rng([seed, 11]).normal(0, NOISE, (picture.height, picture.width, 3))
    return _from_values(np.asarray(picture) + noise)


def tinted(picture: Image.Image, _seed: int) -> Image.Image:
    x, y = np.linspace(-1, 1, picture.width), np.linspace(-1, 1, picture.height)
    light = 1 - VIGNETTE * (x[None, :] ** 2 + y[:, None] ** 2) / 2
    return _from_values((np.asarray(picture) * TINT_GAIN + TINT_OFFSET) * light[..., None])


def _from_values(values: np.ndarray) -> Image.Image:
    return Image.fromarray(values.round().clip(0, 255).astype(np.uint8))


DISTORTIONS = {
    "jpeg": compressed,
    "400x300": partial(rescaled, size=(400, 300)),
    "1024x768": partial(rescaled, size=(1024, 768)),
    "shift": shifted,
    "noise": noisy,
    "tint": tinted,
}
