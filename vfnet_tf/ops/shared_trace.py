"""One trace in TensorFlow's graph for all maps of a pyramid."""

import keras

from vfnet_tf.ops.kernels import tensorflow_kernels


def shared_trace(function, features):
    """A function that a graph of open sizes has once, however often it is called there.

    Heads do the same at every level of a pyramid. A graph of TensorFlow would have it
    five times, with its gradients, and writing that down takes most of the time until
    the first training step. Before the graph runs TensorFlow puts the function back in
    each place, with the sizes of its map as far as they are known.

    It is `function` itself outside of a graph, in one of fixed sizes (there the five
    are quicker: known sizes need no operations, and looking for them takes as long as
    was saved), on other backends and with `portable_kernels()`.

    Args:
        function: `function(features, scalars)`, a map `[B, H, W, C]` and a dict of
            float32 scalars, to tensors in any structure. What its calls differ in must
            be in these: of all else that it finds, the first one holds for all.
        features: one of the maps; all have its B, C and dtype.

    Returns:
        A function like `function`, for the graph in which it was asked for.
    """
    if not tensorflow_kernels() or isinstance(features, keras.KerasTensor):
        return function
    batch, height, width, channels = features.shape
    if None not in (height, width):
        return function
    import tensorflow as tf

    # Of this call alone: what it captures, the replica and the policy are of one graph.
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
