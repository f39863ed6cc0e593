"""Image files to pixels in TensorFlow: in the pipeline, and in an exported graph.

The rules are those of `images.numpy_decode`, which reads what TensorFlow cannot.
"""

import os

import numpy as np
import tensorflow as tf

from vfnet_tf.data.images import containers, numpy_decode
from vfnet_tf.data.images.places import find_place, open_image

_JPEG_EXIF, _PNG_EXIF, _PNG_END = (
    int.from_bytes(name, "big") for name in (b"Exif", b"eXIf", b"IEND")
)


def decode_image(contents):
    """Decodes an encoded image, upright, in TensorFlow alone (it can be exported).

    Grey, palette, CMYK, RGBA (alpha is dropped) and 16-bit files (the high byte is
    kept) become 8-bit RGB; the pixels equal those of PIL and OpenCV. The EXIF
    orientation is applied.

    Args:
        contents: string `[]`, a JPEG or PNG file.

    Returns:
        uint8 `[h, w, 3]`, RGB.
    """
    return orient(_decode_pixels(contents), exif_orientation(contents))


def _decode_pixels(contents):
    """JPEG or PNG bytes to uint8 `[h, w, 3]` as stored, orientation not applied."""
    # The default is a faster DCT, up to 4 of 255 away from libjpeg, PIL and OpenCV. The
    # operation decodes PNG too: one kernel has two names.
    image = tf.io.decode_jpeg(contents, channels=3, dct_method="INTEGER_ACCURATE")
    return tf.ensure_shape(image, [None, None, 3])


def exif_orientation(contents):
    """Reads the EXIF orientation of a JPEG or PNG in TensorFlow.

    Args:
        contents: string `[]`, an image file.

    Returns:
        int32 `[]` in 1..8, as `containers.exif_orientation` gives it; 1 (upright) for
        other formats.
    """
    block = tf.cond(
        tf.strings.substr(contents, 0, 4) == b"\x89PNG",
        lambda: _png_block(contents),
        lambda: _jpeg_block(contents),
    )
    return tf.cond(
        tf.strings.length(block) > 0,
        lambda: _block_orientation(block),
        lambda: tf.constant(1),
    )


def _bytes_at(contents, position, count):
    """int32 `[count]`, bytes of a file, 0 beyond its end."""
    # `substr` refuses a position beyond the end.
    start = tf.minimum(position, tf.strings.length(contents))
    found = tf.io.decode_raw(tf.strings.substr(contents, start, count), "uint8")
    found = tf.pad(found, [[0, count - tf.size(found)]])
    return tf.cast(tf.ensure_shape(found, [count]), "int32")


def _big(data):
    """Big-endian number of some bytes; four of them may wrap."""
    number = data[0]
    for byte in tf.unstack(data[1:]):
        number = number * 256 + byte
    return number


def _jpeg_block(contents):
    """The EXIF block of a JPEG, empty if it has none."""

    # Over the segments: marker FF xx, length (of itself and the content).
    def is_before(position, _, is_found):
        return (position >= 0) & ~is_found

    def step(position, _, __):
        head = _bytes_at(contents, position, 9)
        marker, length = head[1], tf.maximum(_big(head[2:4]), 2)
        is_exif = (marker == 0xE1) & (_big(head[4:8]) == _JPEG_EXIF) & (head[8] == 0)
        is_end = (head[0] != 0xFF) | (marker == 0xDA) | (marker == 0xD9)
        is_fill = marker == 0xFF
        following = position + tf.where(is_fill, 1, 2 + length)
        following = tf.where(is_end, -1, following)
        is_exif &= ~is_end & ~is_fill
        return tf.where(is_exif, position, following), length, is_exif

    is_jpeg = tf.strings.substr(contents, 0, 3) == b"\xff\xd8\xff"
    position, length, is_found = tf.while_loop(
        is_before,
        step,
        (tf.where(is_jpeg, 2, -1), tf.constant(0), tf.constant(False)),
        maximum_iterations=containers.MAX_SEGMENTS,
    )
    return _part(contents, position + 4, length - 2, is_found)


def _png_block(contents):
    """The EXIF block of a PNG, empty if it has none."""
    total = tf.strings.length(contents)

    # Over the chunks: length of the content, name, content, checksum.
    def is_before(position, _, is_found):
        return (position >= 0) & (position <= total - 12) & ~is_found

    def step(position, _, __):
        head = tf.strings.substr(contents, position, 8)
        head = tf.io.decode_raw(head, "int32", little_endian=False)
        length, name = tf.unstack(tf.ensure_shape(head, [2]))
        # Beyond 2**31 it wraps.
        is_whole = (length >= 0) & (length <= total - position - 12)
        is_exif = is_whole & (name == _PNG_EXIF)
        following = tf.where(is_whole & (name != _PNG_END), position + length + 12, -1)
        return tf.where(is_exif, position, following), length, is_exif

    position, length, is_found = tf.while_loop(
        is_before,
        step,
        (tf.constant(8), tf.constant(0), tf.constant(False)),
        maximum_iterations=containers.MAX_CHUNKS,
    )
    return _part(contents, position + 8, length, is_found)


