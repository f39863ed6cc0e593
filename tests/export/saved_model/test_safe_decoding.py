import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from tests import tiny_run
from tests.export import image_bytes as files
from vfnet_tf.data import transforms
from vfnet_tf.export.saved_model import safe_decoding
from vfnet_tf.export.saved_model.safe_decoding import (
    DAMAGED,
    OK,
    TOO_LARGE,
    UNKNOWN_FORMAT,
)

GOOD_JPEG = files.encode(tiny_run.picture(1, 40, 70), "JPEG")
GOOD_PNG = files.encode(tiny_run.picture(2, 50, 30))


def prepare(image):
    """The pixels themselves, as the network's input."""
    size = tf.cast(tf.shape(image)[:2], "float32")
    images = tf.cast(image, "float32")
    return {
        "images": images,
        "image_size": size,
        "scale": tf.ones(2),
        "original_size": size,
    }


@pytest.fixture(scope="module")
def prepare_files():
    """Of at most a million pixels; a list of bytes to numpy arrays."""
    graph = tf.function(
        lambda contents: safe_decoding.prepare_files(contents, prepare, 10**6),
        input_signature=[tf.TensorSpec((None,), "string")],
    )

    def run(contents):
        status, found = graph(tf.constant(contents))
        return status.numpy().tolist(), {k: v.numpy() for k, v in found.items()}

    return run


REFUSED = {
    "empty": (b"", UNKNOWN_FORMAT),
    "noise": (np.random.default_rng(1).bytes(1000), UNKNOWN_FORMAT),
    "one byte": (b"\xff", UNKNOWN_FORMAT),
    "text": (b"<svg></svg>", UNKNOWN_FORMAT),
    "gif": (files.encode(Image.new("RGB", (8, 8)), "GIF"), UNKNOWN_FORMAT),
    "gif bomb": (files.gif_bomb(), UNKNOWN_FORMAT),
    "bmp": (files.encode(Image.new("RGB", (8, 8)), "BMP"), UNKNOWN_FORMAT),
    "tiff": (files.encode(Image.new("RGB", (8, 8)), "TIFF"), UNKNOWN_FORMAT),
    "gif behind the first bytes of a jpeg": (
        b"\xff\xd8\xff" + files.gif_bomb(),
        DAMAGED,
    ),
    "gif behind the first bytes of a png": (
        files.PNG_START + files.gif_bomb(),
        DAMAGED,
    ),
    "png of 20000x20000": (files.png(20000, 20000), TOO_LARGE),
    "png just above the limit": (files.png(1001, 1000), TOO_LARGE),
    "png beyond int32": (files.png(1, 2**32 - 1), TOO_LARGE),
    "png beyond int64": (files.png(2**32 - 1, 2**32 - 1), TOO_LARGE),
    "jpeg above the limit": (
        files.encode(Image.new("L", (1001, 1000)), "JPEG"),
        TOO_LARGE,
    ),
    "png of no width": (files.png(8, 0), DAMAGED),
    "png with its size behind another chunk": (
        files.png(5000, 5000, before=files.png_chunk(b"aaAa", b"abcdefgh")),
        DAMAGED,
    ),
    "png cut in its first bytes": (GOOD_PNG[:10], DAMAGED),
    "png cut in its header": (GOOD_PNG[:20], DAMAGED),
    "png cut in its pixels": (GOOD_PNG[:-40], DAMAGED),
    "png with a wrong checksum": (
        GOOD_PNG.replace(b"IDAT", b"IDAT", 1)[:-30] + bytes(30),
        DAMAGED,
    ),
    "jpeg cut in its header": (GOOD_JPEG[:60], DAMAGED),
    "jpeg cut in its pixels": (GOOD_JPEG[:-200], DAMAGED),
    "jpeg of three bytes": (b"\xff\xd8\xff", DAMAGED),
    "jpeg without pixels": (GOOD_JPEG[:20] + b"\xff\xd9", DAMAGED),
    "png with too many texts": (files.text_bomb(17), TOO_LARGE),
}


def test_refused_files_have_a_status_and_do_not_change_other_images(prepare_files):
    contents, expected = [GOOD_JPEG], [OK]
    for content, status in REFUSED.values():
        contents.append(content)
        expected.append(status)
    contents.append(GOOD_PNG)
    status, found = prepare_files(contents)
    names = ["jpeg", *REFUSED, "png"]
    pairs = zip(names, status, strict=True)
    assert [*pairs] == [*zip(names, [*expected, OK], strict=True)]
    _, alone = prepare_files([GOOD_JPEG, GOOD_PNG])
    assert found.pop("index").tolist() == [0, len(names) - 1]
    assert alone.pop("index").tolist() == [0, 1]
    assert found["images"].shape == (2, 50, 70, 3)
    for name, value in found.items():
        np.testing.assert_array_equal(value, alone[name])


