import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minibaret.errors import InputError
from minibaret.images import (
    WRITABLE,
    check_writable,
    fit_image,
    psnr,
    read_image,
    to_image,
    to_pixels,
    to_rgb,
    write_image,
)


def halves(mode="RGB", size=(8, 4)) -> Image.Image:
    """Red on the left, blue on the right."""
    picture = Image.new("RGB", size, "red")
    picture.paste("blue", (size[0] // 2, 0, *size))
    return picture.convert(mode)


def colours(image: Image.Image) -> list[tuple]:
    """Top left, top right, bottom left."""
    width, height = image.size
    return [image.getpixel(place) for place in ((0, 0), (width - 1, 0), (0, height - 1))]


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


def test_alpha_lies_on_white(tmp_path):
    picture = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    picture.putpixel((1, 0), (0, 0, 0, 128))
    picture.save(tmp_path / "clear.png")
    assert [read_image(tmp_path / "clear.png").getpixel((x, 0)) for x in (0, 1)] == [(255,) * 3, (127,) * 3]
    palette = halves("P")
    palette.save(tmp_path / "palette.png", transparency=palette.getpixel((0, 0)))
    assert colours(read_image(tmp_path / "palette.png"))[:2] == [(255, 255, 255), (0, 0, 255)]


def test_exif_rotation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    halves(size=(32, 16)).save(tmp_path / "turned.png", exif=exif)
    read = read_image(tmp_path / "turned.png")
    assert read.size == (16, 32) and colours(read) == [(255, 0, 0), (255, 0, 0), (0, 0, 255)]


@pytest.mark.parametrize("exif", [b"Exif\0\0II*\0", b"Exif\0\0junk", b"Exif\0\0II*\0\xff\xff\xff\xff"])
@pytest.mark.parametrize("suffix", ["png", "webp", "jpg"])
def test_broken_exif_data_spoil_no_picture(tmp_path, exif, suffix):
    halves(size=(32, 16)).save(tmp_path / f"picture.{suffix}", exif=exif)
    assert read_image(tmp_path / f"picture.{suffix}").size == (32, 16)


def test_animations_give_their_first_frame(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "moving.gif").getpixel((0, 0)) == (255, 0, 0)


def bomb(path):
    """A PNG that claims 60000 × 60000 pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 999)) + chunk(b"IEND", b""))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, "no picture at"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: path.write_text("hello"), "is not a picture"),
        (lambda path: path.write_bytes(b""), "is not a picture"),
        (bomb, "would unpack to more than"),
    ],
)
def test_bad_files_are_refused_in_a_sentence(tmp_path, make, said):
    path = tmp_path / "bad.png"
    make(path)
    with pytest.raises(InputError, match=said):
        read_image(path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_truncated_files_are_refused(tmp_path, suffix):
    path = tmp_path / f"cut.{suffix}"
    Image.effect_noise((64, 64), 90).convert("RGB").save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=r"cut\.\w+ is (damaged|not a picture)"):
        read_image(path)


def test_a_picture_that_pillow_opened_and_cannot_read_is_refused(tmp_path):
    path = tmp_path / "cut.png"
    Image.effect_noise((64, 64), 90).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(InputError, match="a whole picture was wanted, got one that is damaged or cut short"):
        to_rgb(Image.open(path))


def test_fits():
    wide = halves(size=(40, 10))
    assert colours(fit_image(wide, (20, 20), "crop"))[:2] == [(255, 0, 0), (0, 0, 255)]
    padded = fit_image(wide, (20, 20), "pad")
    assert padded.getpixel((5, 0)) == (255, 255, 255) and padded.getpixel((1, 10)) == (255, 0, 0)
    assert colours(fit_image(wide, (20, 20), "stretch")) == [(255, 0, 0), (0, 0, 255), (255, 0, 0)]
    assert fit_image(wide, (40, 10)) is wide
    with pytest.raises(InputError, match="fit must be one of crop, pad, stretch, got 'squeeze'"):
        fit_image(wide, (8, 8), "squeeze")


def test_pixels_there_and_back():
    picture = Image.effect_noise((16, 8), 90).convert("RGB")
    pixels = to_pixels(picture)
    assert pixels.shape == (1, 3, 8, 16) and pixels.min() >= -1 and pixels.max() <= 1
    assert np.array_equal(to_image(pixels), picture)


def test_psnr_is_in_decibels_and_may_be_masked():
    black, grey = Image.new("RGB", (2, 1)), Image.new("RGB", (2, 1))
    grey.putpixel((1, 0), (51, 51, 51))
    assert psnr(black, grey) == pytest.approx(10 * np.log10(2 * 25))
    assert psnr(black, grey, np.array([[False, True]])) == pytest.approx(20 * np.log10(5))


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "out.png"
    path.write_bytes(b"old")

    def fail(self, target, *_, **__):
        Path(target).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        write_image(halves(), path)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_where_nothing_can_be_written_is_said_before_the_work(tmp_path):
    (tmp_path / "there.png").write_bytes(b"old")
    for name, said in (("a.txt", "must end in"), ("no/a.png", "there is no folder"), ("there.png", "pass --force")):
        with pytest.raises(InputError, match=said):
            check_writable(tmp_path / name, force=False)
    check_writable(tmp_path / "there.png", force=True)


@pytest.mark.parametrize("suffix", [".psd", ".fits", ".mpg", ".xbm", ".pdf", ""])
def test_kinds_that_pillow_only_reads_or_that_are_no_pictures_are_not_written(tmp_path, suffix):
    with pytest.raises(InputError, match=r"must end in \.png or .*, got a"):
        check_writable(tmp_path / f"a{suffix}", force=False)


@pytest.mark.parametrize("suffix", [*WRITABLE, ".PNG"])
def test_every_kind_that_is_promised_can_be_written(tmp_path, suffix):
    path = tmp_path / f"{'long' * 60}{suffix}"  # a name may have 255 bytes, that of the unfinished file too
    check_writable(path, force=False)
    write_image(halves(size=(32, 32)), path)
    assert read_image(path).size == (32, 32)
