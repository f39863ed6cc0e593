"""The other images that an augmentation of several takes, and when it rests."""

import math
import warnings

import numpy as np
import tensorflow as tf

from vfnet_tf.data.augmentation.augmentation import fold_in


def make_partner_loader(load, row, column, num_records):
    """Makes the function that draws another image of the dataset and loads it.

    Args:
        load: function of a row of the plan and `is_partner` to an example.
        row: int64 `[N]`, the row of the image itself, whose size the others get.
        column: int, where a row has the index of its image.
        num_records: int, images of the dataset. One image alone is its own partner.

    Returns:
        Function of a seed, int32 `[2]`, to an example.
    """
    most = tf.constant(max(num_records - 1, 1), "int64")

    def load_other(rng):
        step = 1 + tf.random.stateless_uniform([], rng, 0, most, "int64")
        record = (row[column] + step) % num_records
        parts = [row[:column], record[None], row[column + 1 :]]
        return load(tf.concat(parts, axis=0), is_partner=True)

    return load_other


def with_partners(transform, load_other, is_on):
    """The transform with its third argument filled in; without one, the same transform.

    Args:
        transform: see `data.transforms`.
        load_other: see `make_partner_loader`.
        is_on: bool `[]`, False to leave the image as it is.
    """
    if not getattr(transform, "num_partners", 0):
        return transform

    def transform_with_partners(example, rng):
        def partner(index):
            return load_other(fold_in(rng, 2 + index))

        return tf.cond(is_on, lambda: transform(example, rng, partner), lambda: example)

    return transform_with_partners


def count_partner_epochs(transforms, partners_off, epochs):
    """The epochs from the first in which transforms of several images run.

    At least one epoch of several is left without them, so that the network sees images
    as they will be evaluated; with `partners_off` 0 none is.

    Args:
        transforms: list of transforms.
        partners_off: float in [0, 1], see `DataConfig`.
        epochs: int, those of the training, or None: they run in all epochs, with a
            warning.
    """
    names = [
        type(each).__name__ for each in transforms if getattr(each, "num_partners", 0)
    ]
    if epochs is None:
        if names and partners_off:
            warnings.warn(
                f"{', '.join(names)} run in all epochs, as `partners_off` needs the "
                "number of epochs: give `build_pipeline(epochs=...)`. Received: "
                f"partners_off={partners_off:g}, epochs=None",
                stacklevel=3,
            )
        return np.iinfo("int64").max
    if partners_off == 1:
        return 0
    return epochs - min(math.ceil(partners_off * epochs), epochs - 1)
