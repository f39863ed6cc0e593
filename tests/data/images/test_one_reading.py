"""The same file gives the same pixels, size and boxes wherever it is read."""

import json
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tests import tiny_run
from tests.image_files import encoded, exif, png_chunk
from vfnet_tf.config import Config
from vfnet_tf.data.formats.conversion import convert_dataset
from vfnet_tf.data.formats.readers import find_splits
from vfnet_tf.data.images import decode, inspect, numpy_decode
from vfnet_tf.data.scan import checks
from vfnet_tf.inference.onnx import OnnxPredictor
from vfnet_tf.inference.predictor import Predictor

HEIGHT, WIDTH = 40, 64
# Corners of the only white square, in pixels of the upright picture.
BOX = (48, 8, 56, 16)

# Upright picture -> how an orientation stores it (EXIF 2.32, tag 0x0112: where row 0
# and column 0 of the file are in the picture).
STORED = {
    1: lambda upright: upright,  # top, left
    2: lambda upright: upright[:, ::-1],  # top, right
    3: lambda upright: upright[::-1, ::-1],  # bottom, right
    4: lambda upright: upright[::-1],  # bottom, left
    5: lambda upright: np.swapaxes(upright, 0, 1),  # left, top
    6: lambda upright: np.rot90(upright),  # right, top
    7: lambda upright: np.swapaxes(upright, 0, 1)[::-1, ::-1],  # right, bottom
    8: lambda upright: np.rot90(upright, -1),  # left, bottom
}


