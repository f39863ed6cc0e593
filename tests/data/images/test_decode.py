import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from tests.image_files import encoded, png_chunk
from vfnet_tf.data.images import containers, decode


def make_pixels():
    return np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype("uint8")


# PNG and other formats: see test_one_reading.py.
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_decodes_as_pil_does(mode):
    contents = encoded(Image.fromarray(make_pixels()).convert(mode))
    expected = np.asarray(Image.open(io.BytesIO(contents)).convert("RGB"))
    decoded = decode.decode_image(contents)
    assert decoded.dtype == tf.uint8
    np.testing.assert_array_equal(decoded, expected)


def exif_bytes(orientation, byte_order):
    """An EXIF block by hand: a directory of two entries, the second is the turn."""
    order = "little" if byte_order == b"II" else "big"

    def number(value, size):
        return value.to_bytes(size, order)

    entry = [number(v, s) for v, s in ((0x0110, 2), (2, 2), (1, 4), (0, 4))]
    turn = [number(v, s) for v, s in ((0x0112, 2), (3, 2), (1, 4), (orientation, 2))]
    directory = number(2, 2) + b"".join(entry + turn) + b"\0\0" + number(0, 4)
    return b"Exif\0\0" + byte_order + number(42, 2) + number(8, 4) + directory


# Traced once, as in an export.
served = tf.function(decode.decode_image, input_signature=[tf.TensorSpec((), "string")])
orientation_in_graph = tf.function(
    decode.exif_orientation, input_signature=[tf.TensorSpec((), "string")]
)


def orientation_of(contents):
    """The orientation that a file says, the same in Python and in the graph."""
    found = int(orientation_in_graph(contents))
    assert containers.exif_orientation(contents) == found
    return found


@pytest.mark.parametrize("byte_order", [b"II", b"MM"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_exif_orientation_is_applied_as_pil_does(orientation, byte_order, file_format):
    exif = exif_bytes(orientation, byte_order)
    contents = encoded(Image.fromarray(make_pixels()), file_format, exif=exif)
    assert orientation_of(contents) == orientation
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(contents)))
    np.testing.assert_array_equal(served(contents), np.asarray(expected))


def test_an_exif_block_after_another_application_block_is_found():
    exif = exif_bytes(6, b"MM")
    contents = encoded(Image.fromarray(make_pixels()), "JPEG", exif=exif)
    note = b"\xff\xe1" + (2 + 29).to_bytes(2, "big") + b"http://ns.adobe.com/xap/1.0/\0"
    colours = b"\xff\xe2\xff\xff" + bytes(65533)  # a profile of several segments
    contents = contents[:2] + note + 3 * colours + b"\xff\xff" + contents[2:]
    assert orientation_of(contents) == 6


@pytest.mark.parametrize("parts, expected", [(100, 6), (30_000, 1)])
def test_exif_is_looked_for_in_the_first_parts_only(parts, expected):
    # All of them would take seconds, and the sender has a hundred kilobytes to write.
    exif = exif_bytes(6, b"MM")
    contents = encoded(Image.fromarray(make_pixels()), "JPEG", exif=exif)
    contents = contents[:2] + b"\xff\xe0\x00\x02" * parts + contents[2:]
    assert orientation_of(contents) == expected
    contents = encoded(Image.fromarray(make_pixels()), "PNG", exif=exif)
    contents = contents[:33] + png_chunk(b"noTe", b"") * parts + contents[33:]
    assert orientation_of(contents) == expected


def test_the_orientation_may_be_a_long_number_and_have_exif_before_its_name():
    block = exif_bytes(6, b"MM")
    long = block.replace(b"\1\x12\0\3\0\0\0\1\0\6\0\0", b"\1\x12\0\4\0\0\0\1\0\0\0\6")
    assert long != block
    png = encoded(Image.fromarray(make_pixels()), "PNG")
    for content in (block, block[6:], long, long[6:]):
        with_exif = png[:-12] + png_chunk(b"eXIf", content) + png[-12:]
        assert orientation_of(with_exif) == 6


def test_damaged_exif_counts_as_none_or_means_the_same_in_python_and_in_the_graph():
    exif = exif_bytes(6, b"MM")
    jpeg = encoded(Image.fromarray(make_pixels()), "JPEG", exif=exif)
    start = jpeg.index(b"Exif")
    for damage in (
        jpeg[:start] + b"Exif\0\0MM" + b"\xff" * 20 + jpeg[start + 28 :],
        jpeg[: start + 12],
        jpeg.replace((6).to_bytes(2, "big") + b"\0\0", b"\0\x09\0\0", 1),
        jpeg.replace(b"MM\0*", b"MM\0+"),
        b"\xff\xd8" + b"\xff" * 50,
        b"",
        encoded(Image.fromarray(make_pixels()), "PNG"),
        encoded(Image.fromarray(make_pixels()), "GIF"),
    ):
        assert orientation_of(damage) == 1
    random = np.random.default_rng(3)
    png = encoded(Image.fromarray(make_pixels()), "PNG", exif=exif)
    for contents in (jpeg, png):
        start = contents.lower().index(b"exif")
        for _ in range(150):
            damaged = np.frombuffer(contents, "uint8").copy()
            places = random.integers(start - 12, start + 60, 2)
            damaged[places] = random.integers(0, 256, 2)
            length = len(damaged) if random.random() < 0.7 else start + places[0] % 60
            orientation_of(damaged[:length].tobytes())


def test_an_orientation_may_be_a_python_int():
    image = tf.reshape(tf.range(6), [2, 3, 1])
    turned = decode.orient(image, 6)
    np.testing.assert_array_equal(turned, decode.orient(image, tf.constant(6)))
    assert turned.shape == (3, 2, 1)
