"""Finds the maps that end the stages of a functional Keras model."""

import keras

#: Strides of the maps that end the stages: C2, C3, C4 and C5.
STRIDES = (4, 8, 16, 32)

_PROBE = 256  # pixels; a multiple of every stride


def stage_ends(model):
    """The maps that end a model's stages.

    A model with `pyramid_outputs` (the convention of KerasHub's backbones) names them
    itself. Their strides are measured, as some models count their levels from 1 and not
    by powers of two. In other models a stage ends with the last map of its stride that
    everything after it is computed from: a ResNet's last sum, a DenseNet's transition
    before its pooling, a MobileNet's expansion before its strided convolution.

    Args:
        model: a functional Keras model of one batch of images `[B, H, W, C]`.

    Returns:
        dict stride -> `KerasTensor` `[B, h, w, c]`, for those of 4, 8, 16 and 32 that
        there are. A map counts if it has exactly a stride-th of an image's rows and
        columns, which a padded one has not.

    Raises:
        ValueError: if the model has other inputs.
    """
    if len(model.inputs) != 1 or len(model.inputs[0].shape) != 4:
        shapes = [tuple(x.shape) for x in model.inputs]
        raise ValueError(
            "A backbone must take one batch of images [B, H, W, C]. "
            f"Received: inputs of the shapes {shapes} of {model.name}"
        )
    pyramid = getattr(model, "pyramid_outputs", None)
    maps = list(pyramid.values()) if pyramid else _maps_that_all_need(model)
    maps = [x for x in maps if len(x.shape) == 4]
    if not maps:
        return {}
    strides = strides_of(model, maps)
    # Of several maps of one stride the last.
    return {s: x for s, x in zip(strides, maps, strict=True) if s in STRIDES}


def strides_of(model, maps):
    """Pixels per cell of some maps of a model.

    Args:
        model: a functional Keras model of one batch of images `[B, H, W, C]`.
        maps: `KerasTensor`s `[B, h, w, c]` of the model.

    Returns:
        list of ints, None for a map that has not exactly a stride-th of an image's rows
        and columns.
    """
    height, width, channels = model.inputs[0].shape[1:]
    height, width = height or _PROBE, width or _PROBE
    image = keras.KerasTensor((1, height, width, channels), model.inputs[0].dtype)
    strides = []
    for spec in keras.Model(model.inputs, maps)([image]):
        stride, rest = divmod(height, spec.shape[1])
        is_one = rest == 0 and stride * spec.shape[2] == width
        strides.append(stride if is_one else None)
    return strides


def _maps_that_all_need(model):
    """Tensors that lie on every path from the input to the output, in order."""
    operations = keras.Model(model.inputs, model.outputs).operations
    places = {id(operation): place for place, operation in enumerate(operations)}
    outputs = [None] * len(operations)
    last_reader = list(range(len(operations)))
    for place, operation in enumerate(operations):
        for node in operation._inbound_nodes:
            sources = [id(x._keras_history.operation) for x in node.input_tensors]
            if any(source not in places for source in sources):
                continue  # a call of this layer in another model
            outputs[place] = node.output_tensors
            for source in sources:
                last_reader[places[source]] = place
    maps, furthest = [], 0
    for place, tensors in enumerate(outputs):
        # Operations are in the order of computation: all later ones need this output if
        # none of them reads an earlier one.
        if furthest <= place and len(tensors) == 1:
            maps.append(tensors[0])
        furthest = max(furthest, last_reader[place])
    return maps
