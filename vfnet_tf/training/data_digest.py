"""Whether a run goes on with the data that it began with."""

import os
import zlib

import numpy as np

from vfnet_tf.data.images.places import open_image

#: Files whose pixels are looked at, spread over the data.
LOOKED_AT = 2_000
#: Bytes that are read at either end of a file.
END_BYTES = 4_096

_PARTS = {
    "images": "the number of images",
    "names": "the names of the images",
    "sizes": "the sizes of the images",
    "classes": "the classes",
    "boxes": "the boxes or their labels",
    "pixels": "the content of the image files",
}


def data_digest(dataset):
    """Checksums of what a `DetectionDataset` holds.

    Of image files the size and both ends are read, of `LOOKED_AT` of them at most.

    Args:
        dataset: `DetectionDataset`, or None.

    Returns:
        dict from a part, such as `"boxes"`, to an int; empty without a dataset.
    """
    if dataset is None:
        return {}
    names = sizes = boxes = pixels = 0
    for record in dataset:
        names = zlib.crc32(os.path.basename(str(record.path)).encode(), names)
        sizes = zlib.crc32(np.int64([record.height, record.width]).tobytes(), sizes)
        for values in (record.boxes, record.labels):
            boxes = zlib.crc32(np.ascontiguousarray(values).tobytes(), boxes)
    step = -(-len(dataset) // LOOKED_AT)
    for record in list(dataset)[::step]:
        pixels = zlib.crc32(_ends_of(record.path), pixels)
    return {
        "images": len(dataset),
        "names": names,
        "sizes": sizes,
        "classes": zlib.crc32("\n".join(dataset.class_names).encode()),
        "boxes": boxes,
        "pixels": pixels,
    }


def find_changes(before, now):
    """The parts of two digests that differ, in words.

    Args:
        before: dict of `data_digest`, perhaps of an older version with fewer parts.
        now: dict of `data_digest`.

    Returns:
        list of str, empty if nothing has changed.
    """
    changed = [part for part in _PARTS if before.get(part) != now.get(part)]
    if not before or not now:
        return []
    if "images" in changed:
        return [f"there are {now['images']} images, and were {before['images']}"]
    return [f"{_PARTS[part]} changed" for part in changed]


def _ends_of(path):
    try:
        with open_image(path) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            start = file.read(END_BYTES)
            file.seek(max(size - END_BYTES, 0))
            return str(size).encode() + start + file.read(END_BYTES)
    except OSError:
        return b"absent"
