"""Images from anywhere: files, folders, globs, URLs, PIL images, arrays."""

import fnmatch
import glob
import os
import pathlib
import re
import urllib.parse
import urllib.request

import numpy as np
from PIL import Image

from vfnet_tf.data.folders import is_hidden, list_tree, regular_file_error
from vfnet_tf.data.images.inspect import IMAGE_SUFFIXES, MAX_PIXELS, inspect_image
from vfnet_tf.data.images.numpy_decode import pixels_of
from vfnet_tf.data.images.places import find_place
from vfnet_tf.data.images.reasons import ImageError
from vfnet_tf.data.unread_files import OTHER_IMAGE_SUFFIXES
from vfnet_tf.foreign_text import one_line
from vfnet_tf.inference import video
from vfnet_tf.inference.download import fetch

#: Most bytes that a URL may give; a photograph has a tenth of that.
MAX_DOWNLOAD = 64 * 2**20

#: Seconds that a URL may take, from the look-up of the name to the last byte.
DOWNLOAD_SECONDS = 60.0

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_URL_SCHEMES = ("http", "https", "file")


def expand_source(source, passed_over=None):
    """Lists the images of a source. See `Predictor.__call__`.

    Args:
        source: as there.
        passed_over: list that `(path, reason)` are appended to, of files in folders and
            globs that look like images and are not taken.

    Returns:
        (list of paths and URLs as str, PIL images and arrays; whether the source is
        one image and not a collection or a video).

    Raises:
        ValueError: for a path that does not exist, a folder or glob without an image,
            a URL of another scheme or of a video, or an object of another kind.
    """
    if isinstance(source, list | tuple):
        images = [
            image for part in source for image in expand_source(part, passed_over)[0]
        ]
        return images, False
    if isinstance(source, str | os.PathLike):
        left_out = [] if passed_over is None else passed_over
        return _expand_path(os.fspath(source), left_out)
    if isinstance(source, Image.Image):
        return [source], True
    if hasattr(source, "__array__"):
        array = np.asarray(source)
        return (list(array), False) if array.ndim == 4 else ([array], True)
    raise ValueError(
        "`source` must be a path, a URL, a PIL image, an array or a list of these. "
        f"Received: source of type {type(source).__name__}"
    )


def _expand_path(text, passed_over):
    if find_place(text) is not None:
        return [text], True
    if _SCHEME.match(text):
        if not is_url(text):
            raise ValueError(
                f"A URL must start with {', '.join(_URL_SCHEMES)}. Received: {text}"
            )
        if video.is_video(urllib.parse.urlsplit(text).path):
            raise ValueError(
                f"A URL must be of an image; download a video first. Received: {text}"
            )
        return [text], True
    path = pathlib.Path(text).expanduser()
    if path.is_file():
        return [str(path)], not video.is_video(path)
    suffixes = IMAGE_SUFFIXES
    if path.is_dir():
        candidates, what = path.iterdir(), "A folder"
    elif os.path.lexists(path):
        raise ValueError(
            "`source` must be a file or a folder. "
            f"Received: source={text}, which {regular_file_error(path)}"
        )
    elif glob.has_magic(text):
        candidates, what = _expand_glob(str(path), passed_over), "A glob"
        if video.is_video(path):  # asked for by their ending
            suffixes = video.VIDEO_SUFFIXES
    else:
        raise ValueError(f"`source` must exist. Received: source={text}")
    images, first = [], len(passed_over)
    for candidate in sorted(map(pathlib.Path, candidates)):
        suffix = candidate.suffix.lower()
        reason = ""
        if suffix in (OTHER_IMAGE_SUFFIXES | set(video.VIDEO_SUFFIXES)) - set(suffixes):
            reason = f"is not looked for by its ending {suffix}, but can be named"
        elif candidate.is_dir():
            if what != "A folder":
                continue
            reason = "is a folder in it: name it, or search all by a glob with **"
            if is_hidden(candidate.name):
                reason = "is hidden or of the system"
        elif suffix not in suffixes:
            continue
        elif is_hidden(candidate.name):
            reason = "is hidden or of the system"
        else:
            reason = regular_file_error(candidate)
        if reason:
            passed_over.append((str(candidate), reason))
        else:
            images.append(str(candidate))
    if not images:
        others = "; ".join(f"{name} {reason}" for name, reason in passed_over[first:])
        raise ValueError(
            f"{what} must hold images ({', '.join(sorted(IMAGE_SUFFIXES))}); videos are "
            "given by their path or by a glob of their ending. "
            f"Received: source={text}{f', where {others}' if others else ''}"
        )
    return images, False


