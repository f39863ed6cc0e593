"""Encoded images and parts of them."""

import io
import zlib

from PIL import Image


def encoded(image, file_format="JPEG", **options):
    """The bytes of a file that PIL writes."""
    stream = io.BytesIO()
    image.save(stream, file_format, **options)
    return stream.getvalue()


def exif(orientation):
    """An EXIF block, which PIL takes as `exif`."""
    block = Image.Exif()
    block[0x0112] = orientation
    return block


def png_chunk(name, content):
    checksum = zlib.crc32(name + content).to_bytes(4, "big")
    return len(content).to_bytes(4, "big") + name + content + checksum
