"""Decodes untrusted image files to one batch for the network, in a TensorFlow graph.

A file that must not or cannot be decoded gets a status instead of an error, and does not
change the results of the others: the network sees the good images only.

A graph has no `try`, but `tf.data` has `ignore_errors`, which drops elements whose
function failed. A dataset can be part of a SavedModel; it runs on the CPU.

PNG and JPEG decoders allocate the sizes that a header or a chunk claims, and a file of
some kilobytes may claim gigabytes. Such files are refused before decoding.
"""

import tensorflow as tf

from vfnet_tf.data.canvases import CANVAS_MULTIPLE
from vfnet_tf.data.images import decode

#: Values of `status` in the outputs of a SavedModel.
OK, UNKNOWN_FORMAT, TOO_LARGE, DAMAGED = range(4)

#: Their descriptions, which are part of the metadata.
STATUS_CODES = {
    OK: "ok",
    UNKNOWN_FORMAT: "neither JPEG nor PNG, or empty",
    TOO_LARGE: "more pixels than max_pixels, or too costly to decode",
    DAMAGED: "damaged, cut short, or of a kind that the decoder does not know",
}

#: Default of the largest height x width of an encoded image.
MAX_PIXELS = 50_000_000

#: Images that are decoded at a time; each takes up to 6 bytes per pixel.
PARALLEL_IMAGES = 4

#: Most chunks of compressed text in a PNG. libpng inflates each to up to 8 MB and keeps
#: up to 1000 of them; normal files have a few.
MAX_PNG_TEXTS = 16

#: Most scans times pixels of a JPEG. Each scan of some 50 bytes costs a pass over all
#: pixels; progressive files have about ten.
MAX_SCANNED_PIXELS = 25 * 50_000_000

#: Shapes of the float32 inputs made of an image: pixels for the network, (height, width)
#: without padding, (vertical, horizontal) factors of resizing, (height, width) of the file.
PREPARED = {
    "images": (None, None, 3),
    "image_size": (2,),
    "scale": (2,),
    "original_size": (2,),
}

_JPEG_START = b"\xff\xd8\xff"
_JPEG_SCAN = b"\xff\xda"
_PNG_START = b"\x89PNG\r\n\x1a\n"
# Length and name of the first chunk, which holds the size. It must come first: libpng
# skips unknown chunks before it, and the size would be read from those.
_PNG_HEADER = b"\x00\x00\x00\rIHDR"
_PNG_TEXTS = (b"zTXt", b"iTXt")


def check_file(contents, max_pixels=MAX_PIXELS):
    """Tells whether an image file, string `[]`, may be decoded, without decoding it.

    Returns:
        int32 `[]` tensor, one of `STATUS_CODES`. A file that is `OK` may be damaged.

    Raises:
        tf.errors.InvalidArgumentError: when it runs, for a damaged header of a JPEG.
    """
    length = tf.strings.length(contents)

    def starts_with(text, position=0):
        # `substr` refuses a position beyond the end.
        position = tf.minimum(position, length)
        return tf.strings.substr(contents, position, len(text)) == text

    def count(text):
        parts = tf.raw_ops.StringSplitV2(input=contents[None], sep=text)
        return tf.shape(parts.values, out_type="int64")[0] - 1

    def check_jpeg():
        height, width = tf.unstack(tf.io.extract_jpeg_shape(contents)[:2])
        area = tf.cast(height, "int64") * tf.cast(width, "int64")
        # Scans of previews and of videos behind the image count as well; they are few.
        is_costly = count(_JPEG_SCAN) * area > MAX_SCANNED_PIXELS
        return tf.where((area > max_pixels) | is_costly, TOO_LARGE, OK)

    def check_png_header():
        # Big-endian and unsigned.
        size = tf.io.decode_raw(tf.strings.substr(contents, 16, 8), "uint8")
        size = tf.reshape(tf.cast(size, "int64"), (2, 4))
        width, height = tf.unstack(
            tf.reduce_sum(size * [2**24, 2**16, 2**8, 1], axis=1)
        )
        # First each side, since their product may overflow int64.
        is_large = (width > max_pixels) | (height > max_pixels)
        is_large |= width * height > max_pixels
        is_costly = sum(count(text) for text in _PNG_TEXTS) > MAX_PNG_TEXTS
        return tf.where(is_large | is_costly, TOO_LARGE, OK)

    def check_png():
        has_header = starts_with(_PNG_HEADER, len(_PNG_START)) & (length >= 24)
        return tf.cond(has_header, check_png_header, lambda: tf.constant(DAMAGED))

    return tf.cond(
        starts_with(_JPEG_START),
        check_jpeg,
        lambda: tf.cond(
            starts_with(_PNG_START), check_png, lambda: tf.constant(UNKNOWN_FORMAT)
        ),
    )


