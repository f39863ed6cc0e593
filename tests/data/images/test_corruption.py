import functools
import zlib

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests.image_files import encoded, png_chunk
from tests.tiny_run import picture
from vfnet_tf.data.images.inspect import inspect_image

PHOTO = Image.fromarray(picture(7, 150, 200))


def in_the_middle(contents, change):
    """Bytes with the middle tenth of them changed by a function."""
    start, length = len(contents) // 2, len(contents) // 10
    part = contents[start : start + length]
    return contents[:start] + change(part) + contents[start + length :]


def noise(part):
    # No marker, so that it is only found by what it does to the rest.
    return np.random.default_rng(0).integers(0, 255, len(part), "uint8").tobytes()


def zeros(part):
    return bytes(len(part))


def recompressed(contents, change):
    """A PNG with good checksums whose inflated pixels are changed."""
    start = contents.index(b"IDAT") - 4
    end = start + 12 + int.from_bytes(contents[start : start + 4], "big")
    pixels = zlib.compress(change(zlib.decompress(contents[start + 8 : end - 4])))
    return contents[:start] + png_chunk(b"IDAT", pixels) + contents[end:]


jpeg = functools.partial(encoded, PHOTO, quality=90)
PNG = encoded(PHOTO, "PNG")
DAMAGED = {
    "cut, with an end": (jpeg()[:-2000] + b"\xff\xd9", "end before the picture"),
    "noise": (in_the_middle(jpeg(), noise), "coded data"),
    "zeros": (in_the_middle(jpeg(), zeros), "zeros inside"),
    "a part is missing": (in_the_middle(jpeg(), lambda part: b""), "coded data"),
    "a part twice": (in_the_middle(jpeg(), lambda part: 2 * part), "go on behind"),
    "a foreign marker": (
        in_the_middle(jpeg(), lambda part: part[:-4] + b"\xff\xe5\0\x10"),
        "no marker at byte",
    ),
    "progressive, cut": (
        jpeg(progressive=True)[:-2000] + b"\xff\xd9",
        "end before the picture",
    ),
    "progressive, noise": (in_the_middle(jpeg(progressive=True), noise), "coded data"),
    "a restart marker is missing": (
        jpeg(restart_marker_rows=1).replace(b"\xff\xd3", b""),
        "a restart marker out of order",
    ),
    "a restart interval too many": (
        jpeg(restart_marker_rows=1).replace(b"\xff\xd3", b"\xff\xd3\xff\xd4"),
        "out of order",
    ),
    "noise between restart markers": (
        in_the_middle(jpeg(restart_marker_rows=4), noise),
        "coded data",
    ),
    "too much between restart markers": (
        jpeg(restart_marker_rows=4).replace(
            b"\xff\xd0", bytes(range(1, 40)) + b"\xff\xd0"
        ),
        "go on behind their part",
    ),
    "png, a checksum": (PNG[:-16] + bytes(4) + PNG[-12:], "the checksum of IDAT"),
    "png, too few pixels": (
        recompressed(PNG, lambda pixels: pixels[:-601]),
        "its pixels end at byte",
    ),
    "tiff": (
        in_the_middle(
            encoded(PHOTO, "TIFF", compression="tiff_adobe_deflate"),
            lambda part: part[:9] + bytes([part[9] ^ 1]) + part[10:],
        ),
        "do not inflate",
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_that_decoders_forgive_is_named(tmp_path, name):
    contents, text = DAMAGED[name]
    path = tmp_path / "a"
    path.write_bytes(contents)
    header = inspect_image(str(path), find_damage=True)
    assert header.code == "corrupt_image", header
    assert header.error.startswith("is corrupt: ") and text in header.error


def drawn(background):
    """A picture that ends with blocks of one colour, on which changes do not show."""
    image = Image.new("RGB", (101, 77), background)
    ImageDraw.Draw(image).rectangle((10, 10, 50, 40), fill=(200, 30, 60))
    return image


GOOD = {
    "photo": PHOTO,
    "grey": PHOTO.convert("L"),
    "cmyk": PHOTO.convert("CMYK"),
    "white border": drawn("white"),
    "black border": drawn("black"),
    "noise": Image.fromarray(
        np.random.default_rng(2).integers(0, 256, (61, 83, 3), "uint8")
    ),
    "one pixel": PHOTO.crop((0, 0, 1, 1)),
}
OPTIONS = [
    {},
    {"quality": 100, "subsampling": 0},
    {"quality": 5, "optimize": True, "subsampling": "4:1:1"},
    {"progressive": True},
    {"quality": 100, "progressive": True},
    {"restart_marker_blocks": 3},
]


@pytest.mark.parametrize("name", GOOD)
def test_a_good_jpeg_gives_no_alarm_however_it_is_coded(tmp_path, name):
    path = tmp_path / "a.jpg"
    for options in OPTIONS:
        if GOOD[name].mode != "RGB":
            options = {k: v for k, v in options.items() if k != "subsampling"}
        for behind in (b"", b"\0" * 100, b"notes of a camera"):
            path.write_bytes(encoded(GOOD[name], **options) + behind)
            assert inspect_image(str(path), find_damage=True).error == "", options


def test_real_photographs_give_no_alarm(shared_data):
    for folder in ("bccd", "coco_mini"):
        files = sorted(shared_data(folder).rglob("*.jpg"))
        assert len(files) > 100
        for file in files[::5]:
            assert inspect_image(str(file), find_damage=True).error == "", file
