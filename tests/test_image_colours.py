"""Every picture becomes RGB in sRGB: its mode, its bits, its transparency and its colour profile."""

import struct

import numpy as np
import pytest
from pictures import colours, halves, png
from PIL import Image, ImageCms

from minibaret.errors import InputError
from minibaret.images import fit_image, read_image, to_rgb

MODES = {
    "png": ("RGB", "P", "RGBA"),
    "webp": ("RGB", "RGBA"),
    "bmp": ("RGB", "P"),
    "tiff": ("RGB", "P", "CMYK", "RGBA"),
    "jpg": ("RGB", "CMYK"),
}


@pytest.mark.parametrize(("suffix", "mode"), [(suffix, mode) for suffix, modes in MODES.items() for mode in modes])
def test_formats_and_modes_come_out_as_rgb(tmp_path, suffix, mode):
    path = tmp_path / f"picture.{suffix}"
    halves(mode, (32, 32)).save(path)
    read = read_image(path)
    assert read.mode == "RGB"
    left, right, below = (np.array(c, int) for c in colours(read))
    assert abs(left - (255, 0, 0)).max() < 6 and abs(right - (0, 0, 255)).max() < 6 and abs(below - left).max() < 6


def test_grey_and_sixteen_bits(tmp_path):
    Image.fromarray(np.array([[0, 65535], [32768, 256]], np.uint16)).save(tmp_path / "deep.png")
    assert np.asarray(read_image(tmp_path / "deep.png"))[..., 0].tolist() == [[0, 255], [128, 1]]
    Image.fromarray(np.array([[0, 255], [128, 1]], np.uint8)).save(tmp_path / "grey.png")
    assert np.asarray(read_image(tmp_path / "grey.png"))[..., 2].tolist() == [[0, 255], [128, 1]]


@pytest.mark.parametrize(
    ("made", "wanted"),
    [
        (png(3, 1, 16, 0, struct.pack(">B3H", 0, 0, 300, 65535), struct.pack(">H", 0)), [255, 1, 255]),
        (png(3, 1, 16, 0, struct.pack(">B3H", 0, 0, 300, 301), struct.pack(">H", 300)), [0, 255, 1]),
        (png(2, 1, 16, 2, struct.pack(">B6H", 0, *[9] * 3, *[771] * 3), struct.pack(">3H", *[771] * 3)), [0, 255]),
    ],
)
def test_a_transparent_colour_of_sixteen_bits(made, wanted):
    assert np.asarray(read_image(made))[0, :, 1].tolist() == wanted


def test_floating_point_pictures_whose_white_is_known():
    values = np.array([[0, 0.5, 1]], np.float32)
    for scale in (1, 255):
        assert np.asarray(read_image(Image.fromarray(values * scale)))[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.array([[0.5, np.nan]], np.float32), "finite numbers was wanted, got one with NaN or infinity"),
        (np.array([[0.5, np.inf]], np.float32), "finite numbers was wanted, got one with NaN or infinity"),
        (np.array([[-0.5, 1]], np.float32), "from 0 to 1, or to 255, was wanted, got them from -0.5 to 1"),
        (np.array([[0, 4000]], np.float32), "from 0 to 1, or to 255, was wanted, got them from 0 to 4000"),
        (np.array([[0, 255]], np.int32), "8 or 16 bits a channel was wanted, got one of 32-bit integers"),
        (np.array([[0, 2**31 - 1]], np.int32), "8 or 16 bits a channel was wanted, got one of 32-bit integers"),
    ],
)
def test_a_picture_whose_white_is_not_known_is_refused(tmp_path, values, said):
    Image.fromarray(values).save(tmp_path / "grey.tif")
    with pytest.raises(InputError, match=said):
        read_image(tmp_path / "grey.tif")


def test_alpha_lies_on_white(tmp_path):
    picture = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    picture.putpixel((1, 0), (0, 0, 0, 128))
    picture.save(tmp_path / "clear.png")
    assert [read_image(tmp_path / "clear.png").getpixel((x, 0)) for x in (0, 1)] == [(255,) * 3, (127,) * 3]
    palette = halves("P")
    palette.save(tmp_path / "palette.png", transparency=palette.getpixel((0, 0)))
    assert colours(read_image(tmp_path / "palette.png"))[:2] == [(255, 255, 255), (0, 0, 255)]


# Colour profiles


def profile(swapped: bool = False, grey: bool = False) -> bytes:
    """sRGB's profile; with red and green taking each other's place; or that of a linear grey."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, green = data.index(b"rXYZ", 128), data.index(b"gXYZ", 128)
    if swapped:
        data[red : red + 4], data[green : green + 4] = b"gXYZ", b"rXYZ"
    if grey:
        curve = data.index(b"rTRC", 128)
        place = int.from_bytes(data[curve + 4 : curve + 8])
        data[16:20], data[curve : curve + 4], data[place : place + 12] = b"GRAY", b"kTRC", b"curv" + bytes(8)
    return bytes(data)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tiff"])
def test_colours_are_brought_from_the_pictures_profile_to_srgb(tmp_path, suffix):
    path = tmp_path / f"wide.{suffix}"
    Image.new("RGB", (8, 8), (200, 50, 90)).save(path, icc_profile=profile(swapped=True), quality=100)
    read = read_image(path)
    assert np.abs(np.subtract(read.getpixel((4, 4)), (50, 200, 90))).max() <= 3
    assert read.info == {"colours": "colours converted to sRGB from sRGB built-in"}  # what Pillow calls its profile
    for fit in ("crop", "pad", "stretch"):
        assert fit_image(read, (6, 4), fit).info == read.info


def test_profiles_of_pictures_with_alpha_palette_or_grey_alone():
    clear = Image.new("RGBA", (2, 1), (200, 50, 90, 255))
    clear.putpixel((1, 0), (200, 50, 90, 0))
    clear.info["icc_profile"] = profile(swapped=True)
    assert np.abs(np.subtract(np.asarray(to_rgb(clear))[0], [(50, 200, 90), (255, 255, 255)])).max() <= 3
    palette = Image.new("RGB", (2, 2), (200, 50, 90)).convert("P", palette=Image.Palette.ADAPTIVE)
    palette.info["icc_profile"] = profile(swapped=True)
    assert np.abs(np.subtract(to_rgb(palette).getpixel((0, 0)), (50, 200, 90))).max() <= 3
    grey = Image.new("LA", (2, 2), (128, 255))
    grey.info["icc_profile"] = profile(grey=True)
    assert abs(to_rgb(grey).getpixel((0, 0))[0] - 188) <= 1  # 255 · 0.502^(1/2.4)…: sRGB's curve


def test_a_profile_that_changes_nothing_or_cannot_be_used():
    noise = Image.effect_noise((64, 64), 90).convert("RGB")
    for data, said in (
        (profile(), {}),
        (b"no profile", {"colours": "a colour profile that could not be used was ignored"}),
        (profile(grey=True), {"colours": "a colour profile that could not be used was ignored"}),
    ):
        picture = noise.copy()
        picture.info["icc_profile"] = data
        read = to_rgb(picture)
        assert np.array_equal(read, noise) and read.info == said


def test_a_picture_that_was_passed_stays_as_it_is():
    picture = halves()
    picture.info = {"icc_profile": profile(), "dpi": (72, 72)}
    read = to_rgb(picture)
    read.putpixel((0, 0), (1, 2, 3))
    assert picture.getpixel((0, 0)) == (255, 0, 0) and picture.info.keys() == {"icc_profile", "dpi"} and not read.info
