"""Views of an image for test-time augmentation: several sizes, plain and mirrored."""

import numpy as np
import tensorflow as tf

from vfnet_tf.data import transforms
from vfnet_tf.data.canvases import check_image_size
from vfnet_tf.data.images import decode
from vfnet_tf.data.images.places import find_place
from vfnet_tf.data.normalization import TORCHVISION

#: (short, long) sides of the official test-time augmentation, pixels (docs/parity.md, S29).
OFFICIAL_SIZES = ((800, 1200), (900, 1300), (1000, 1500), (1200, 1600))


def make_views(image, image_sizes, *, normalization=TORCHVISION, keep_ratio=True):
    """Makes the views of one image, as network inputs.

    Args:
        image: uint8 tensor `[h, w, 3]`, RGB.
        image_sizes: list of (short, long) sides in pixels that the image is resized to
            fit into, or of (height, width) if not `keep_ratio`.
        normalization: `Normalization` of the weights.
        keep_ratio: bool.

    Returns:
        list of dicts, plain and mirrored for each size: `images` float32 `[H, W, 3]`,
        padded right and bottom to a multiple of 32; `image_size` and `scale` float32
        `[2]`, see `data.example`; `flipped` bool `[]`.

    Raises:
        ValueError: for no sizes, or a wrong one.
    """
    views = []
    for size in _checked(image_sizes, keep_ratio):
        example = transforms.network_input(size, keep_ratio, normalization)(image)
        canvas = transforms.padded_size(tf.shape(example["image"])[:2])
        pad = transforms.pad_to(*tf.unstack(canvas))
        for flipped in (False, True):
            upright = example["image"]
            pixels = tf.reverse(upright, axis=[1]) if flipped else upright
            padded = pad({**example, "image": pixels})
            view = {name: padded[name] for name in ("image_size", "scale")}
            view |= {"images": padded["image"], "flipped": tf.constant(flipped)}
            views.append(view)
    return views


def build_views(
    dataset, image_sizes, *, normalization=TORCHVISION, keep_ratio=True, num_parallel=1
):
    """The views of all images of a dataset, image by image.

    Args:
        dataset: `DetectionDataset`.
        image_sizes, normalization, keep_ratio: see `make_views`.
        num_parallel: int, images prepared at a time; eight official views of an image
            take 150 MB.

    Returns:
        `tf.data.Dataset` of (image_id int64 `[]`, tuple of the views) in the order of
        the dataset.
    """
    # Outside the graph, whose stack would hide the message.
    image_sizes = _checked(image_sizes, keep_ratio)
    records = list(dataset)
    has_pil = any(record.needs_pil for record in records)
    in_records = any(find_place(record.path) for record in records)

    @tf.autograph.experimental.do_not_convert
    def prepare(path, orientation, needs_pil, image_id):
        needs_pil = needs_pil if has_pil else False
        image = decode.load_image(path, orientation, needs_pil, in_records)
        views = make_views(
            image, image_sizes, normalization=normalization, keep_ratio=keep_ratio
        )
        return image_id, tuple(views)

    # A captured tensor on an accelerator would be copied for every image.
    with tf.device("CPU:0"):
        columns = tf.data.Dataset.from_tensor_slices(
            (
                [record.path for record in records],
                np.array([record.orientation for record in records], "int32"),
                [record.needs_pil for record in records],
                np.array([record.image_id for record in records], "int64"),
            )
        )
    views = columns.map(prepare, num_parallel_calls=num_parallel, deterministic=True)
    return views.prefetch(1)


def _checked(image_sizes, keep_ratio):
    if len(image_sizes) == 0:
        raise ValueError("`image_sizes` must hold at least one. Received: []")
    return [check_image_size(size, keep_ratio) for size in image_sizes]
