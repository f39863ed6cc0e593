"""2-D convolution with symmetric padding."""

import keras
from keras import ops


def conv2d(inputs, kernel, bias=None, strides=1, padding=None):
    """Convolution padded by the same number of zero cells on every side (PyTorch's way).

    Args:
        inputs: float `[B, H, W, C]`.
        kernel: float `[kh, kw, C, F]`, odd sides.
        bias: float `[F]` or None.
        strides: int.
        padding: int, cells on every side; None keeps the size at stride 1.

    Returns:
        `[B, Ho, Wo, F]` of the dtype of `inputs`.
    """
    if padding is None:
        padding = kernel.shape[0] // 2
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        # `bias_add` and explicit paddings: the graph optimizer then makes convolution,
        # bias, residual sum and ReLU one kernel, and no padded copy of the map.
        sides = [[0, 0], [padding, padding], [padding, padding], [0, 0]]
        outputs = tf.nn.conv2d(inputs, kernel, strides, sides)
        return outputs if bias is None else tf.nn.bias_add(outputs, bias)
    outputs = ops.conv(
        ops.pad(inputs, ((0, 0), (padding, padding), (padding, padding), (0, 0))),
        kernel,
        strides=strides,
        padding="valid",
        data_format="channels_last",
    )
    return outputs if bias is None else outputs + bias
