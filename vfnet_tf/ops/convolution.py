"""2-D convolution with symmetric padding."""

import numpy as np
from keras import ops

from vfnet_tf.ops.kernels import runs_under_xla, tensorflow_kernels
from vfnet_tf.ops.shapes import as_pair
from vfnet_tf.processor import onednn_is_on

#: The least channels of a block of a grouped convolution, see `merge_groups`.
BLOCK_CHANNELS = 32

#: Filters of each slice of a wide convolution, see `_dense_conv`.
SLICE_FILTERS = 64


def pad_symmetric(inputs, cells):
    """Adds zero rows and columns on each side of a `[B, H, W, C]` map.

    Args:
        cells: int, or a pair for rows and columns.
    """
    rows, columns = as_pair(cells)
    return ops.pad(inputs, ((0, 0), (rows, rows), (columns, columns), (0, 0)))


def conv2d(inputs, kernel, bias=None, strides=1, padding=None, groups=1, dilation=1):
    """Convolution padded by the same number of zero cells on every side (PyTorch's way).

    Args:
        inputs: float `[B, H, W, C]`.
        kernel: float `[kh, kw, C / groups, F]`, odd sides.
        bias: float `[F]` or None.
        strides: int or pair.
        padding: int or pair, cells on every side, None for those that keep the size at
            stride 1; or `"same"` or `"valid"`, as Keras pads.
        groups: int, groups of channels that are convolved apart, see `_grouped_conv`.
        dilation: int or pair.

    Returns:
        `[B, Ho, Wo, F]` of the dtype of `inputs`.
    """
    strides, dilation = as_pair(strides), as_pair(dilation)
    centered = centered_padding(kernel, dilation)
    if isinstance(padding, str):
        mode = padding
    else:
        padding = centered if padding is None else as_pair(padding)
        # At stride 1 "same" pads both sides alike. TensorFlow's explicit padding would do
        # for all cases, but its gradient has no fast kernel on CPU.
        is_odd = all(size % 2 for size in kernel.shape[:2])
        mode = "valid"
        if strides == (1, 1) and padding == centered and is_odd:
            mode = "same"
        elif any(padding):
            inputs = pad_symmetric(inputs, padding)
    # TensorFlow on CPU has no gradient of a dilated convolution; Keras has another way.
    if tensorflow_kernels() and dilation == (1, 1):
        outputs = _grouped_conv(inputs, kernel, strides, mode.upper(), groups)
    else:
        outputs = ops.conv(
            inputs,
            kernel,
            strides=strides,
            padding=mode,
            data_format="channels_last",
            dilation_rate=dilation,
        )
    return outputs if bias is None else add_bias(outputs, bias)


def project_channels(inputs, kernel):
    """The channels of each cell times a matrix.

    TensorFlow does it by a 1x1 convolution: on two cores with AVX2 oneDNN takes 110 ms for
    100x168 cells of 2304 channels and 256 filters, and 136 ms for the matrix product.

    Args:
        inputs: float `[B, H, W, C]`.
        kernel: float `[C, F]`.

    Returns:
        `[B, H, W, F]` of the dtype of `inputs`.
    """
    if tensorflow_kernels():
        return conv2d(inputs, kernel[None, None])
    return ops.matmul(inputs, kernel)


def centered_padding(kernel, dilation):
    """Cells on every side (rows, columns) that keep the size at stride 1."""
    return tuple(
        side * (size - 1) // 2
        for side, size in zip(dilation, kernel.shape[:2], strict=True)
    )