def _expand_glob(pattern, passed_over):
    """The paths that a pattern matches; `**` is any number of folders, also none."""
    parts = pathlib.PurePath(pattern).parts
    if "**" not in parts:
        return glob.iglob(pattern)
    # `glob` follows links: two links to their own folder would keep it busy for years.
    plain = next(n for n, part in enumerate(parts) if glob.has_magic(part))
    folder = os.path.join(*parts[:plain]) if plain else "."
    if not os.path.isdir(folder):
        return []
    left_out = []
    paths = list_tree(folder, left_out)
    passed_over += [entry for entry in left_out if os.path.isdir(entry[0])]
    return [
        os.path.normpath(path)
        for path in paths
        if _matches(
            pathlib.PurePath(os.path.relpath(path, folder)).parts, parts[plain:]
        )
    ]


def _matches(parts, pattern):
    """Whether the parts of a path match those of a glob."""
    if not pattern or not parts:
        return not parts and all(part == "**" for part in pattern)
    if pattern[0] == "**":
        return _matches(parts, pattern[1:]) or _matches(parts[1:], pattern)
    return fnmatch.fnmatch(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def is_url(text):
    """Whether a text is an http, https or file URL."""
    match = _SCHEME.match(text)
    return match is not None and match.group(1).lower() in _URL_SCHEMES


def load_file(path, name=None):
    """Reads an image file as the pipeline does, EXIF orientation applied.

    Args:
        path: str.
        name: str for error messages, such as the URL of the image.

    Returns:
        uint8 `[h, w, 3]` RGB.

    Raises:
        ValueError: naming the file and the reason, if it is not a readable image.
    """
    import tensorflow as tf

    from vfnet_tf.data.images.decode import load_image

    name = path if name is None else name
    header = inspect_image(path, full=False)
    if header.error:
        raise ValueError(f"An image must be readable. Received: {name} {header.error}")
    try:
        with tf.device("CPU:0"):
            orientation = tf.constant(header.orientation)
            # As bytes, as the name may be no valid UTF-8.
            name_on_disk = os.fsencode(path)
            return load_image(name_on_disk, orientation, header.needs_pil).numpy()
    except tf.errors.OpError as error:
        raise ValueError(
            f"An image must be readable. Received: {name} cannot be decoded: "
            f"{error.message}"
        ) from error


def download(url, path):
    """Fetches a URL into a file, at most `MAX_DOWNLOAD` bytes of it.

    Raises:
        ValueError: naming the URL and why there is nothing; see `download.fetch`.
    """
    try:
        if urllib.parse.urlsplit(url).scheme.lower() == "file":
            contents = _read_local(url)
        else:
            contents = fetch(url, MAX_DOWNLOAD, DOWNLOAD_SECONDS)
    except ValueError as error:
        raise ValueError(
            "A URL must be reachable and give one image of at most "
            f"{MAX_DOWNLOAD} bytes. Received: {one_line(url)}, {error}"
        ) from None
    pathlib.Path(path).write_bytes(contents)


def _read_local(url):
    """The bytes that a file URL names."""
    path = urllib.request.url2pathname(urllib.parse.urlsplit(url).path)
    problem = regular_file_error(path)
    if problem:
        raise ValueError(f"which {problem}")
    if os.path.getsize(path) > MAX_DOWNLOAD:
        raise ValueError(f"which has more than {MAX_DOWNLOAD} bytes")
    try:
        return pathlib.Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"which cannot be read: {error.strerror}") from None


def pixels_of_pil(image):
    """uint8 `[h, w, 3]` RGB of a PIL image, upright; a ValueError if it cannot be read."""
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(
            f"An image must have at most {MAX_PIXELS} pixels. Received: {image.size}"
        )
    try:
        return pixels_of(image)
    except (ImageError, OSError) as error:  # PIL reads an open file's pixels only now.
        raise ValueError(
            f"An image must be readable. Received: {image!r} {error}"
        ) from error


def pixels_of_array(array):
    """uint8 `[h, w, 3]` RGB of an array of 1, 3 or 4 channels, or of none."""
    array = np.asarray(array)
    shape = array.shape
    if array.dtype != np.uint8:
        raise ValueError(
            "An image array must be uint8, RGB in 0..255. "
            f"Received: dtype={array.dtype}, shape={shape}"
        )
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[-1] not in (1, 3, 4) or 0 in shape:
        raise ValueError(
            "An image array must be [h, w, 3], [h, w, 4], [h, w, 1] or [h, w]. "
            f"Received: shape={shape}"
        )
    if array.shape[-1] == 1:
        return np.repeat(array, 3, axis=-1)
    return np.ascontiguousarray(array[..., :3])
