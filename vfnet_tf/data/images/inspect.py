"""Reads the heads of image files: format, size, orientation, and whether they decode."""

import concurrent.futures
import dataclasses
import hashlib
import json
import os

from PIL import Image, UnidentifiedImageError

from vfnet_tf.data.cache import cache_directory

# A few kilobytes can claim gigabytes of pixels: the header decides before decoding.
MAX_PIXELS = 2**27

_EXIF_ORIENTATION = 0x0112
_TENSORFLOW_FORMATS = frozenset({"JPEG", "MPO", "PNG"})
_PIL_FORMATS = frozenset({"BMP", "TIFF", "WEBP"})
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})


@dataclasses.dataclass(frozen=True)
class ImageHeader:
    """What the head of an image file says, and whether the file can be decoded.

    Attributes:
        height: int, pixels, after the EXIF orientation.
        width: int, pixels, after the EXIF orientation.
        orientation: int in 1..8, EXIF.
        needs_pil: bool, whether TensorFlow cannot decode the format.
        error: str, why the file cannot be used; empty for a good file.
    """

    height: int = 0
    width: int = 0
    orientation: int = 1
    needs_pil: bool = False
    error: str = ""


def _orientation(image):
    """EXIF orientation in 1..8 of an open PIL image; broken EXIF counts as none."""
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # PIL raises struct, syntax and value errors here.
        return 1
    return orientation if orientation in range(1, 9) else 1


def _is_end_missing(path, image_format):
    """Whether the end marker of a JPEG or PNG is not where it belongs."""
    with open(path, "rb") as file:
        file.seek(0, os.SEEK_END)
        # Some cameras write notes after the marker.
        file.seek(max(0, file.tell() - 65536))
        tail = file.read()
    if image_format == "PNG":
        return b"IEND\xaeB`\x82" not in tail
    return not tail.rstrip(b"\x00\r\n").endswith(b"\xff\xd9")


def inspect_image(path, full=True, look=None):
    """Reads the size and orientation of an image file and checks that it decodes.

    Args:
        path: str, the file.
        full: bool, decode all pixels; if False only the head and the end marker are
            read (about 40 times faster) and pixels only where the marker is missing.
        look: function of the open PIL image, as stored, and its orientation: sees what
            was decoded. What it raises counts as a file that cannot be decoded.

    Returns:
        `ImageHeader`; never raises for a bad file, the reason is in `error`.
    """
    try:
        with Image.open(path) as image:
            image_format = image.format
            if image_format not in _TENSORFLOW_FORMATS | _PIL_FORMATS:
                formats = "JPEG, PNG, BMP, TIFF or WebP"
                return ImageHeader(error=f"is {image_format}, must be {formats}")
            width, height = image.size
            if width * height > MAX_PIXELS:
                return ImageHeader(
                    error=f"has {width} x {height} pixels, more than {MAX_PIXELS}"
                )
            orientation = _orientation(image)
            is_native = image_format in _TENSORFLOW_FORMATS
            is_end_missing = is_native and _is_end_missing(path, image_format)
            if full or is_end_missing or not is_native:
                image.load()
            if is_end_missing and image_format == "PNG":
                # PIL forgives a missing IEND, TensorFlow's decoder does not.
                return ImageHeader(error="is truncated (its end chunk is missing)")
            if look is not None:
                look(image, orientation)
    except FileNotFoundError:
        return ImageHeader(error="does not exist")
    except UnidentifiedImageError:
        is_empty = os.path.getsize(path) == 0
        return ImageHeader(error="is empty" if is_empty else "is not an image")
    except Image.DecompressionBombError as error:
        return ImageHeader(error=str(error))
    except Exception as error:  # PIL's decoders raise whatever they meet.
        return ImageHeader(error=f"cannot be decoded: {error}")
    if orientation >= 5:  # These turn by 90 degrees.
        height, width = width, height
    return ImageHeader(height, width, orientation, not is_native)


def inspect_images(paths, image_dir, full):
    """`inspect_image` for many files in threads; good results are remembered on disk.

    Returns:
        dict path -> `ImageHeader`.
    """
    key = hashlib.sha256(os.path.abspath(image_dir).encode()).hexdigest()[:16]
    cache_file = cache_directory() / "image_checks" / f"v1-{key}.json"
    known = {}
    if full:
        try:
            known = json.loads(cache_file.read_text())
        except (OSError, ValueError):
            known = {}
    headers, todo, stamps = {}, [], {}
    for path in dict.fromkeys(paths):
        try:
            status = os.stat(path)
        except OSError:
            todo.append(path)
            continue
        stamps[path] = [status.st_size, status.st_mtime_ns]
        entry = known.get(path)
        if entry is not None and entry[:2] == stamps[path]:
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
            _write_atomically(cache_file, json.dumps(known))
    return headers


def _write_atomically(path, text):
    """Writes a cache file beside and renames it; a read-only cache is no error."""
    aside = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(text)
        os.replace(aside, path)
    except OSError:
        return
