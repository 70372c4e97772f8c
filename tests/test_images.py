"""Pictures in and out: read from anything, brought to a size, and written in every kind of file that is promised."""

import io
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from pictures import colours, halves, png
from PIL import Image, ImageOps

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

# In


def test_what_people_pass_for_a_picture(tmp_path):
    picture = Image.effect_noise((6, 4), 90).convert("RGB")
    picture.save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    with open(tmp_path / "a.png", "rb") as file:
        for source in (tmp_path / "a.png", str(tmp_path / "a.png"), data, bytearray(data), io.BytesIO(data), file):
            assert np.array_equal(read_image(source), picture)
    values = np.asarray(picture)
    assert np.array_equal(read_image(values[:, ::-1]), values[:, ::-1])
    assert np.array_equal(read_image(values[..., :1]), read_image(values[..., 0]))
    assert np.array_equal(read_image(np.dstack([values, np.full((4, 6), 255, np.uint8)])), picture)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (None, "as a path, bytes, .* got NoneType"),
        (torch.zeros(3, 8, 8), "as a path, bytes, .* got Tensor"),
        (["dog.png"], "as a path, bytes, .* got list"),
        (io.StringIO("dog"), "got a file opened as text"),
        (b"", "the picture is not a picture that Pillow can read"),
        (np.zeros((8, 8, 3)), r"must be uint8 .*, got float64 of shape \(8, 8, 3\)"),
        (np.zeros((3, 8, 8), np.uint8), r"must be uint8 .*, got uint8 of shape \(3, 8, 8\)"),
        (np.zeros(8, np.uint8), r"must be uint8 .*, got uint8 of shape \(8,\)"),
        (np.zeros((0, 8, 3), np.uint8), "a picture with pixels was wanted"),
        (Image.new("RGB", (0, 3)), "a picture with pixels was wanted, got one of 0×3"),
    ],
)
def test_what_is_no_picture_is_refused(source, said):
    with pytest.raises(InputError, match=said):
        read_image(source)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, "no picture at"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: path.write_text("hello"), "is not a picture"),
        (lambda path: path.write_bytes(b""), "is not a picture"),
        (lambda path: path.write_bytes(png(60_000, 60_000, 8, 2, bytes(999))), "would unpack to more than"),
        (lambda path: path.symlink_to("gone.png"), "bad.png is a link to gone.png, which is not there"),
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


def test_threads_that_read_pictures_leave_the_warnings_as_they_were(tmp_path):
    picture = Image.effect_noise((64, 64), 90)
    picture.save(tmp_path / "a.png")
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as threads:
        assert all(
            np.array_equal(a, picture.convert("RGB")) for a in threads.map(read_image, [tmp_path / "a.png"] * 99)
        )
    assert warnings.filters == before


# At a size


def test_fits():
    wide, edged = halves(size=(40, 10)), halves(size=(40, 10))
    edged.paste("green", (0, 0, 8, 10))  # not in the middle, which is what is left of it
    assert colours(fit_image(edged, (20, 20), "crop"))[:2] == [(255, 0, 0), (0, 0, 255)]
    padded = fit_image(wide, (20, 20), "pad")
    assert padded.getpixel((5, 0)) == (255, 255, 255) and padded.getpixel((1, 10)) == (255, 0, 0)
    assert colours(fit_image(wide, (20, 20), "stretch")) == [(255, 0, 0), (0, 0, 255), (255, 0, 0)]
    assert fit_image(wide, (40, 10)) is wide
    with pytest.raises(InputError, match="fit must be one of crop, pad, stretch, got 'squeeze'"):
        fit_image(wide, (8, 8), "squeeze")


@pytest.mark.parametrize("shape", [(300, 1), (1, 300), (5000, 3)])
def test_narrow_pictures_fit(shape):
    for fit in ("crop", "pad", "stretch"):
        assert fit_image(Image.new("RGB", shape, "red"), (64, 32), fit).size == (64, 32)
    assert (np.asarray(fit_image(Image.new("RGB", shape, "red"), (64, 32), "pad")) == (255, 0, 0)).all(-1).sum() > 31


@pytest.mark.parametrize("shape", [(40, 10), (33, 70), (64, 32), (641, 479), (7, 90)])
def test_padding_is_pillows(shape):
    picture = Image.effect_noise(shape, 90).convert("RGB")
    for size in ((64, 64), (96, 32), (128, 160)):
        assert np.array_equal(fit_image(picture, size, "pad"), ImageOps.pad(picture, size, 1, color="white"))


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


# Out


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


@pytest.mark.parametrize(("suffix", "longest"), [(".webp", 16_383), (".jpg", 65_500)])
def test_a_picture_that_its_kind_of_file_cannot_hold_is_refused_before_the_work(tmp_path, suffix, longest):
    path = tmp_path / f"long{suffix}"
    check_writable(path, False, (longest, 1))
    write_image(Image.new("RGB", (longest, 1)), path)
    assert read_image(path).size == (longest, 1)
    with pytest.raises(InputError, match=rf"holds at most {longest:,} pixels a side, not 4×{longest + 1}"):
        check_writable(tmp_path / f"longer{suffix}", False, (4, longest + 1))
