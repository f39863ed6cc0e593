"""Inspects image files: format, size, orientation, and why a file cannot be used."""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import os
import stat

from PIL import Image, UnidentifiedImageError

from vfnet_tf.data.folders import regular_file_error
from vfnet_tf.data.images import containers, corruption, numpy_decode
from vfnet_tf.data.images.places import find_place, image_stamps, open_image
from vfnet_tf.data.images.reasons import ImageError, Reason
from vfnet_tf.files import cache_directory, write_file

# A few kilobytes can claim gigabytes of pixels: the header is checked before decoding.
MAX_PIXELS = 2**27

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})

_TENSORFLOW_FORMATS = (containers.JPEG, containers.PNG)
_OTHER_FORMATS = (containers.BMP, containers.TIFF, containers.WEBP)
_FORMATS = (*_TENSORFLOW_FORMATS, *_OTHER_FORMATS)
# Remedies for files that are no picture.
_ADVICE = {
    "a web page": "download the image itself",
    "a pointer of Git LFS": "fetch the file by `git lfs pull`",
    "a zip archive": "unpack it",
    "a gzip archive": "unpack it",
    "a video (MP4)": "save its frames",
    "a video (AVI)": "save its frames",
}
_ORIENTATION_TAG = 0x0112
# Markers of a JPEG that begin a frame: those that both PIL and TensorFlow may know, and
# lossless and hierarchical ones.
_FRAMES = frozenset({0xC0, 0xC1, 0xC2, 0xC9, 0xCA})
_OTHER_FRAMES = frozenset(range(0xC3, 0xD0)) - _FRAMES - {0xC4, 0xC8, 0xCC}


@dataclasses.dataclass(frozen=True)
class ImageHeader:
    """Size and orientation of an image file, and whether it can be decoded.

    Attributes:
        height: int, pixels, upright.
        width: int, pixels, upright.
        orientation: int in 1..8, EXIF: how the file is stored.
        needs_pil: bool, whether TensorFlow cannot decode the format.
        error: str, why the file cannot be used; empty for a good file.
        code: `Reason` of the error; empty for a good file.
    """

    height: int = 0
    width: int = 0
    orientation: int = 1
    needs_pil: bool = False
    error: str = ""
    code: str = ""


def inspect_image(path, full=True, look=None, find_damage=False):
    """Reads the size and orientation of an image file and checks that it decodes.

    Args:
        path: str, the file.
        full: bool, decode all pixels; if False only the head and the end are read
            (about 15 times faster) and pixels only where the end is missing.
        look: function that is called with the open PIL image, see `numpy_decode.to_rgb`,
            and the orientation by which its pixels are still to be turned. If it raises,
            the file counts as one that cannot be decoded.
        find_damage: bool, also find damage that decoders accept; `full` only.

    Returns:
        `ImageHeader`; never raises for a bad file, the reason is in `error`.
    """
    try:
        return _inspect(path, full, look, find_damage)
    except ImageError as error:
        return ImageHeader(error=str(error), code=error.code)
    except FileNotFoundError:
        return ImageHeader(error=regular_file_error(path), code=Reason.MISSING)
    except Exception as error:  # PIL's decoders raise whatever they meet.
        # PIL has no exception of its own for that, only a text.
        is_cut = isinstance(error, OSError) and "truncated" in str(error).lower()
        code = Reason.TRUNCATED if is_cut else Reason.UNDECODABLE
        return ImageHeader(error=f"cannot be decoded: {error}", code=code)


def _inspect(path, full, look, find_damage):
    # Opening a pipe would wait for a writer.
    if find_place(path) is None and not stat.S_ISREG(os.stat(path).st_mode):
        raise ImageError(Reason.UNDECODABLE, regular_file_error(path))
    with open_image(path) as file:
        data = containers.FileView(file)
        if len(data) == 0:
            raise ImageError(Reason.UNDECODABLE, "is empty")
        image_format = containers.format_of(data)
        _check_format(image_format, data)
        _check_end(image_format, data)
        try:
            image = Image.open(file, formats=numpy_decode.PIL_FORMATS)
        except UnidentifiedImageError as error:
            text = f"is {image_format}, but damaged or of an unknown kind"
            raise ImageError(Reason.UNDECODABLE, text) from error
        except Image.DecompressionBombError as error:
            raise ImageError(Reason.UNDECODABLE, str(error)) from error
        with image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                text = f"has {width} x {height} pixels, more than {MAX_PIXELS}"
                raise ImageError(Reason.UNDECODABLE, text)
            numpy_decode.check_kind(image)
            # PIL gives the size of a TIFF file upright, and turns it.
            orientation = turn = containers.exif_orientation(data)
            if image_format == containers.TIFF:
                orientation, turn = _tiff_orientation(image), 1
            _decode(image, image_format, data, full, find_damage)
            if look is not None:
                look(image, turn)
    if turn >= 5:  # These turn by 90 degrees.
        height, width = width, height
    needs_pil = image_format not in _TENSORFLOW_FORMATS
    return ImageHeader(height, width, orientation, needs_pil)


