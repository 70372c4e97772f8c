"""Pictures in and out: any file Pillow reads, in sRGB, brought to the model's size; written whole or not at all."""

import contextlib
import io
import os
import threading
import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import ExifTags, Image, ImageChops, ImageCms, ImageOps, UnidentifiedImageError
from torch import Tensor

from .errors import InputError
from .files import absent, check_place, write_whole

FITS = ("crop", "pad", "stretch")
WRITABLE = {  # endings, and what Pillow calls the kind of file
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}
LONGEST_SIDE = {"WEBP": 16_383, "JPEG": 65_500}  # pixels that a kind of file can hold; the others hold any picture
ALIKE = 2  # of 255: a profile that changes no colour by more is sRGB's own, give or take its tables' rounding
SIXTEEN_BITS = ("PNG", "PPM")  # what Pillow, by version, reads as 32-bit integers, though 65535 is white

Picture = Image.Image | np.ndarray | bytes | bytearray | BinaryIO | str | os.PathLike

_warnings = threading.Lock()  # Python's filters of warnings are one for all threads


def read_image(source: Picture) -> Image.Image:
    """A picture's first frame as `to_rgb` gives it.

    source: a file's path, its bytes, a file opened in binary mode, a picture of Pillow's, or an array, uint8 of shape
    (height, width), (height, width, 3) or (height, width, 4). Raises InputError where there is no such file or it is
    not a whole picture of a reasonable size.
    """
    if isinstance(source, Image.Image):
        return to_rgb(source)
    if isinstance(source, np.ndarray):
        return to_rgb(_from_array(source))
    if isinstance(source, bytes | bytearray):
        return _decode(io.BytesIO(source), "the picture")
    if hasattr(source, "read") and not isinstance(source, io.TextIOBase):
        return _decode(source, "the picture")
    if not isinstance(source, str | os.PathLike):
        raise InputError(
            "a picture was wanted, as a path, bytes, a file opened in binary mode, a PIL image or a uint8 array, "
            f"got {'a file opened as text' if isinstance(source, io.TextIOBase) else type(source).__name__}"
        )
    path = Path(source)
    if path.is_symlink() and not path.exists():
        raise InputError(absent(path))
    if not path.exists():
        raise InputError(f"there is no picture at {path}")
    if not path.is_file():
        raise InputError(f"a picture file was wanted, but {path} is {'a folder' if path.is_dir() else 'no file'}")
    return _decode(path, str(path))


def _decode(file: Path | BinaryIO, name: str) -> Image.Image:
    try:
        with _warnings, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as image:
                image.load()
                return to_rgb(image, copy=False)
    except UnidentifiedImageError:
        raise InputError(f"{name} is not a picture that Pillow can read (PNG, JPEG, WebP, …)") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        limit = Image.MAX_IMAGE_PIXELS // 1_000_000
        raise InputError(f"{name} would unpack to more than {limit} million pixels") from None
    except PermissionError:
        raise InputError(f"a picture was wanted, but {name} may not be read") from None
    except (InputError, MemoryError):
        raise
    except Exception as error:  # whatever Pillow's plugins raise over damaged files: there are dozens of kinds
        raise InputError(f"{name} is damaged or cut short: {_in_a_line(error)}") from None


def _from_array(values: np.ndarray) -> Image.Image:
    if values.dtype != np.uint8 or values.ndim not in (2, 3) or values.shape[2:] not in ((), (1,), (3,), (4,)):
        raise InputError(
            "an array of a picture must be uint8 of shape (height, width), (height, width, 3) or (height, width, 4), "
            f"got {values.dtype} of shape {values.shape}"
        )
    if not values.size:
        raise InputError(f"a picture with pixels was wanted, got an array of shape {values.shape}")
    return Image.fromarray(np.ascontiguousarray(values[..., 0] if values.shape[2:] == (1,) else values))


def to_rgb(image: Image.Image, copy: bool = True) -> Image.Image:
    """Upright RGB in sRGB from any mode: 16-bit scaled down, palette and grey and CMYK converted, colours brought from
    the picture's profile to sRGB, alpha flattened on white.

    copy: of a picture that is all that already. The result's `info` has only "colours": what was done about a profile,
    in words, where there was one that mattered. Raises InputError for a picture that Pillow opened and cannot read to
    its end, or whose white is not known.
    """
    if not all(image.size):
        raise InputError(f"a picture with pixels was wanted, got one of {image.width}×{image.height}")
    try:
        image.load()
        rgb, colours = _convert(image)
    except (InputError, MemoryError):
        raise
    except Exception as error:  # as in `_decode`
        raise InputError(
            f"a whole picture was wanted, got one that is damaged or cut short: {_in_a_line(error)}"
        ) from None
    if rgb is image and copy:
        rgb = image.copy()
    rgb.info = {"colours": colours} if colours else {}
    return rgb


def _convert(image: Image.Image) -> tuple[Image.Image, str | None]:
    """The picture in RGB, itself where it is that already, and what was done about its profile."""
    profile, kind = image.info.get("icc_profile"), image.format
    with contextlib.suppress(Exception):  # whatever Pillow raises over broken EXIF data: the pixels are whole
        if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        image = _in_eight_bits(image, kind)
    if image.mode in ("La", "RGBa"):  # alpha multiplied in
        image = image.convert(image.mode.upper())
    alpha = None
    if image.has_transparency_data:
        image = _with_alpha(image)
        alpha = image.getchannel("A")
        image = image.convert(image.mode.removesuffix("A"))
    rgb, colours = _in_srgb(image, profile)
    if alpha is not None:
        white = Image.new("RGB", rgb.size, "white")
        white.paste(rgb, mask=alpha)
        rgb = white
    return rgb, colours


