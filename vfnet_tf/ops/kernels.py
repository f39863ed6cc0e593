"""Which kernels the operations take: TensorFlow's faster ones, or `keras.ops` alone."""

import contextlib
import contextvars

import keras

_is_portable = contextvars.ContextVar("vfnet_tf_portable_kernels", default=False)


@contextlib.contextmanager
def portable_kernels():
    """Within it the operations are made of `keras.ops` only, on TensorFlow too.

    For graphs that leave TensorFlow: a converter knows `gather` where it does not know
    `crop_and_resize`. The values are the same to rounding. What counts is where a
    function is traced: a graph that exists keeps its kernels, so trace a new one.

    >>> tensorflow_kernels()
    True
    >>> with portable_kernels():  # what is traced here has them
    ...     tensorflow_kernels()
    False
    """
    token = _is_portable.set(True)
    try:
        yield
    finally:
        _is_portable.reset(token)


def tensorflow_kernels():
    """Whether TensorFlow's own kernels may be taken here and now."""
    return keras.backend.backend() == "tensorflow" and not _is_portable.get()
