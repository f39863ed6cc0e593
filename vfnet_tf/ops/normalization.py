"""Group normalisation with few operations and few passes over the map."""

from keras import ops

from vfnet_tf.ops.kernels import tensorflow_kernels
from vfnet_tf.ops.shapes import sizes_of


def group_norm(inputs, gamma, beta, groups, epsilon):
    """Group normalisation (Wu and He, ECCV 2018, Eq. 1-2).

    Args:
        inputs: float `[B, H, W, C]`.
        gamma, beta: float `[C]`.
        groups: int, a divisor of C.
        epsilon: float, added to the variance.

    Returns:
        `[B, H, W, C]` of the dtype of `inputs`; statistics and their gradients are
        float32 whatever it is.
    """
    gamma, beta = ops.cast(gamma, "float32"), ops.cast(beta, "float32")
    if tensorflow_kernels():
        return _with_gradient(inputs, gamma, beta, groups, epsilon)
    flat = _flatten_cells(inputs)
    mean, inverse = _statistics(flat, _ones_row(flat), groups, epsilon)
    return _normalise(inputs, gamma, beta, mean, inverse)


def _with_gradient(inputs, gamma, beta, groups, epsilon):
    """`group_norm` with its own gradient.

    TensorFlow's would be the same in twice as many passes over the map, and would keep
    its squares in memory.
    """
    import tensorflow as tf

    @tf.custom_gradient
    def norm(inputs, gamma, beta):
        channels = gamma.shape[0]
        flat = _flatten_cells(inputs)
        ones = _ones_row(flat)
        mean, inverse = _statistics(flat, ones, groups, epsilon)

        def gradient(upstream):
            grad = tf.reshape(tf.cast(upstream, "float32"), tf.shape(flat))
            centered = flat - _per_channel(mean, channels)
            # Of each channel: [B, 1, C].
            sums = tf.matmul(ones, grad)
            products = tf.matmul(ones, grad * centered)
            deviations = _per_channel(inverse, channels)
            # Of each group, over all its numbers: [B, G, 1].
            cells = tf.reduce_sum(ones, axis=-1, keepdims=True)
            of_shift = _group_mean(sums * gamma / cells, groups)
            of_scale = _group_mean(products * gamma / cells, groups)
            factor = _per_channel(of_scale * inverse * inverse * inverse, channels)
            rest = _per_channel(of_shift * inverse, channels)
            result = grad * (deviations * gamma) - centered * factor - rest
            return (
                tf.cast(tf.reshape(result, tf.shape(inputs)), inputs.dtype),
                tf.reduce_sum(products * deviations, axis=(0, 1)),
                tf.reduce_sum(sums, axis=(0, 1)),
            )

        return _normalise(inputs, gamma, beta, mean, inverse), gradient

    return norm(inputs, gamma, beta)


def _flatten_cells(inputs):
    """A map `[B, H, W, C]` as float32 `[B, H * W, C]`."""
    batch, _, _, channels = sizes_of(inputs)
    return ops.reshape(ops.cast(inputs, "float32"), (batch, -1, channels))


def _ones_row(flat):
    """Ones `[B, 1, N]`, whose product with `[B, N, C]` is the fastest sum of cells."""
    return ops.ones_like(flat[:, None, :, 0])


def _group_mean(values, groups):
    """`[B, 1, C]` to `[B, G, 1]`."""
    size = values.shape[-1] // groups
    return ops.mean(ops.reshape(values, (-1, groups, size)), axis=-1, keepdims=True)


def _per_channel(values, channels):
    """`[B, G, 1]` to `[B, 1, C]`."""
    groups = values.shape[1]
    spread = values + ops.zeros((groups, channels // groups), dtype="float32")
    return ops.reshape(spread, (-1, 1, channels))


def _statistics(flat, ones, groups, epsilon):
    """Mean and reciprocal deviation of each group of a map `[B, N, C]`: `[B, G, 1]`."""
    # Shifted by the mean of one cell, so that E[x^2] - E[x]^2 keeps the variance of a
    # channel with a large mean.
    pivot = ops.stop_gradient(_group_mean(flat[:, :1], groups))
    shifted = flat - _per_channel(pivot, flat.shape[-1])
    cells = ops.sum(ones, axis=-1, keepdims=True)
    mean = _group_mean(ops.matmul(ones, shifted) / cells, groups)
    square = _group_mean(ops.matmul(ones, ops.square(shifted)) / cells, groups)
    variance = ops.maximum(square - ops.square(mean), 0.0)
    return mean + pivot, ops.rsqrt(variance + epsilon)


def _normalise(inputs, gamma, beta, mean, inverse):
    groups, channels = mean.shape[1], gamma.shape[0]
    by_group = (groups, channels // groups)
    scale = inverse * ops.reshape(gamma, by_group)
    shift = ops.reshape(beta, by_group) - mean * scale
    scale = ops.cast(ops.reshape(scale, (-1, 1, 1, channels)), inputs.dtype)
    shift = ops.cast(ops.reshape(shift, (-1, 1, 1, channels)), inputs.dtype)
    return inputs * scale + shift