def _in_eight_bits(image: Image.Image, kind: str | None) -> Image.Image:
    """16-bit or floating-point grey → 8-bit grey, with alpha where one grey is transparent. kind: of its file.

    Raises InputError where it cannot be known which number is white.
    """
    values = np.asarray(image, dtype=np.float32)
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():  # NaN is the least and the most of all
        raise InputError("a picture of finite numbers was wanted, got one with NaN or infinity in it")
    if image.mode == "I" and kind not in SIXTEEN_BITS:
        raise InputError("a picture of 8 or 16 bits a channel was wanted, got one of 32-bit integers")
    full = 65535 if image.mode.startswith("I") else 1 if high <= 1 else 255
    if low < 0 or high > full:
        raise InputError(f"a picture of numbers from 0 to 1, or to 255, was wanted, got them from {low:g} to {high:g}")
    grey = Image.fromarray((values * (255 / full)).round().astype(np.uint8))
    if isinstance(image.info.get("transparency"), int):
        grey.putalpha(Image.fromarray(np.where(values == image.info["transparency"], 0, 255).astype(np.uint8)))
    return grey


def _with_alpha(image: Image.Image) -> Image.Image:
    """The same picture in LA or RGBA."""
    clear = image.info.get("transparency")
    if isinstance(clear, tuple) and max(clear) > 255:  # of 16 bits, as the file has them; the pixels are brought to 8
        image = image.copy()
        image.info["transparency"] = tuple(value >> 8 for value in clear)
    return image.convert("LA" if image.mode in ("1", "L", "LA") else "RGBA")


def _in_srgb(image: Image.Image, profile: bytes | None) -> tuple[Image.Image, str | None]:
    """A picture without alpha → RGB in sRGB; and in words what was done about its profile."""
    plain = image if image.mode == "RGB" else image.convert("RGB")  # a photograph of 48 million pixels takes 192 MB
    if not profile:
        return plain, None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        name = _in_a_line(ImageCms.getProfileDescription(source)) or "a profile without a name"
        if source.profile.xcolor_space.strip() == "RGB" or image.mode not in ("L", "CMYK"):
            image = plain
        srgb = ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, source, srgb, outputMode="RGB")
    except (ImageCms.PyCMSError, ImportError, OSError, ValueError, TypeError):
        return plain, "a colour profile that could not be used was ignored"
    if max(high for _, high in ImageChops.difference(plain, converted).getextrema()) <= ALIKE:
        return plain, None
    return converted, f"colours converted to sRGB from {name}"


def _in_a_line(said: object) -> str:
    """A library's words without line breaks and control characters, at most a hundred letters."""
    return "".join(letter if letter.isprintable() else " " for letter in str(said)).strip()[:100]


def fit_image(image: Image.Image, size: tuple[int, int], fit: str = "crop") -> Image.Image:
    """The picture at `size` (width, height): scaled and centre-cropped, padded with white, or stretched."""
    if fit not in FITS:
        raise InputError(f"fit must be one of {', '.join(FITS)}, got {fit!r}")
    if image.size == tuple(size):
        return image
    if fit == "crop":
        return ImageOps.fit(image, size, Image.Resampling.LANCZOS)
    if fit == "stretch":
        return image.resize(size, Image.Resampling.LANCZOS)
    scale = min(wanted / side for wanted, side in zip(size, image.size))
    scaled = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.LANCZOS)
    canvas = Image.new("RGB", size, "white")
    canvas.paste(scaled, [round((wanted - side) / 2) for wanted, side in zip(size, scaled.size)])
    canvas.info = image.info
    return canvas


def to_pixels(image: Image.Image) -> Tensor:
    """RGB picture → (1, 3, H, W) float32 in [-1, 1]."""
    array = np.asarray(image, dtype=np.float32) / 127.5 - 1
    return torch.from_numpy(array).permute(2, 0, 1)[None]


def to_image(pixels: Tensor) -> Image.Image:
    """(1, 3, H, W) about [-1, 1] → RGB picture."""
    array = ((pixels[0].float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(array)


def psnr(a: Image.Image, b: Image.Image, where: np.ndarray | None = None) -> float:
    """Peak signal-to-noise ratio in dB of two pictures of one size, over the pixels where the mask (H, W) is true."""
    error = (np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)) ** 2
    mean = float(error.mean() if where is None else error[where].mean())
    return 10 * float(np.log10(255**2 / max(mean, 1e-10)))


def check_writable(path: Path, force: bool, size: tuple[int, int] | None = None) -> None:
    """Raises InputError where the picture, of (width, height) pixels if that is known, could not be written, before any
    work is done for it."""
    kind = WRITABLE.get(path.suffix.lower())
    if kind is None:
        raise InputError(f"the name of a picture to write must end in {' or '.join(WRITABLE)}, got {path.name}")
    longest = LONGEST_SIDE.get(kind)
    if size and longest and max(size) > longest:
        raise InputError(f"a {kind} file holds at most {longest:,} pixels a side, not {size[0]}×{size[1]}: {path}")
    check_place(path, force)


def write_image(image: Image.Image, path: Path, force: bool = True) -> None:
    """Writes a picture; its kind is its name's ending. `path` is whole or untouched; see `write_whole` for `force`."""
    content = io.BytesIO()  # Pillow does not notice where a file takes only a part of what is written to it
    image.save(content, WRITABLE[path.suffix.lower()])
    write_whole(path, content.getvalue(), force)
