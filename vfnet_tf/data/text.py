"""Reads text files of datasets.

They are UTF-8 with or without a byte order mark, or UTF-16 or UTF-32 with one; lines end
with LF, CRLF or CR. Bytes that are no UTF-8 spoil one entry and not the file.
"""

import codecs
import gc
import json
import os
import unicodedata

from vfnet_tf.data.folders import regular_file_error
from vfnet_tf.foreign_text import clipped

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    # Before UTF-16: its mark is the beginning of this one.
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
#: Bytes of an annotation file that is read whole. COCO's largest has 0.5 GB, that of LVIS
#: 1.1 GB, and Python takes several times as much memory.
MAX_TEXT_BYTES = 4 * 2**30
NOT_UTF8 = "is not valid UTF-8"


def has_mark(data):
    """Whether bytes begin with a byte order mark."""
    return data.startswith(tuple(mark for mark, _ in _MARKS))


def decode_text(data):
    """Bytes of a text file as str, without the byte order mark.

    Bytes that are no UTF-8 become lone surrogates, as in Python's file names; see
    `is_valid` and `printable`.

    Raises:
        ValueError: for broken UTF-16 or UTF-32.
    """
    encoding = "utf-8"
    for mark, name in _MARKS:
        if data.startswith(mark):
            data, encoding = data[len(mark) :], name
            break
    else:
        # Some programs leave out the mark; texts of datasets have no zero byte.
        if len(data) > 1 and 0 in data[:2]:
            encoding = "utf-16-le" if data[0] else "utf-16-be"
    errors = "surrogateescape" if encoding == "utf-8" else "strict"
    try:
        return data.decode(encoding, errors)
    except UnicodeDecodeError as error:
        raise ValueError(f"is no valid {encoding.upper()}: {error.reason}") from error


def read_text(path, max_bytes=None):
    """The text of a file, or of its first `max_bytes`; see `decode_text`.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is no regular file, larger than `MAX_TEXT_BYTES` (without
            `max_bytes`), or broken UTF-16 or UTF-32.
    """
    problem = regular_file_error(path)
    if problem:
        raise ValueError(problem)
    if max_bytes is None:
        check_text_size(path)
    with open(path, "rb") as file:
        data = file.read(-1 if max_bytes is None else max_bytes)
    if max_bytes is not None and len(data) == max_bytes:
        data = data[: max_bytes // 4 * 4]  # no half a character of UTF-16
    return decode_text(data)


def check_text_size(path):
    """Refuses a file of more than `MAX_TEXT_BYTES` by a ValueError without its name."""
    size = os.path.getsize(path)
    if size > MAX_TEXT_BYTES:
        raise ValueError(
            f"has {size} bytes, more than {MAX_TEXT_BYTES}: leave out what is not read, "
            "such as `segmentation`, or divide the data into several files"
        )


def split_lines(text):
    """Lines of a text without their ends: LF, CRLF and CR, and no other characters."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return lines if lines[-1] else lines[:-1]


def read_lines(path):
    """Lines of a text file that are not empty, without blanks around them.

    Raises:
        ValueError: for what `read_text` refuses, and for a picture, an archive or the like.
    """
    text = read_text(path)
    if "\0" in text:
        raise ValueError("is no text: it has a zero byte")
    return [line.strip() for line in split_lines(text) if line.strip()]


def read_json(path):
    """The content of a json file.

    Raises:
        ValueError: if it does not exist or is no json; the caller adds the name of the
            file.
    """
    if not os.path.isfile(path):
        raise ValueError("must exist")
    was_enabled = gc.isenabled()
    gc.disable()  # A fifth of the time: nothing of a json can be garbage yet.
    try:
        return json.loads(read_text(path), object_pairs_hook=_object)
    except RecursionError:
        raise ValueError("must be valid json (it is nested too deeply)") from None
    except ValueError as error:
        raise ValueError(f"must be valid json ({error})") from error
    finally:
        if was_enabled:
            gc.enable()


def read_json_file(path):
    """`read_json` with the name of the file in the message of its `ValueError`."""
    try:
        return read_json(path)
    except ValueError as error:
        raise ValueError(f"The json file {error}. Received: path={path}") from None


def _object(pairs):
    """A dict of pairs; of one key with two values json would silently take the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        for key, value in pairs:
            if found[key] is not value and found[key] != value:
                raise ValueError(f"the key {clipped(key)} comes twice with two values")
    return found


def is_valid(text):
    """Whether a text can be written as UTF-8: `decode_text` could read all of its bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(text):
    """A text that can be written anywhere: bytes that are no UTF-8 are escaped."""
    if is_valid(text):
        return text
    data = text.encode("utf-8", "surrogatepass")
    if all("\udc80" <= c <= "\udcff" for c in text if "\ud800" <= c <= "\udfff"):
        data = text.encode("utf-8", "surrogateescape")
    return data.decode("utf-8", "backslashreplace")


def plain_name(name):
    """A class name or file name in its composed form (NFC), without blanks around it."""
    return unicodedata.normalize("NFC", name.strip())