def grey_levels():
    """uint8 `[40, 64]`: cells of 8x8, which a JPEG keeps, of all levels; one is white."""
    levels = np.random.default_rng(5).integers(0, 200, (HEIGHT // 8, WIDTH // 8))
    levels[BOX[1] // 8, BOX[0] // 8] = 255
    return np.kron(levels, np.ones((8, 8))).astype("uint8")


GREY = grey_levels()
COLOUR = np.stack([GREY, GREY // 2, GREY[::-1] // 3], axis=-1)
COLOUR[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 255
ALPHA = np.tile(np.arange(WIDTH, dtype="uint8") * 4, (HEIGHT, 1))
# The low byte of 16 bits, and the low four bits of 12, must not matter.
NOISE = np.random.default_rng(6).integers(0, 256, (HEIGHT, WIDTH)).astype("uint16")
DEEP = GREY.astype("uint16") << 8 | NOISE
TWELVE = GREY.astype("uint16") << 4 | NOISE >> 4
BLACK_AND_WHITE = np.where(GREY > 150, 255, 0).astype("uint8")


def pil(file_format, mode=None, **options):
    """Maker of files by PIL, with EXIF."""

    def make(stored, orientation):
        image = Image.fromarray(np.ascontiguousarray(stored))
        image = image if mode is None else image.convert(mode)
        if file_format == "TIFF":
            turned = {"tiffinfo": {0x0112: orientation}}
        else:
            turned = {"exif": exif(orientation)} if file_format != "BMP" else {}
        return encoded(image, file_format, **turned, **options)

    return make


def without_adobe(stored, orientation):
    """A CMYK JPEG whose inks are not inverted, as there is no marker that says so."""
    # PIL writes them inverted: no colour, and black as it is stored.
    inks = [Image.fromarray(255 - ink) for ink in (*[stored * 0] * 3, stored)]
    inks = Image.merge("CMYK", inks)
    contents = encoded(inks, "JPEG", exif=exif(orientation), quality=100)
    start = contents.index(b"\xff\xee")
    length = int.from_bytes(contents[start + 2 : start + 4], "big")
    return contents[:start] + contents[start + 2 + length :]


WHOLE = ((0, 1, 0, 1),)
# First column, step, first row, step of each pass.
PASSES = ((0, 8, 0, 8), (4, 8, 0, 8), (0, 4, 4, 8), (2, 4, 0, 4), (0, 2, 2, 4))
PASSES += ((1, 2, 0, 2), (0, 1, 1, 2))


def png(kind, depth, *, passes=WHOLE, exif_behind=False, extra=b"", behind=b""):
    """Maker of PNG files by hand: `kind` is the colour type of the header."""

    def make(stored, orientation):
        height, width = stored.shape[:2]
        samples = stored.astype(">u2" if depth == 16 else "u1")
        rows = []
        for x, x_step, y, y_step in passes:
            rows += [bytes(1) + row.tobytes() for row in samples[y::y_step, x::x_step]]
        is_interlaced = len(passes) > 1
        header = struct.pack(">2I5B", width, height, depth, kind, 0, 0, is_interlaced)
        turned = png_chunk(b"eXIf", exif(orientation).tobytes()[6:])
        pixels = zlib.compress(b"".join(rows))
        half = len(pixels) // 2
        chunks = [png_chunk(b"IDAT", pixels[:half]), png_chunk(b"IDAT", pixels[half:])]
        chunks.insert(2 if exif_behind else 0, turned)
        parts = [png_chunk(b"IHDR", header), extra, *chunks, png_chunk(b"IEND", b"")]
        return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + behind

    return make


def tiff(bits, photometric=1, order="<", pack=None):
    """Maker of uncompressed TIFF files by hand."""

    def make(stored, orientation):
        height, width = stored.shape[:2]
        data = stored.astype(order + "u2").tobytes() if pack is None else pack(stored)
        channels = stored.shape[2] if stored.ndim == 3 else 1
        tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8}
        tags |= {274: orientation, 277: channels, 278: height, 279: len(data)}
        places = b""
        if channels > 1:  # three numbers have no room in the entry
            places = struct.pack(f"{order}3H", *[bits] * channels)
        start = 8 + len(data)
        entries = b""
        for tag, value in tags.items():
            if tag == 258 and channels > 1:
                entries += struct.pack(f"{order}HHII", tag, 3, channels, start)
            elif tag in (273, 279):
                entries += struct.pack(f"{order}HHII", tag, 4, 1, value)
            else:
                entries += struct.pack(f"{order}HHIHH", tag, 3, 1, value, 0)
        name = b"II*\0" if order == "<" else b"MM\0*"
        head = name + struct.pack(f"{order}I", start + len(places))
        directory = struct.pack(f"{order}H", len(tags)) + entries + bytes(4)
        return head + data + places + directory

    return make


def packed_12_bits(values):
    """Two numbers in three bytes."""
    first, second = values[:, ::2].astype("int32"), values[:, 1::2].astype("int32")
    three = np.stack([first >> 4, first % 16 << 4 | second >> 8, second % 256], axis=-1)
    return three.astype("uint8").tobytes()


def frames(file_format, **options):
    """Maker of files whose second frame is another picture."""

    def make(stored, orientation):
        second = Image.fromarray(255 - stored)
        return pil(file_format, save_all=True, append_images=[second], **options)(
            stored, orientation
        )

    return make


PALETTE = png_chunk(b"PLTE", np.arange(256, dtype="uint8").repeat(3).tobytes())
HALF_CLEAR = png_chunk(b"tRNS", bytes(range(256)))
DEEP_COLOUR = COLOUR.astype("uint16") << 8 | NOISE[..., None]

#: name -> (suffix, upright picture, maker of the file, upright 8-bit picture expected)
KINDS = {
    "jpeg": ("jpg", np.stack([GREY] * 3, -1), pil("JPEG", quality=100), GREY),
    "jpeg grey": ("jpg", GREY, pil("JPEG", quality=100), GREY),
    "jpeg progressive": ("jpg", GREY, pil("JPEG", quality=100, progressive=True), GREY),
    "jpeg cmyk": ("jpg", GREY, pil("JPEG", "CMYK", quality=100), GREY),
    "jpeg cmyk, not adobe's": ("jpg", GREY, without_adobe, 255 - GREY),
    "mpo": ("jpg", np.stack([GREY] * 3, -1), frames("MPO", quality=100), GREY),
    "png": ("png", COLOUR, pil("PNG"), COLOUR),
    "png bit": ("png", GREY > 150, pil("PNG"), BLACK_AND_WHITE),
    "png grey": ("png", GREY, pil("PNG"), GREY),
    "png grey and alpha": ("png", np.stack([GREY, ALPHA], -1), pil("PNG"), GREY),
    "png alpha": ("png", np.dstack([COLOUR, ALPHA]), pil("PNG"), COLOUR),
    "png palette": ("png", GREY, png(3, 8, extra=PALETTE), GREY),
    "png clear palette": ("png", GREY, png(3, 8, extra=PALETTE + HALF_CLEAR), GREY),
    "png 16": ("png", DEEP, pil("PNG"), GREY),
    "png 12 in 16": ("png", TWELVE, pil("PNG"), GREY >> 4),
    "png 16 and alpha": ("png", np.stack([DEEP, NOISE], -1), png(4, 16), GREY),
    "png 16 colour": ("png", DEEP_COLOUR, png(2, 16), COLOUR),
    "png exif behind": ("png", COLOUR, png(2, 8, exif_behind=True), COLOUR),
    "png interlaced": ("png", COLOUR, png(2, 8, passes=PASSES), COLOUR),
    "png and more": ("png", COLOUR, png(2, 8, behind=b"more" * 99), COLOUR),
    "png animated": ("png", COLOUR, frames("PNG"), COLOUR),
    "tiff": ("tif", COLOUR, pil("TIFF"), COLOUR),
    "tiff packed": ("tif", COLOUR, pil("TIFF", compression="tiff_lzw"), COLOUR),
    "tiff bit": ("tif", GREY > 150, pil("TIFF"), BLACK_AND_WHITE),
    "tiff grey": ("tif", GREY, pil("TIFF"), GREY),
    "tiff alpha": ("tif", np.dstack([COLOUR, ALPHA]), pil("TIFF"), COLOUR),
    "tiff palette": ("tif", GREY, pil("TIFF", "P"), GREY),
    "tiff cmyk": ("tif", GREY, pil("TIFF", "CMYK"), GREY),
    "tiff 12": ("tif", TWELVE, tiff(12, pack=packed_12_bits), GREY),
    "tiff 16": ("tif", DEEP, pil("TIFF"), GREY),
    "tiff 16 big-endian": ("tif", DEEP, tiff(16, order=">"), GREY),
    "tiff 16, 0 is white": ("tif", 65535 - DEEP, tiff(16, photometric=0), GREY),
    "tiff 16 colour": ("tif", DEEP_COLOUR, tiff(16, photometric=2), COLOUR),
    "tiff pages": ("tif", COLOUR, frames("TIFF"), COLOUR),
    "webp": ("webp", COLOUR, pil("WEBP", lossless=True), COLOUR),
    "webp alpha": (
        "webp",
        np.dstack([COLOUR, np.maximum(ALPHA, 1)]),
        pil("WEBP", lossless=True, exact=True),
        COLOUR,
    ),
    "webp animated": ("webp", COLOUR, frames("WEBP", lossless=True), COLOUR),
    "bmp": ("bmp", COLOUR, pil("BMP"), COLOUR),
    "bmp bit": ("bmp", GREY > 150, pil("BMP"), BLACK_AND_WHITE),
    "bmp grey": ("bmp", GREY, pil("BMP"), GREY),
    "bmp palette": ("bmp", GREY, pil("BMP", "P"), GREY),
}
CASES = [
    (kind, orientation)
    for kind in KINDS
    for orientation in ([1] if kind.startswith("bmp") else STORED)
]

# Traced once for all files, as in the pipeline and in a SavedModel.
served = tf.function(decode.decode_image, input_signature=[tf.TensorSpec((), "string")])
trained = tf.function(
    decode.load_image,
    input_signature=[
        tf.TensorSpec((), "string"),
        tf.TensorSpec((), "int32"),
        tf.TensorSpec((), "bool"),
    ],
)


def write(path, kind, orientation):
    """Writes a file of `KINDS`; returns its upright pixels, uint8 `[h, w, 3]`."""
    _, upright, make, expected = KINDS[kind]
    path.write_bytes(
        make(np.ascontiguousarray(STORED[orientation](upright)), orientation)
    )
    return expected if expected.ndim == 3 else np.stack([expected] * 3, axis=-1)


@pytest.mark.parametrize("kind, orientation", CASES)
def test_every_path_gives_the_pixels_that_were_made(tmp_path, kind, orientation):
    path = tmp_path / f"a.{KINDS[kind][0]}"
    expected = write(path, kind, orientation)
    looks = []
    header = inspect.inspect_image(
        str(path),
        look=lambda *seen: looks.append(checks._thumbnail(*seen)),
        find_damage=True,
    )
    assert header.error == ""
    assert (header.height, header.width) == (HEIGHT, WIDTH)
    assert header.orientation == orientation
    assert inspect.inspect_image(str(path), full=False) == header

    predictor = Predictor(tiny_run.PlainDetector(), Config())
    with Image.open(path) as image:
        found = {
            "training and evaluation": trained(
                str(path), header.orientation, header.needs_pil
            ).numpy(),
            "Predictor, file": predictor.read_file(str(path)),
            "Predictor, PIL image": predictor._load(image),
            "ONNX": OnnxPredictor.read_file(predictor, str(path)),
            "pictures of a page": numpy_decode.load_image(path),
        }
    assert header.needs_pil == (path.suffix not in (".jpg", ".png"))
    if not header.needs_pil:
        found["SavedModel"] = served(path.read_bytes()).numpy()
    for name, pixels in found.items():
        assert pixels.dtype == np.uint8, name
        np.testing.assert_array_equal(pixels, expected, err_msg=name)

    ((thumb, brightest),) = looks
    grey = Image.fromarray(expected).convert("L")
    assert thumb == grey.resize((16, 16), Image.Resampling.BOX).tobytes()
    assert brightest == (max(thumb) if max(thumb) >= 32 else expected.max())


@pytest.mark.parametrize("kind", ["jpeg", "png", "png exif behind", "tiff 16", "webp"])
def test_a_marked_square_keeps_its_box_in_a_conversion(tmp_path, kind):
    pytest.importorskip("yaml", reason="needs PyYAML, the extra yolo")
    images, labels = tmp_path / "set/images/train", tmp_path / "set/labels/train"
    images.mkdir(parents=True)
    labels.mkdir(parents=True)
    (tmp_path / "set/data.yaml").write_text("train: images/train\nnames: [square]\n")
    x1, y1, x2, y2 = BOX
    line = [(x1 + x2) / 2 / WIDTH, (y1 + y2) / 2 / HEIGHT, 8 / WIDTH, 8 / HEIGHT]
    for orientation in STORED:
        write(images / f"{orientation}.{KINDS[kind][0]}", kind, orientation)
        (labels / f"{orientation}.txt").write_text(" ".join(map(str, [0, *line])))
    convert_dataset(find_splits(tmp_path / "set"), "coco", tmp_path / "out")
    content = json.loads(
        (tmp_path / "out/annotations/instances_train.json").read_text()
    )
    assert [entry["bbox"] for entry in content["annotations"]] == [[48, 8, 8, 8]] * 8
    for entry in content["images"]:
        assert (entry["height"], entry["width"]) == (HEIGHT, WIDTH)
        name = entry["file_name"]
        pixels = numpy_decode.load_image(next((tmp_path / "out").rglob(name)))
        rows, columns = np.nonzero(pixels.min(axis=-1) == 255)
        square = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert square == BOX, name