def _check_format(image_format, data):
    """Refuses formats that are not read, by their names."""
    if image_format is None:
        raise ImageError(Reason.UNDECODABLE, "is not an image")
    what = image_format
    if image_format == containers.JPEG:
        for marker, start, _ in containers.jpeg_segments(data):
            if marker in _OTHER_FRAMES:
                what = f"a JPEG of another kind (frame {marker:02X})"
            elif marker in _FRAMES and data[start] != 8:
                what = f"a JPEG of {data[start]} bits"
    if image_format not in _FORMATS or what != image_format:
        raise ImageError(
            Reason.UNSUPPORTED,
            f"is {what}, must be {', '.join(_FORMATS[:-1])} or {_FORMATS[-1]}: "
            f"{_ADVICE.get(what, 'convert it to 8-bit JPEG or PNG')}",
        )


def _tiff_orientation(image):
    orientation = image.tag_v2.get(_ORIENTATION_TAG, 1)
    return orientation if orientation in range(1, 9) else 1


def _check_end(image_format, data):
    """Refuses a PNG or WebP file that is cut, and a PNG without its palette."""
    if image_format == containers.PNG:
        # PIL accepts a missing end or palette, TensorFlow's decoder does not.
        names = {name for name, _, _ in containers.png_chunks(data)}
        if b"IEND" not in names:
            text = "is truncated (its end chunk is missing)"
            raise ImageError(Reason.TRUNCATED, text)
        if data[25] == 3 and b"PLTE" not in names:
            raise ImageError(Reason.CORRUPT, "is corrupt: it has no palette")
    elif image_format == containers.WEBP:
        size = int.from_bytes(data[4:8], "little") + 8
        if size > len(data):
            text = f"is truncated: {len(data)} bytes of {size} are there"
            raise ImageError(Reason.TRUNCATED, text)


def _decode(image, image_format, data, full, find_damage):
    """Decodes the pixels if the arguments ask for it, and refuses a corrupt file."""
    is_jpeg, is_png = image_format == containers.JPEG, image_format == containers.PNG
    damage = None
    if full and is_png:
        damage = corruption.png_damage(data, containers.png_chunks(data))
    if find_damage and image_format == containers.TIFF:
        damage = corruption.tiff_damage(data, image.tag_v2)
    if damage is None:
        # Some cameras write notes behind the end of a JPEG, and some write no end marker.
        # Such files are good if all pixels are there, which decoding shows.
        end = data[-65536:].rstrip(b"\0\r\n") if is_jpeg else b""
        is_cut = is_jpeg and not end.endswith(b"\xff\xd9")
        if full or is_cut or image_format not in _TENSORFLOW_FORMATS:
            numpy_decode.load(image)
    if damage is None and find_damage and is_jpeg:
        damage = corruption.jpeg_damage(data[:], image)
    if damage is None and find_damage and is_png:
        damage = corruption.png_pixel_damage(data, containers.png_chunks(data))
    if damage is not None:
        raise ImageError(Reason.CORRUPT, damage)


def inspect_images(paths, image_dir, full):
    """`inspect_image` for many files in threads; good results are remembered on disk.

    Returns:
        dict path -> `ImageHeader`.
    """
    key = hashlib.sha256(os.path.abspath(image_dir).encode()).hexdigest()[:16]
    cache_file = cache_directory() / "image_checks" / f"v2-{key}.json"
    known = {}
    if full:
        with contextlib.suppress(OSError, ValueError):
            known = json.loads(cache_file.read_text())
    headers, todo = {}, []
    paths = list(dict.fromkeys(paths))
    stamps = image_stamps(paths)
    for path in paths:
        entry = known.get(path)
        if entry is not None and entry[:2] == stamps.get(path):
            headers[path] = ImageHeader(*entry[2:])
        else:
            todo.append(path)
    if todo:
        # PIL's decoders release the interpreter lock.
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            results = pool.map(lambda path: inspect_image(path, full), todo)
            headers.update(zip(todo, results, strict=True))
        if full:
            for path in todo:
                header = headers[path]
                if not header.error and path in stamps:
                    known[path] = [*stamps[path], *dataclasses.astuple(header)[:4]]
            with contextlib.suppress(OSError):  # It works without a cache too.
                write_file(cache_file, json.dumps(known))
    return headers
