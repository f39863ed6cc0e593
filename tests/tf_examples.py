"""TFRecords and `tf.train.Example`s byte by byte, without TensorFlow and the package."""

import io
import struct

import numpy as np
from PIL import Image

LABEL_MAP = "item { id: 1 name: 'cat' }\nitem { id: 2 name: 'dog' }\n"


def crc32c(data):
    """CRC-32C, bit by bit (RFC 3720, B.4): that of b'123456789' is E3069283."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 * (crc & 1))
    return crc ^ 0xFFFFFFFF


def checksum(data):
    crc = crc32c(data)
    rotated = ((crc >> 15) | (crc << 17)) & 0xFFFFFFFF
    return struct.pack("<I", (rotated + 0xA282EAD8) & 0xFFFFFFFF)


def framed(data):
    """A record of a TFRecord."""
    length = struct.pack("<Q", len(data))
    return length + checksum(length) + data + checksum(data)


def varint(number):
    number &= 2**64 - 1  # negative numbers take ten bytes
    parts = []
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


def field(number, data):
    """A field of bytes of a message."""
    return varint(number << 3 | 2) + varint(len(data)) + data


def feature(values, packed=True):
    """A `tf.train.Feature` of bytes, floats or ints."""
    if isinstance(values[0], bytes):
        return field(1, b"".join(field(1, value) for value in values))
    if isinstance(values[0], float):
        parts, mark, kind = (
            [struct.pack("<f", value) for value in values],
            1 << 3 | 5,
            2,
        )
    else:
        parts, mark, kind = [varint(value) for value in values], 1 << 3, 3
    if packed:
        return field(kind, field(1, b"".join(parts)))
    return field(kind, b"".join(bytes([mark]) + part for part in parts))


def example(features, packed=True):
    """A `tf.train.Example` of a dict from names to lists."""
    entries = [
        field(1, field(1, name.encode()) + field(2, feature(values, packed)))
        for name, values in features.items()
        if values
    ]
    return field(1, b"".join(entries))


def picture(height=50, width=100, seed=0, image_format="JPEG", **options):
    """An encoded image, bytes."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), "uint8")
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, image_format, **options)
    return file.getvalue()


def features(seed=0, **changes):
    """Features of an image of 50x100 with a cat at x 10..40, y 20..40 pixels.

    `changes` are lists by the last part of a name; None leaves a feature out.
    """
    found = {
        "image/encoded": [picture(seed=seed)],
        "image/format": [b"jpeg"],
        "image/filename": [b"%d.jpg" % seed],
        "image/height": [50],
        "image/width": [100],
        "image/object/bbox/xmin": [0.1],
        "image/object/bbox/ymin": [0.4],
        "image/object/bbox/xmax": [0.4],
        "image/object/bbox/ymax": [0.8],
        "image/object/class/text": [b"cat"],
        "image/object/class/label": [1],
    }
    names = {name.rpartition("/")[2]: name for name in found}
    names |= {n: f"image/object/{n}" for n in ("is_crowd", "difficult", "area")}
    names |= {"source_id": "image/source_id"}
    for name, values in changes.items():
        found[names[name]] = values
    return {name: values for name, values in found.items() if values is not None}


def record(seed=0, **changes):
    """The framed record of `features`."""
    return framed(example(features(seed, **changes)))


def write_records(root, files):
    """Writes a dict from names to lists of records, bytes or texts; returns `root`."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            path.write_text(content, encoding="utf-8")
        else:
            path.write_bytes(
                content if isinstance(content, bytes) else b"".join(content)
            )
    return root
