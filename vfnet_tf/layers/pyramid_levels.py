"""Levels of a pyramid as arguments and as inputs of necks and heads."""

from vfnet_tf.layers.conv_arguments import channels_of


def level_names(levels, name):
    """`levels` as a tuple.

    Raises:
        ValueError: unless they are some names, each once.
    """
    is_sequence = isinstance(levels, tuple | list) and levels
    if not is_sequence or not all(isinstance(level, str) for level in levels):
        raise ValueError(
            f"`{name}` must be names of levels, fine to coarse. "
            f"Received: {name}={levels!r}"
        )
    if len(set(levels)) < len(levels):
        raise ValueError(f"`{name}` must differ. Received: {name}={levels!r}")
    return tuple(levels)


def check_given(inputs, levels, layer):
    """Refuses inputs of a layer that are not a dict with all its levels.

    Raises:
        ValueError: with the levels that are missing.
    """
    if not isinstance(inputs, dict) or not set(levels) <= set(inputs):
        given = sorted(inputs) if isinstance(inputs, dict) else type(inputs).__name__
        raise ValueError(
            f"{layer.name} ({type(layer).__name__}) must be given a dict with the levels "
            f"{levels}. Received: {given}"
        )


def shapes_of(input_shapes, levels, layer):
    """Shapes `(B, H, W, C)` of a layer's levels, in their order.

    Raises:
        ValueError: if one is missing, or not one map of known channels.
    """
    check_given(input_shapes, levels, layer)
    for level in levels:
        channels_of(input_shapes[level], layer)
    return [input_shapes[level] for level in levels]
