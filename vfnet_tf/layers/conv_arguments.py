"""Arguments of convolution layers, as `keras.layers.Conv2D` takes them."""

import operator

from vfnet_tf.ops.shapes import as_pair

PADDINGS = ("symmetric", "same", "valid")


def int_or_pair(value, name):
    """An int, or a pair of ints that differ.

    Raises:
        ValueError: for anything else than an int or a pair of ints of at least 1.
    """
    try:
        pair = tuple(operator.index(side) for side in as_pair(value))
    except TypeError:
        pair = ()
    if len(pair) != 2 or min(pair) < 1 or isinstance(value, bool):
        raise ValueError(
            f"`{name}` must be a whole number of at least 1, or a pair of them for rows "
            f"and columns. Received: {name}={value!r}"
        )
    return pair[0] if pair[0] == pair[1] else pair


def positive(value, name):
    """`value` as an int.

    Raises:
        ValueError: unless it is a whole number of at least 1.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if number < 1 or isinstance(value, bool):
        raise ValueError(
            f"`{name}` must be a whole number of at least 1. Received: {name}={value!r}"
        )
    return number


def check_layout(data_format):
    """Refuses maps that are not `[B, H, W, C]`, whatever Keras's own default is."""
    if data_format not in (None, "channels_last"):
        raise ValueError(
            "`data_format` must be 'channels_last' or None: maps are [B, H, W, C], "
            "whatever keras.config.image_data_format() is. "
            f"Received: data_format={data_format!r}"
        )


def padding_mode(padding, kernel_size):
    """One of `PADDINGS` from a name in upper or lower case.

    Raises:
        ValueError: for another name, or for symmetric padding of an even kernel.
    """
    mode = padding.lower() if isinstance(padding, str) else padding
    if mode not in PADDINGS:
        raise ValueError(
            f"`padding` must be one of {PADDINGS}. Received: padding={padding!r}"
        )
    if mode == "symmetric" and any(side % 2 == 0 for side in as_pair(kernel_size)):
        raise ValueError(
            "`kernel_size` must be odd where padding='symmetric'. "
            f"Received: kernel_size={kernel_size}"
        )
    return mode


def cells_around(kernel_size, dilation_rate, padding):
    """Zero cells on each side (rows, columns) for a mode; None for `"same"`."""
    if padding == "same":
        return None
    return tuple(
        dilation * (side - 1) // 2 if padding == "symmetric" else 0
        for side, dilation in zip(
            as_pair(kernel_size), as_pair(dilation_rate), strict=True
        )
    )


def convolved_shape(shape, filters, kernel_size, strides, dilation_rate, padding):
    """The output's shape for a map of shape `(B, H, W, C)`.

    Raises:
        ValueError: if the map is smaller than the kernel.
    """
    sides = []
    for size, kernel, stride, dilation in zip(
        shape[1:3], *map(as_pair, (kernel_size, strides, dilation_rate)), strict=True
    ):
        if size is not None and padding == "valid":
            size -= dilation * (kernel - 1)
        if size is not None and size < 1:
            raise ValueError(
                "The map must be as large as the kernel where padding='valid'. "
                f"Received: a map of shape {tuple(shape)}, kernel_size={kernel_size}, "
                f"dilation_rate={dilation_rate}"
            )
        sides.append(size and -(-size // stride))
    return (shape[0], *sides, filters)


def channels_of(shape, layer):
    """Channels C of the shape `(B, H, W, C)` that Keras gives a layer's `build`.

    Raises:
        ValueError: with the layer's name, for another shape or an unknown C.
    """
    is_map = isinstance(shape, tuple | list) and len(shape) == 4
    if not is_map or not isinstance(shape[-1], int) or shape[-1] < 1:
        raise ValueError(
            f"{layer.name} ({type(layer).__name__}) must be given one map [B, H, W, C] "
            f"with a known number of channels. Received: shape={shape}"
        )
    return shape[-1]
