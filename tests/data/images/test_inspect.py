import os
import struct

import numpy as np
import pytest
from PIL import Image

from tests import tiny_run
from tests.image_files import encoded
from vfnet_tf.config import Config
from vfnet_tf.data.images.inspect import inspect_image
from vfnet_tf.data.images.reasons import Reason
from vfnet_tf.inference.onnx import OnnxPredictor
from vfnet_tf.inference.predictor import Predictor

PICTURE = Image.fromarray(tiny_run.picture(3, 60, 80))


def box_file(brand, *others):
    """The first box of a file of the ISO family."""
    content = b"ftyp" + brand + bytes(4) + b"".join(others)
    return (4 + len(content)).to_bytes(4, "big") + content + bytes(64)


def with_frame(marker=0xC0, bits=8):
    contents = bytearray(encoded(PICTURE, "JPEG"))
    start = contents.index(b"\xff\xc0")
    contents[start + 1], contents[start + 4] = marker, bits
    return bytes(contents)


def mode(name, file_format="TIFF", **options):
    return lambda: encoded(PICTURE.convert(name), file_format, **options)


def signed():
    """A TIFF of signed 8-bit numbers: tag 339 says 2 in place of 1."""
    contents = encoded(PICTURE.convert("L"), "TIFF", tiffinfo={339: 1})
    entry = struct.pack("<HHI", 339, 3, 1)
    return contents.replace(entry + b"\1\0", entry + b"\2\0")


def without_palette():
    contents = encoded(PICTURE.convert("P"), "PNG")
    start = contents.index(b"PLTE") - 4
    length = int.from_bytes(contents[start : start + 4], "big")
    return contents[:start] + contents[start + 12 + length :]


JPEG, PNG, WEBP = (
    encoded(PICTURE, "JPEG"),
    encoded(PICTURE, "PNG"),
    encoded(PICTURE, "WEBP"),
)
REFUSED = {
    "heic": (box_file(b"heic", b"mif1"), "unsupported_format", "is HEIC, must be"),
    "heif": (box_file(b"mif1", b"mif1", b"heic"), "unsupported_format", "is HEIC"),
    "avif": (mode("RGB", "AVIF"), "unsupported_format", "is AVIF"),
    "avif of mif1": (box_file(b"mif1", b"avif"), "unsupported_format", "is AVIF"),
    "film": (box_file(b"isom"), "unsupported_format", "is a video"),
    "gif": (mode("P", "GIF"), "unsupported_format", "is GIF"),
    "jpeg 2000": (mode("RGB", "JPEG2000"), "unsupported_format", "is JPEG 2000"),
    "jpeg xl": (b"\xff\x0a" + bytes(9), "unsupported_format", "is JPEG XL"),
    "svg": (b"<?xml version='1.0'?><svg/>", "unsupported_format", "is SVG"),
    "pdf": (mode("RGB", "PDF"), "unsupported_format", "is PDF"),
    "web page": (b"\n<!DOCTYPE html><p>404", "unsupported_format", "is a web page"),
    "lfs": (b"version https://git-lfs.x/", "unsupported_format", "git lfs pull"),
    "raw": (b"II*\0\x10\0\0\0CR\2\0", "unsupported_format", "raw file"),
    "dng": (mode("RGB", tiffinfo={50706: b"\1\4\0\0"}), "unsupported_format", "raw"),
    "preview": (mode("RGB", tiffinfo={254: 1}), "unsupported_format", "raw file"),
    "lab": (mode("LAB"), "unsupported_format", "LAB: convert it to 8-bit RGB"),
    "32 bits": (mode("I"), "unsupported_format", "integers as pixels; no range"),
    "floats": (mode("F"), "unsupported_format", "has floats as pixels; no range"),
    "signed": (signed, "unsupported_format", "has signed integers as pixels"),
    "jpeg of 12 bits": (with_frame(bits=12), "unsupported_format", "JPEG of 12 bits"),
    "lossless jpeg": (with_frame(0xC3), "unsupported_format", "JPEG of another kind"),
    "text": (b"not an image", "undecodable_image", "is not an image"),
    "nothing": (b"", "undecodable_image", "is empty"),
    "head of a jpeg": (JPEG[:100], "truncated_image", "runcated"),
    "start of a jpeg": (JPEG[:3], "undecodable_image", "is JPEG, but damaged"),
    "cut jpeg": (JPEG[:-400], "truncated_image", "truncated"),
    "cut png": (PNG[:-400], "truncated_image", "its end chunk is missing"),
    "png without end": (PNG[:-12], "truncated_image", "its end chunk is missing"),
    "png without palette": (without_palette, "corrupt_image", "has no palette"),
    "cut webp": (WEBP[:-40], "truncated_image", "bytes of"),
    "cut bmp": (encoded(PICTURE, "BMP")[:-400], "truncated_image", "truncated"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_read_is_named_with_a_code_wherever_it_is_read(tmp_path, name):
    contents, code, text = REFUSED[name]
    path = tmp_path / "file"
    path.write_bytes(contents if isinstance(contents, bytes) else contents())
    for full in (True, False):
        header = inspect_image(str(path), full=full)
        assert header.code == code and text in header.error
    predictor = Predictor(tiny_run.PlainDetector(), Config())
    for read in (predictor.read_file, lambda p: OnnxPredictor.read_file(predictor, p)):
        with pytest.raises(ValueError, match=r"file (is|has|cannot)") as error:
            read(str(path))
        assert text in str(error.value)


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    for name, code, text in (
        ("pipe.jpg", Reason.UNDECODABLE, "is no regular file, but a pipe"),
        (".", Reason.UNDECODABLE, "is no regular file, but a folder"),
        ("nowhere.jpg", Reason.MISSING, "does not exist"),
    ):
        header = inspect_image(str(tmp_path / name))
        assert (header.code, header.error) == (code, text)


@pytest.mark.parametrize("mode", ["I", "F", "LAB"])
def test_a_pil_image_of_no_range_is_refused_as_the_file_is(mode):
    predictor = Predictor(tiny_run.PlainDetector(), Config())
    with pytest.raises(ValueError, match=r"An image must be readable.*(no range|LAB)"):
        predictor(PICTURE.convert(mode))


def test_an_orientation_outside_of_exif_does_not_count(tmp_path):
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6"/></x:xmpmeta>'
    for name, options in (
        ("a.jpg", {"xmp": xmp}),
        ("a.webp", {"xmp": xmp, "lossless": True}),
        ("a.tif", {"tiffinfo": {700: xmp}}),
    ):
        PICTURE.save(tmp_path / name, **options)
        header = inspect_image(str(tmp_path / name))
        assert (header.height, header.width, header.orientation) == (60, 80, 1)
        predictor = Predictor(tiny_run.PlainDetector(), Config())
        pixels = predictor.read_file(str(tmp_path / name))
        assert pixels.shape == (60, 80, 3)
        with Image.open(tmp_path / name) as image:
            np.testing.assert_array_equal(predictor._load(image), pixels)
