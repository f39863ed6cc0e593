"""Sizes of tensors and pairs of sizes."""

import keras
from keras import ops


def sizes_of(tensor):
    """The sizes of a tensor: ints, and scalar int32 tensors where a graph leaves them open.

    It makes two operations in TensorFlow's graph, `keras.ops.shape` four for each size; a
    training step asks for sizes some hundred times.

    >>> sizes_of(ops.ones((2, 3)))
    (2, 3)
    """
    is_open = None in tensor.shape and not isinstance(tensor, keras.KerasTensor)
    if keras.backend.backend() != "tensorflow" or not is_open:
        return ops.shape(tensor)
    import tensorflow as tf

    sizes = tf.unstack(tf.shape(tensor))
    return tuple(
        size if known is None else known
        for known, size in zip(tensor.shape, sizes, strict=True)
    )


def as_pair(value):
    """(rows, columns) of a pair or of one value for both."""
    return tuple(value) if hasattr(value, "__len__") else (value, value)
