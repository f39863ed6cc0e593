"""One trace in TensorFlow's graph for all maps of a pyramid."""

import keras

from vfnet_tf.ops.kernels import runs_under_xla, tensorflow_kernels


def shared_trace(function, features):
    """A function that is traced once for all maps in a graph of open sizes.

    Heads compute the same at every level of a pyramid. Tracing that five times, with its
    gradients, takes most of the time until the first training step. Before the graph
    runs, TensorFlow inlines the function at each call.

    Outside of a graph, in a graph of fixed sizes (where five traces are quicker), under
    XLA, on other backends and within `portable_kernels()` it is `function` itself.

    Args:
        function: `function(features, scalars)`, a map `[B, H, W, C]` and a dict of
            float32 scalars, to tensors in any structure. Calls may differ in these
            arguments only: everything else has its value of the first call.
        features: one of the maps; all have its B, C and dtype.

    Returns:
        A function with the arguments of `function`, for the present graph.
    """
    if not tensorflow_kernels() or isinstance(features, keras.KerasTensor):
        return function
    batch, height, width, channels = features.shape
    # XLA compiles for the value of all that reaches a call of which a result is a shape,
    # as it is in the gradients: it would compile anew for each batch.
    if None not in (height, width) or runs_under_xla():
        return function
    import tensorflow as tf

    # A new one for each graph, whose replica and variables it captures.
    traced = tf.function(function, autograph=False)
    spec = tf.TensorSpec((batch, None, None, channels), features.dtype)

    def call(features, scalars):
        scalars = {
            name: tf.convert_to_tensor(value, "float32")
            for name, value in scalars.items()
        }
        specs = {name: tf.TensorSpec((), "float32") for name in scalars}
        return traced.get_concrete_function(spec, specs)(features, scalars)

    return call
