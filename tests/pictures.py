"""What tests of pictures share: pictures that are easily told apart, and the bytes of any PNG."""

import struct
import zlib

from PIL import Image


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
