"""Images that the steps of int8 activations are chosen by."""

from vfnet_tf.data.formats.coco import read_coco
from vfnet_tf.data.formats.readers import find_format, find_splits
from vfnet_tf.inference.sources import expand_source

#: Images that a calibration takes. docs/deployment/onnx.md has the AP with other numbers.
NUM_IMAGES = 32


def find_images(data, count=NUM_IMAGES):
    """Paths of the images for a calibration, evenly spaced over all there are.

    Args:
        data: a dataset as `open_dataset` takes it, of which training images are chosen
            (of its first split if it has none), or a folder or glob of images without
            annotations.
        count: int, images at most.

    Returns:
        list of str, at least one.

    Raises:
        ValueError: if `data` is neither.
    """
    try:
        find_format(data)
    except ValueError as error:
        try:
            paths, _ = expand_source(data)
        except ValueError:
            raise error from None
        if not all(isinstance(path, str) for path in paths) or not paths:
            raise
    else:
        found = find_splits(data)
        split = "train" if "train" in found else next(iter(found))
        # Only those that are chosen are opened.
        dataset = read_coco(*found[split], training=False, check_images=False)
        paths = [str(record.path) for record in dataset.records]
    step = max(len(paths) / count, 1.0)
    return [paths[int(index * step)] for index in range(min(count, len(paths)))]
