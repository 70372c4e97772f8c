import io
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, ImageOps

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


def png(width, height, bits, colour, rows=b"", transparent=b"") -> bytes:
    """A PNG, chunk by chunk; colour: 0 grey, 2 RGB."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    clear = chunk(b"tRNS", transparent) if transparent else b""
    return b"\x89PNG\r\n\x1a\n" + header + clear + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


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
    path.write_bytes(png(60000, 60000, 8, 2, bytes(999)))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, "no picture at"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: path.write_text("hello"), "is not a picture"),
        (lambda path: path.write_bytes(b""), "is not a picture"),
        (bomb, "would unpack to more than"),
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


def test_a_picture_that_was_passed_stays_as_it_is():
    picture = halves()
    picture.info = {"icc_profile": profile(), "dpi": (72, 72)}
    read = to_rgb(picture)
    read.putpixel((0, 0), (1, 2, 3))
    assert picture.getpixel((0, 0)) == (255, 0, 0) and picture.info.keys() == {"icc_profile", "dpi"} and not read.info


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


def test_threads_that_read_pictures_leave_the_warnings_as_they_were(tmp_path):
    picture = Image.effect_noise((64, 64), 90)
    picture.save(tmp_path / "a.png")
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as threads:
        assert all(
            np.array_equal(a, picture.convert("RGB")) for a in threads.map(read_image, [tmp_path / "a.png"] * 99)
        )
    assert warnings.filters == before


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


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "out.png"
    path.write_bytes(b"old")

    def fail(self, target, *_, **__):
        target.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        write_image(halves(), path)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("suffix", "longest"), [(".webp", 16_383), (".jpg", 65_500)])
def test_a_picture_that_its_kind_of_file_cannot_hold_is_refused_before_the_work(tmp_path, suffix, longest):
    path = tmp_path / f"long{suffix}"
    check_writable(path, False, (longest, 1))
    write_image(Image.new("RGB", (longest, 1)), path)
    assert read_image(path).size == (longest, 1)
    with pytest.raises(InputError, match=rf"holds at most {longest:,} pixels a side, not 4×{longest + 1}"):
        check_writable(tmp_path / f"longer{suffix}", False, (4, longest + 1))


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