def prepare_files(image_bytes, prepare, max_pixels=MAX_PIXELS):
    """Decodes and prepares the good files as one batch.

    Args:
        image_bytes: string `[B]`, files of any kind, B > 0.
        prepare: function from an image uint8 `[h, w, 3]` to a dict of `PREPARED`.
        max_pixels: int, largest height x width.

    Returns:
        `status` int32 `[B]`, and the dict of `prepare` for the G images whose status is
        `OK`, each `[G, ...]`, padded with zeros on the right and below to the largest
        image, with `index` int32 `[G]`, their places among the B. If no image is good,
        there is one of zeros at place 0, because the network needs a batch.
    """
    total = tf.shape(image_bytes)[0]

    @tf.autograph.experimental.do_not_convert
    def load(index, contents):
        status = check_file(contents, max_pixels)
        prepared = tf.cond(
            status == OK,
            lambda: prepare(decode.decode_image(contents)),
            _nothing,
        )
        return {"index": index, "status": status, **prepared}

    dataset = tf.data.Dataset.from_tensor_slices((tf.range(total), image_bytes))
    dataset = dataset.map(load, PARALLEL_IMAGES, deterministic=True).ignore_errors()
    no_rows = dict.fromkeys(("index", "status"), tf.zeros((0,), "int32"))
    found = _one_batch(dataset, total, {**no_rows, **_nothing(0)})
    status = found.pop("status")
    statuses = tf.tensor_scatter_nd_update(
        tf.fill([total], DAMAGED),  # of dropped files
        found["index"][:, None],
        status,
    )
    good = tf.where(status == OK)[:, 0]
    # A refused image has no pixels, so it does not enlarge the canvas.
    found = tf.cond(
        tf.size(good) == tf.size(status),
        lambda: found,
        lambda: {name: tf.gather(value, good) for name, value in found.items()},
    )
    return statuses, tf.cond(tf.size(good) > 0, lambda: found, _blank)


def read_examples(examples):
    """The files under `image/encoded` of serialized `tf.train.Example`s, string `[B]`.

    Empty strings for invalid examples and for those without exactly one image.
    """
    total = tf.shape(examples)[0]
    feature = {"image/encoded": tf.io.FixedLenFeature((), "string", default_value="")}

    @tf.autograph.experimental.do_not_convert
    def read(index, example):
        contents = tf.io.parse_single_example(example, feature)["image/encoded"]
        return {"index": index, "contents": contents}

    dataset = tf.data.Dataset.from_tensor_slices((tf.range(total), examples))
    dataset = dataset.map(read).ignore_errors()
    nothing = {"index": tf.zeros((0,), "int32"), "contents": tf.zeros((0,), "string")}
    found = _one_batch(dataset, total, nothing)
    return tf.tensor_scatter_nd_update(
        tf.fill([total], ""), found["index"][:, None], found["contents"]
    )


def prepare_pixels(images, prepare):
    """The dict of `prepare` for uint8 `[B, H, W, 3]`, B > 0, as one batch."""
    total = tf.shape(images)[0]
    dataset = tf.data.Dataset.from_tensor_slices(images)
    prepare = tf.autograph.experimental.do_not_convert(prepare)
    dataset = dataset.map(prepare, PARALLEL_IMAGES, deterministic=True)
    return _one_batch(dataset, total, _nothing(0))


def _one_batch(dataset, total, nothing):
    """All elements of a dataset as one padded batch; `nothing` if it has none."""
    dataset = dataset.padded_batch(tf.cast(total, "int64"))
    dataset = dataset.concatenate(tf.data.Dataset.from_tensors(nothing)).take(1)
    # It runs once, so to optimise the dataset first would take longer.
    options = tf.data.Options()
    options.autotune.enabled = False
    options.experimental_optimization.apply_default_optimizations = False
    return dataset.with_options(options).get_single_element()


def _nothing(*outer):
    """The result of `prepare` for an image without pixels."""
    return {
        name: tf.zeros((*outer, *(side or 0 for side in shape)))
        for name, shape in PREPARED.items()
    }


def _blank():
    """A batch of one grey image of the smallest canvas."""
    side = CANVAS_MULTIPLE
    sizes = {name: tf.fill((1, 2), float(side)) for name in PREPARED}
    return {
        **sizes,
        "images": tf.zeros((1, side, side, 3)),
        "scale": tf.ones((1, 2)),
        "index": tf.zeros((1,), "int32"),
    }