def _grouped_conv(inputs, kernel, strides, padding, groups):
    """Convolves groups of channels apart, by TensorFlow's own kernel where it is fast.

    That is on GPUs and with oneDNN. Eigen's gradient of 32 groups takes 160 times as long
    as a few dense convolutions with block-diagonal kernels, which are computed there.
    oneDNN's own takes half of their time, with gradients a third of it.
    """
    import tensorflow as tf

    is_float32 = kernel.dtype == tf.float32
    if tf.config.list_logical_devices("GPU") or (
        is_float32 and onednn_is_on() and not runs_under_xla()
    ):
        return tf.nn.conv2d(inputs, kernel, strides, padding)
    kernel, blocks = merge_groups(kernel, groups)
    if blocks == 1:
        return _dense_conv(inputs, kernel, strides, padding)
    outputs = [
        tf.nn.conv2d(part, part_kernel, strides, padding)
        for part, part_kernel in zip(
            tf.split(inputs, blocks, axis=-1),
            tf.split(kernel, blocks, axis=-1),
            strict=True,
        )
    ]
    return tf.concat(outputs, axis=-1)


def _dense_conv(inputs, kernel, strides, padding):
    """`tf.nn.conv2d` with wide kernels cut into slices, which suit the cache of a CPU.

    Rows of a float32 kernel that are a power of two apart share few lines of the cache:
    with Eigen and AVX2 a 3x3 convolution with 256 filters takes 1.2 times, one with 512
    filters 1.6 times as long as in slices of 64 filters. oneDNN lays kernels out itself,
    and slices would take up to 2.4 times as long. The gradients are those of the whole
    convolution.
    """
    import tensorflow as tf

    filters = kernel.shape[-1]
    is_wide = filters > 2 * SLICE_FILTERS and filters % (2 * SLICE_FILTERS) == 0
    is_float32 = kernel.dtype == tf.float32
    if kernel.shape[0] == 1 or not is_float32 or not is_wide or onednn_is_on():
        return tf.nn.conv2d(inputs, kernel, strides, padding)

    @tf.custom_gradient
    def conv(inputs, kernel):
        # Cut when the inputs are there: a graph would cut all kernels first, and keep
        # the slices in memory.
        with tf.control_dependencies([inputs]):
            slices = tf.split(kernel, filters // SLICE_FILTERS, axis=-1)
        outputs = [tf.nn.conv2d(inputs, part, strides, padding) for part in slices]

        def gradient(upstream):
            settings = {"strides": [1, *strides, 1], "padding": padding}
            return (
                tf.raw_ops.Conv2DBackpropInput(
                    input_sizes=tf.shape(inputs),
                    filter=kernel,
                    out_backprop=upstream,
                    **settings,
                ),
                tf.raw_ops.Conv2DBackpropFilter(
                    input=inputs,
                    filter_sizes=tf.shape(kernel),
                    out_backprop=upstream,
                    **settings,
                ),
            )

        return tf.concat(outputs, axis=-1), gradient

    return conv(inputs, kernel)


def merge_groups(kernel, groups):
    """The kernel of a grouped convolution with fewer, wider groups and the same result.

    Groups are joined until one has `BLOCK_CHANNELS` channels; the kernel of a joined
    group is zero between channels of different groups.

    Args:
        kernel: float `[kh, kw, C / groups, F]`.
        groups: int.

    Returns:
        (kernel float `[kh, kw, C / blocks, F]`, blocks int), blocks a divisor of
        `groups`.
    """
    channels, filters = kernel.shape[2:]
    joined = next(
        n
        for n in range(1, groups + 1)
        if groups % n == 0 and (n * channels >= BLOCK_CHANNELS or n == groups)
    )
    if joined == 1:
        return kernel, groups
    row_group = np.arange(joined * channels) // channels
    column_group = np.arange(filters) // (filters // groups) % joined
    is_own = row_group[:, None] == column_group
    kernel = ops.tile(kernel, (1, 1, joined, 1))
    kernel = kernel * ops.cast(ops.convert_to_tensor(is_own), kernel.dtype)
    return kernel, groups // joined


def add_bias(inputs, bias):
    """`inputs + bias` for `[B, H, W, F]` and `[F]`.

    TensorFlow's graph optimizer makes one kernel of a convolution, `bias_add`, a
    residual sum and ReLU, but not of a convolution and `+`.
    """
    if tensorflow_kernels():
        import tensorflow as tf

        return tf.nn.bias_add(inputs, bias)
    return inputs + bias
