"""Sizes of tensors."""

import keras
from keras import ops


def sizes_of(tensor):
    """The sizes of a tensor: ints, and scalar int32 tensors where a graph leaves them open.

    `keras.ops.shape` with two operations in TensorFlow's graph for all sizes in place of
    four for each: a training step asks for sizes some hundred times.

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
