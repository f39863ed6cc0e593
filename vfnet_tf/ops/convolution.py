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
    kernel_size = kernel.shape[0]
    if padding is None:
        padding = kernel_size // 2
    # At stride 1 "same" pads both sides alike. Explicit paddings would say all cases at
    # once, but their gradients have no fast kernel in TensorFlow on CPU.
    is_same = strides == 1 and padding == kernel_size // 2
    if padding and not is_same:
        sides = (padding, padding)
        inputs = ops.pad(inputs, ((0, 0), sides, sides, (0, 0)))
    mode = "same" if is_same else "valid"
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        outputs = tf.nn.conv2d(inputs, kernel, strides, mode.upper())
    else:
        outputs = ops.conv(
            inputs, kernel, strides=strides, padding=mode, data_format="channels_last"
        )
    return outputs if bias is None else add_bias(outputs, bias)


def add_bias(inputs, bias):
    """`inputs + bias` for `[B, H, W, F]` and `[F]`.

    TensorFlow's graph optimizer makes one kernel of a convolution, `bias_add`, a
    residual sum and ReLU, but not of a convolution and `+`.
    """
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.nn.bias_add(inputs, bias)
    return inputs + bias
