"""Where the bytes of an image are: in a file of its own, or in a record of a TFRecord.

An image in a record has a path too, with the TFRecord as its folder:
`train.tfrecord/record-3@8112+93+5120/a.jpg` is in the third record, which begins at byte
8112; the image begins at byte 93 of the record's data and has 5120 bytes. No real file can
have such a path. TFRecords may be remote (`gs://...`), where TensorFlow has their file
system.
"""

import contextlib
import functools
import io
import os
import re
import typing

# The file; start, image and size as numbers; the name.
_RECORD_PATH = re.compile(
    r"(.+)/record-[0-9]+@([0-9]+)\+([0-9]+)\+([0-9]+)/([^/]*)", re.DOTALL
)
#: Bytes of a record before its data: its length and a checksum of that.
RECORD_HEAD = 12


class RecordPlace(typing.NamedTuple):
    """An image in a record.

    Attributes:
        file: str, the TFRecord.
        start: int, the first byte of the record in the file.
        skip: int, the first byte of the image in the data of the record.
        size: int, bytes of the image.
        name: str, the name of the image.
    """

    file: str
    start: int
    skip: int
    size: int
    name: str


def record_path(number, place):
    """The path of an image in a record; `number` counts records from 1."""
    file, start, skip, size, name = place
    return f"{file}/record-{number}@{start}+{skip}+{size}/{name}"


def find_place(path):
    """The `RecordPlace` of a path, None for a file of its own."""
    match = _RECORD_PATH.fullmatch(os.fspath(path))
    if match is None:
        return None
    file, *numbers, name = match.groups()
    return RecordPlace(file, *map(int, numbers), name)


def file_of(path):
    """The file that has the bytes of an image: its own, or the TFRecord."""
    place = find_place(path)
    return path if place is None else place.file


def is_remote(path):
    """Whether a path is that of a file system of TensorFlow, such as `gs://`."""
    return "://" in path


@contextlib.contextmanager
def gfile():
    """Yields `tf.io.gfile`; its errors become `OSError`s."""
    import tensorflow as tf

    try:
        yield tf.io.gfile
    except tf.errors.OpError as error:
        raise OSError(error.message) from error


def file_stamp(path):
    """`[size in bytes, time of its last change in ns]` of a file, local or remote."""
    if is_remote(path):
        with gfile() as files:
            status = files.stat(path)
            return [status.length, status.mtime_nsec]
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns]


@contextlib.contextmanager
def open_file(path):
    """Yields an open binary file, local or remote."""
    if is_remote(path):
        with gfile() as files, files.GFile(path, "rb") as file:
            yield file
    else:
        with open(path, "rb") as file:
            yield file


def open_image(path):
    """Opens an image, in a file of its own or in a record, as a binary file.

    Raises:
        OSError: if it is not there.
    """
    place = find_place(path)
    if place is None:
        return open(path, "rb")
    with open_file(place.file) as file:
        file.seek(place.start + RECORD_HEAD + place.skip)
        data = file.read(place.size)
    if len(data) < place.size:
        raise OSError(f"{place.file} ends before the image of {place.name}")
    return io.BytesIO(data)


def image_stamps(paths):
    """Dict path -> `file_stamp` of its file; what cannot be found is left out."""
    stamp_of, stamps = functools.cache(file_stamp), {}
    for path in paths:
        # ValueError: a zero byte in the name.
        with contextlib.suppress(OSError, ValueError):
            stamps[path] = stamp_of(file_of(path))
    return stamps
