"""Pictures in and out: any file Pillow reads, brought to the model's size; PNG written whole or not at all."""

import contextlib
import os
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from .errors import InputError
from .files import check_place, write_whole

FITS = ("crop", "pad", "stretch")
WRITABLE = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


def read_image(path: str | os.PathLike) -> Image.Image:
    """The file's first frame as RGB: EXIF rotation applied, alpha flattened on white.

    Raises InputError where there is no such file or it is not a whole picture of a reasonable size.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"there is no picture at {path}")
    if not path.is_file():
        raise InputError(f"a picture file was wanted, but {path} is {'a folder' if path.is_dir() else 'no file'}")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Corrupt EXIF data")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                image.load()
                return to_rgb(image)
    except UnidentifiedImageError:
        raise InputError(f"{path} is not a picture that Pillow can read (PNG, JPEG, WebP, …)") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        limit = Image.MAX_IMAGE_PIXELS // 1_000_000
        raise InputError(f"{path} would unpack to more than {limit} million pixels") from None
    except PermissionError:
        raise InputError(f"a picture was wanted, but {path} may not be read") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise InputError(f"{path} is damaged or cut short: {error}") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """Upright RGB from any mode: 16-bit scaled down, palette and grey and CMYK converted, alpha flattened on white.

    Raises InputError for a picture that Pillow opened and cannot read to its end.
    """
    try:
        image.load()
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise InputError(f"a whole picture was wanted, got one that is damaged or cut short: {error}") from None
    with contextlib.suppress(Exception):  # whatever Pillow raises over broken EXIF data: the pixels are whole
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):  # 16 and 32 bits a pixel
        values = np.asarray(image, dtype=np.float64)
        full = 65535.0 if image.mode.startswith("I") else max(values.max(), 1.0)
        image = Image.fromarray((values.clip(0, full) / full * 255).round().astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def fit_image(image: Image.Image, size: tuple[int, int], fit: str = "crop") -> Image.Image:
    """The picture at `size` (width, height): scaled and centre-cropped, padded with white, or stretched."""
    if fit not in FITS:
        raise InputError(f"fit must be one of {', '.join(FITS)}, got {fit!r}")
    if image.size == tuple(size):
        return image
    if fit == "crop":
        return ImageOps.fit(image, size, Image.Resampling.LANCZOS)
    if fit == "pad":
        return ImageOps.pad(image, size, Image.Resampling.LANCZOS, color="white")
    return image.resize(size, Image.Resampling.LANCZOS)


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


def check_writable(path: Path, force: bool) -> None:
    """Raises InputError where the picture could not be written, before any work is done for it."""
    if path.suffix.lower() not in WRITABLE:
        raise InputError(f"the name of a picture to write must end in {' or '.join(WRITABLE)}, got {path.name}")
    check_place(path, force)


def write_image(image: Image.Image, path: Path) -> None:
    """Writes a picture; its kind is its name's ending. `path` is whole or untouched."""
    write_whole(path, image.save)
