"""Image files made by hand, valid ones and ones that must not be decoded."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

PNG_START = b"\x89PNG\r\n\x1a\n"


def encode(pixels, kind="PNG", **options):
    """uint8 `[h, w, 3]` or a PIL image as the bytes of a file."""
    if not isinstance(pixels, Image.Image):
        pixels = Image.fromarray(pixels)
    stream = io.BytesIO()
    pixels.save(stream, kind, **options)
    return stream.getvalue()


def png_chunk(name, data):
    crc = struct.pack(">I", zlib.crc32(name + data))
    return struct.pack(">I", len(data)) + name + data + crc


def png(height, width, rows=b"", chunks=b"", before=b"", interlace=0):
    """A PNG whose header claims `height` x `width` RGB pixels.

    Args:
        rows: what is compressed as its pixels.
        chunks: between header and pixels.
        before: in front of the header.
    """
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, interlace)
    return b"".join(
        [
            PNG_START,
            before,
            png_chunk(b"IHDR", header),
            chunks,
            png_chunk(b"IDAT", zlib.compress(rows, 9)),
            png_chunk(b"IEND", b""),
        ]
    )


def png_rows(height, width):
    """Grey pixels, as a PNG has them."""
    return (b"\0" + b"\x70" * (3 * width)) * height


def interlaced_png():
    """8x8 pixels in the seven passes of Adam7, and what they are: red is 16 y + x."""
    pixels = np.zeros((8, 8, 3), "uint8")
    pixels[..., 0] = 16 * np.arange(8)[:, None] + np.arange(8)
    rows = b""
    for y, x, dy, dx in (
        (0, 0, 8, 8),
        (0, 4, 8, 8),
        (4, 0, 8, 4),
        (0, 2, 4, 4),
        (2, 0, 4, 2),
        (0, 1, 2, 2),
        (1, 0, 2, 1),
    ):
        rows += b"".join(b"\0" + row.tobytes() for row in pixels[y::dy, x::dx])
    return png(8, 8, rows, interlace=1), pixels


def text_bomb(count):
    """A PNG with `count` texts of 7.9 MB, of which each takes 8 KB in the file."""
    text = b"k\0\0" + zlib.compress(bytes(b"a" * 7_900_000), 9)
    return png(4, 4, png_rows(4, 4), png_chunk(b"zTXt", text) * count)


def gif_bomb():
    """A GIF of some bytes that claims 60000x60000 pixels."""
    size = struct.pack("<HH", 60000, 60000)
    frame = b"\x2c" + bytes(4) + size + b"\0" + b"\x02\x02\x44\x01\x00"
    return b"GIF89a" + size + b"\x80\0\0" + bytes(3) + b"\xff" * 3 + frame + b"\x3b"


def mutate(contents, rng):
    """Damages a file in a random way."""
    data = bytearray(contents)
    start = int(rng.integers(2, len(data) - 1))
    length = int(rng.integers(1, 1 + min(200, len(data) - start)))
    noise = rng.integers(0, 256, length, dtype="uint8").tobytes()
    match int(rng.integers(7)):
        case 0:  # bytes here and there
            for place in rng.integers(2, len(data), int(rng.integers(1, 20))):
                data[place] = int(rng.integers(256))
        case 1:  # the same in the header, where lengths and sizes stand
            for place in rng.integers(2, min(700, len(data)), 3):
                data[place] = int(rng.choice([0, 1, 0x7F, 0x80, 0xFE, 0xFF]))
        case 2:  # cut short
            del data[start:]
        case 3:  # a hole
            del data[start : start + length]
        case 4:  # more than there was
            data[start:start] = noise
        case 5:  # other data
            data[start : start + length] = noise
        case _:  # a part twice
            data[start:start] = data[start : start + length]
    return bytes(data)
