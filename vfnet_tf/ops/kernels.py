"""Chooses between TensorFlow's faster kernels and `keras.ops` alone."""

import contextlib
import contextvars

import keras

_is_portable = contextvars.ContextVar("vfnet_tf_portable_kernels", default=False)


@contextlib.contextmanager
def portable_kernels():
    """Within it, what is traced has operations of `keras.ops` only, on TensorFlow too.

    For graphs that leave TensorFlow: a converter knows `gather`, but not
    `crop_and_resize`. Values are the same to rounding. Existing graphs keep their
    kernels, so trace a new one.

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
    """Whether TensorFlow's own kernels may be used here."""
    return keras.backend.backend() == "tensorflow" and not _is_portable.get()


def runs_under_xla():
    """Whether TensorFlow traces this for XLA."""
    import tensorflow as tf

    # `tf.function(jit_compile=True)` enters an XLA control-flow context outside of the
    # graph that it then traces.
    graph = tf.compat.v1.get_default_graph()
    while graph is not None:
        context = graph._get_control_flow_context()
        while context is not None:
            if context.IsXLAContext():
                return True
            context = context.outer_context
        graph = getattr(graph, "outer_graph", None)
    return False