def _part(contents, start, length, is_found):
    """A part of a file of at most `MAX_EXIF` bytes; empty if it was not found."""
    length = tf.where(is_found, tf.clip_by_value(length, 0, containers.MAX_EXIF), 0)
    start = tf.clip_by_value(start, 0, tf.strings.length(contents))
    return tf.strings.substr(contents, start, length)


def _block_orientation(block):
    """As `containers.block_orientation`."""
    has_name = tf.strings.substr(block, 0, 5) == b"Exif\0"
    name_length = tf.where(has_name, tf.minimum(6, tf.strings.length(block)), 0)
    block = tf.strings.substr(block, name_length, containers.MAX_EXIF)
    data = tf.io.decode_raw(block, "uint8")
    size = tf.size(data)
    # A byte beyond either end is 0, so damaged lengths need no case of their own.
    data = tf.concat([data, [tf.constant(0, "uint8")]], axis=0)
    start = tf.strings.substr(block, 0, 4)
    is_little = start == b"II*\0"
    is_block = is_little | (start == b"MM\0*")

    def byte(index):
        index = tf.where((index >= 0) & (index < size), index, size)
        return tf.cast(tf.gather(data, index), "int32")

    def short(index):
        first, second = byte(index), byte(index + 1)
        return tf.where(is_little, first + 256 * second, 256 * first + second)

    def long(index):
        first, second = short(index), short(index + 2)
        # Beyond 2**31 it wraps to a negative number.
        return tf.where(is_little, first + 65536 * second, 65536 * first + second)

    directory = long(4)
    is_block &= (directory >= 0) & (directory < size)
    count = tf.where(is_block, short(directory), 0)
    entries = directory + 2 + 12 * tf.range(count)
    is_whole = entries + 12 <= size
    entries = tf.boolean_mask(entries, is_whole & (short(entries) == 0x0112))
    entry = tf.concat([entries, [-16]], axis=0)[0]
    kind = short(entry + 2)
    value = tf.where(kind == 3, short(entry + 8), 1)
    value = tf.where(kind == 4, long(entry + 8), value)
    return tf.where((value >= 1) & (value <= 8), value, 1)


def orient(image, orientation):
    """Turns an image as its EXIF orientation says.

    Args:
        image: `[h, w, C]`.
        orientation: int `[]` in 1..8.

    Returns:
        `[h, w, C]`, or `[w, h, C]` for 5..8.
    """
    # The comparison of a Python int with a list, below, would always be False.
    orientation = tf.convert_to_tensor(orientation)

    def turn():
        # 5..8 are stored with rows and columns exchanged (EXIF 2.32, tag 0x0112).
        turned = tf.cond(
            orientation >= 5, lambda: tf.transpose(image, [1, 0, 2]), lambda: image
        )
        is_mirrored = tf.reduce_any(orientation == [2, 3, 6, 7])
        turned = tf.cond(is_mirrored, lambda: turned[:, ::-1], lambda: turned)
        is_upside_down = tf.reduce_any(orientation == [3, 4, 7, 8])
        return tf.cond(is_upside_down, lambda: turned[::-1], lambda: turned)

    oriented = tf.cond(orientation > 1, turn, lambda: image)
    return tf.ensure_shape(oriented, [None, None, image.shape[-1]])


def _read_from_record(path):
    """The bytes of an image in a record: path as bytes to an object array `[]`."""
    with open_image(os.fsdecode(np.asarray(path).item())) as image:
        return np.asarray(image.read(), object)


def _load_with_pil(path):
    """Reads a file that TensorFlow cannot: path as bytes to uint8 `[h, w, 3]`, upright."""
    return numpy_decode.load_image(os.fsdecode(np.asarray(path).item()))


def load_image(path, orientation=1, needs_pil=False, in_record=None):
    """Reads an image file; `images.inspect.inspect_image` gives the other arguments.

    Args:
        path: string `[]`, of a file or of an image in a record, see `places`.
        orientation: int `[]` in 1..8, EXIF.
        needs_pil: bool `[]`, decode with PIL, which is slower.
        in_record: bool, whether the image is in a record; None finds it out where the
            path is a str or bytes, and takes a tensor for the path of a file.

    Returns:
        uint8 `[h, w, 3]`, RGB, upright.
    """
    if in_record is None:
        is_text = isinstance(path, str | bytes)
        in_record = is_text and find_place(os.fsdecode(path)) is not None

    def load():
        if not in_record:
            contents = tf.io.read_file(path)
        else:
            # With operations of TensorFlow it would take a dataset within a dataset,
            # which `enable_op_determinism` runs one image at a time.
            contents = tf.numpy_function(
                _read_from_record, [path], tf.string, stateful=False
            )
            contents = tf.ensure_shape(contents, [])
        return orient(_decode_pixels(contents), orientation)

    def load_with_pil():
        image = tf.numpy_function(_load_with_pil, [path], tf.uint8, stateful=False)
        return tf.ensure_shape(image, [None, None, 3])

    if needs_pil is False:
        return load()
    return tf.cond(needs_pil, load_with_pil, load)
