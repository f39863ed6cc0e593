"""Image files and PIL images to pixels, with PIL and numpy.

`images.decode` gives the same pixels in TensorFlow for JPEG and PNG. The rules:

- 8-bit RGB comes out; alpha is dropped, not blended; ICC profiles and gamma are ignored.
- Of 16 bits the high byte is kept, of a TIFF of 12 bits the upper 8.
- 32-bit integers, floats and signed numbers have no range of their own: refused.
- A JPEG of four colours is CMYK, inverted where Adobe's marker is.
- Of several frames or pages the first is read.
- The orientation is applied once; see `containers.exif_orientation`.
"""

import os

import numpy as np
from PIL import Image, ImageChops

from vfnet_tf.data.images import containers
from vfnet_tf.data.images.places import open_image
from vfnet_tf.data.images.reasons import ImageError, Reason

#: Formats as PIL calls them. It opens MPO, a JPEG with more behind it, as JPEG.
PIL_FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")

_CONVERTED = {"La": "LA", "RGBa": "RGBA", "P": "RGBA", "PA": "RGBA"}
_MODES = frozenset({"1", "L", "LA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV"})
_DEEP = ("I;16", "I;16L", "I;16B", "I;16N")
_NO_RANGE = {"I": "32-bit or signed integers", "F": "floats"}
_RANGE_ADVICE = (
    "no range says which is white: scale them to 0..255 and save as 8-bit JPEG or PNG"
)
# Tags of TIFF.
_SUBFILE, _BITS, _PHOTOMETRIC, _SAMPLE_FORMAT, _DNG = 254, 258, 262, 339, 50706


def check_kind(image):
    """Refuses an open PIL image whose pixels have no certain meaning as 8-bit RGB.

    Args:
        image: `PIL.Image.Image`; it need not be loaded.

    Raises:
        ImageError: naming the kind and what to do.
    """
    tags = _tags(image)
    if _DNG in tags or tags.get(_SUBFILE, 0) & 1:
        raise ImageError(
            Reason.UNSUPPORTED,
            "is a camera's raw file (its first picture is a preview): "
            "develop it to JPEG or PNG",
        )
    formats = np.ravel(tags.get(_SAMPLE_FORMAT, 1))
    if image.mode in _NO_RANGE or (formats != 1).any():
        what = _NO_RANGE.get(image.mode, "signed integers")
        raise ImageError(Reason.UNSUPPORTED, f"has {what} as pixels; {_RANGE_ADVICE}")
    if image.mode not in (*_MODES, *_DEEP, *_CONVERTED):
        raise ImageError(
            Reason.UNSUPPORTED,
            f"has colours of the kind {image.mode}: convert it to 8-bit RGB",
        )


def _tags(image):
    # Only a file as it was opened has tags, no image that was made from it.
    return getattr(image, "tag_v2", {})


def to_rgb(image):
    """The pixels of a PIL image as 8-bit RGB; the orientation is not applied.

    PIL itself turns a TIFF file when it loads it.

    Args:
        image: `PIL.Image.Image`.

    Returns:
        `PIL.Image.Image` of mode RGB.

    Raises:
        ImageError: for pixels of a kind that is refused.
    """
    check_kind(image)
    load(image)
    if image.mode in _DEEP:
        tags = _tags(image)
        bits = int(np.ravel(tags.get(_BITS, 16))[0])
        values = np.asarray(image)
        if tags.get(_PHOTOMETRIC) == 0:  # 0 is white; PIL inverts up to 8 bits only
            values = np.invert(values) & (2**bits - 1)
        image = Image.fromarray((values >> (bits - 8)).astype("uint8"))
    elif image.mode == "CMYK" and image.format in ("JPEG", "MPO"):
        if "adobe" not in image.info:  # PIL inverts all of them, Adobe's or not
            image = ImageChops.invert(image)
    elif image.mode in _CONVERTED:
        image = image.convert(_CONVERTED[image.mode])
    return image if image.mode == "RGB" else image.convert("RGB")


def load(image):
    """Decodes a PIL image; only its tag turns a TIFF file."""
    name = getattr(image, "filename", None)
    if _tags(image):
        image.info.pop("xmp", None)  # PIL would turn by this too
        image.filename = ""  # by its name PIL would map the file without turning it
    try:
        image.load()
    finally:
        if name is not None:
            image.filename = name


def turn(pixels, orientation):
    """Turns pixels as an EXIF orientation says.

    Args:
        pixels: array `[h, w, ...]`.
        orientation: int in 1..8.

    Returns:
        array `[h, w, ...]`, or `[w, h, ...]` for 5..8.
    """
    # 5..8 are stored with rows and columns exchanged (EXIF 2.32, tag 0x0112).
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels[::-1] if orientation in (3, 4, 7, 8) else pixels


def load_image(path):
    """Reads an image file.

    Args:
        path: str or path-like, see `places`.

    Returns:
        uint8 `[h, w, 3]`, RGB, upright.

    Raises:
        ImageError: for pixels of a kind that is refused. Errors of PIL are raised too.
    """
    with open_image(os.fspath(path)) as file:
        orientation = containers.exif_orientation(containers.FileView(file))
        with Image.open(file, formats=PIL_FORMATS) as image:
            pixels = np.asarray(to_rgb(image))
    return np.ascontiguousarray(turn(pixels, orientation))


def pixels_of(image):
    """The pixels of a PIL image, equal to those of the file that it came from.

    Args:
        image: `PIL.Image.Image` of a file or a program; its EXIF block is applied.

    Returns:
        uint8 `[h, w, 3]`, RGB, upright.

    Raises:
        ImageError: for pixels of a kind that is refused.
        OSError: for a damaged file: PIL reads the pixels only now.
    """
    rgb = to_rgb(image)
    # Read after the pixels: in a PNG the block may stand behind them.
    block = image.info.get("exif", b"")
    return np.ascontiguousarray(
        turn(np.asarray(rgb), containers.block_orientation(block))
    )