def test_an_image_of_exactly_the_limit_is_taken(prepare_files):
    contents = files.encode(Image.new("L", (1000, 1000)), "JPEG")
    assert prepare_files([contents])[0] == [OK]


def test_a_jpeg_of_many_scans_is_refused_before_it_takes_minutes(prepare_files):
    # Of a million pixels 1250 scans are let through.
    contents = files.encode(Image.new("L", (1000, 1000)), "JPEG", progressive=True)
    scan = b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00"
    assert prepare_files([contents[:-2] + scan * 1_300])[0] == [TOO_LARGE]
    assert prepare_files([contents])[0] == [OK]


def test_where_nothing_can_be_decoded_there_is_one_blank_image(prepare_files):
    for contents in ([b""], [b"", GOOD_PNG[:50]], [GOOD_JPEG[:50]] * 3):
        status, found = prepare_files(contents)
        assert OK not in status and len(status) == len(contents)
        assert found["images"].shape == (1, 32, 32, 3)
        assert not found["images"].any()
        assert found["index"].tolist() == [0]
        assert found["image_size"].tolist() == [[32, 32]]


def kinds():
    """Files that are unusual and good, name -> (bytes, pixels or None)."""
    picture = Image.fromarray(tiny_run.picture(4, 40, 60))
    exif = Image.Exif()
    exif[0x0112] = 8
    turned = files.encode(picture, "JPEG", exif=exif)
    deep = np.asarray(picture.convert("L")).astype("uint16") * 250
    interlaced, pixels = files.interlaced_png()
    return {
        "interlaced png": (interlaced, pixels),
        "16-bit png": (files.encode(Image.fromarray(deep)), None),
        "palette png": (files.encode(picture.convert("P")), None),
        "rgba png": (files.encode(picture.convert("RGBA")), None),
        "bilevel png": (files.encode(picture.convert("1")), None),
        "cmyk jpeg": (files.encode(picture.convert("CMYK"), "JPEG"), None),
        "grey jpeg": (files.encode(picture.convert("L"), "JPEG"), None),
        "progressive jpeg": (files.encode(picture, "JPEG", progressive=True), None),
        "turned jpeg": (
            turned,
            np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(turned)))),
        ),
        # It has more rows than the header says; they are dropped.
        "png bomb of pixels": (files.png(4, 4, bytes(20_000_000)), None),
        "png with a few texts": (files.text_bomb(2), None),
    }


def test_unusual_files_give_the_pixels_that_the_pipeline_gives(prepare_files):
    for name, (contents, pixels) in kinds().items():
        status, found = prepare_files([contents])
        assert status == [OK], name
        expected = transforms.decode_image(contents)
        np.testing.assert_array_equal(found["images"][0], expected, err_msg=name)
        if pixels is not None:
            np.testing.assert_array_equal(found["images"][0], pixels, err_msg=name)


def test_images_are_padded_to_the_largest(prepare_files):
    status, found = prepare_files([GOOD_JPEG, GOOD_PNG])
    assert status == [OK, OK]
    assert found["images"].shape == (2, 50, 70, 3)
    assert found["image_size"].tolist() == [[40, 70], [50, 30]]
    assert not found["images"][0, 40:].any() and not found["images"][1, :, 30:].any()
    np.testing.assert_array_equal(
        found["images"][1, :, :30], transforms.decode_image(GOOD_PNG)
    )


def test_examples_without_an_image_are_empty():
    def example(**features):
        return tf.train.Example(
            features=tf.train.Features(
                feature={
                    name.replace("_", "/"): tf.train.Feature(
                        bytes_list=tf.train.BytesList(value=values)
                    )
                    for name, values in features.items()
                }
            )
        ).SerializeToString()

    read = tf.function(
        safe_decoding.read_examples,
        input_signature=[tf.TensorSpec((None,), "string")],
    )
    examples = [
        example(image_encoded=[b"one"], image_format=[b"jpeg"]),
        b"no example",
        example(image_encoded=[b"two"]),
        example(image_encoded=[b"two", b"images"]),
        example(image_format=[b"jpeg"]),
        b"",
    ]
    found = read(tf.constant(examples)).numpy().tolist()
    assert found == [b"one", b"", b"two", b"", b"", b""]
    assert read(tf.constant(examples[1:2])).numpy().tolist() == [b""]
