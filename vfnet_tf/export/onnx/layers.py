"""Keras layers as ONNX nodes, with a converter for each class of layers.

General converters follow TensorFlow's graph, where the padding of a "same" convolution
at stride 2 depends on the traced size: at another size the numbers are wrong, without
an error. Here every padding is stated, or the runtime computes it from the size.

Maps are `[B, C, H, W]`, the layout of ONNX. Batch norms with stored statistics become a
part of the kernel before them.
"""

import keras
import numpy as np

from vfnet_tf.backbones.res2net import _ScaleSplit, _SymmetricAveragePool
from vfnet_tf.backbones.resnet import SymmetricMaxPool
from vfnet_tf.heads.conv_tower import ConvTower
from vfnet_tf.layers import (
    ConvNormAct,
    DeformableConv2D,
    FoldedConv2D,
    FrozenBatchNorm,
    GroupNorm,
    StarDeformableConv2D,
)
from vfnet_tf.layers.conv_arguments import cells_around
from vfnet_tf.necks import FPN, PAFPN

#: Limit of distances in cells, beyond every map, because infinity times 0 is NaN.
MAX_DISTANCE = 1e6

#: Scope of the convolutions whose kernel is no weight: they add up distances.
SUMS = "sums"


def convert(graph, layer, inputs):
    """Adds the nodes of a built Keras layer or functional model to a `Graph`.

    Args:
        inputs: list of its input tensors, in the order of its call.

    Returns:
        list of its output tensors.

    Raises:
        ValueError: for a layer, or an argument of one, without a converter.
    """
    with graph.scope(layer.name):
        # Not `isinstance`: a subclass may compute something else.
        if type(layer) in CONVERTERS:
            results = CONVERTERS[type(layer)](graph, layer, *inputs)
            return results if isinstance(results, list) else [results]
        if isinstance(layer, keras.Model) and layer.inputs:
            return _functional(graph, layer, inputs)
    raise ValueError(
        "Each layer must have a converter in `vfnet_tf.export.onnx.layers`. "
        f"Received: {layer.name} of the class {type(layer).__name__}"
    )


def _functional(graph, model, inputs):
    """Adds the nodes of a functional model, inputs before the layers that take them."""
    values = {id(x): value for x, value in zip(model.inputs, inputs, strict=True)}
    waiting = list(model.outputs)
    while waiting:
        tensor = waiting[-1]
        if id(tensor) in values:
            waiting.pop()
            continue
        layer, index, _ = tensor._keras_history
        node = layer._inbound_nodes[index]
        missing = [x for x in node.input_tensors if id(x) not in values]
        if missing:
            waiting += missing
            continue
        results = convert(graph, layer, [values[id(x)] for x in node.input_tensors])
        for output, result in zip(node.output_tensors, results, strict=True):
            values[id(output)] = result
    return [values[id(tensor)] for tensor in model.outputs]


def convert_backbone(graph, backbone, images):
    """`[B, 3, H, W]` images to the backbone's maps, a dict by level."""
    with graph.scope("backbone"):
        results = _functional(graph, backbone, [images])
    by_tensor = dict(zip(map(id, backbone.outputs), results, strict=True))
    return {level: by_tensor[id(tensor)] for level, tensor in backbone.output.items()}


def _array(variable):
    return np.asarray(keras.ops.convert_to_numpy(variable), "float64")


def _float32(array):
    return np.ascontiguousarray(array, "float32")


def convolution(
    graph, inputs, kernel, bias=None, strides=1, padding=None, dilation=1, groups=1
):
    """A convolution of `[B, C, H, W]`.

    Args:
        kernel: array `[kh, kw, C / groups, F]`, as in Keras.
        bias: array `[F]` or None.
        strides, dilation: int or pair.
        padding: int, or pair for rows and columns, cells on every side; or TensorFlow's
            `"same"`, by the size of the map, more on the right and below. None keeps the
            size at stride 1.
        groups: int.
    """
    if padding is None:
        padding = kernel.shape[0] // 2
    if padding == "same":
        padded = {"auto_pad": "SAME_UPPER"}
    else:
        padded = {"pads": _pair(padding) * 2}
    return graph.node(
        "Conv",
        inputs,
        _float32(kernel.transpose(3, 2, 0, 1)),
        *([] if bias is None else [_float32(bias)]),
        kernel_shape=list(kernel.shape[:2]),
        strides=_pair(strides),
        dilations=_pair(dilation),
        group=groups,
        **padded,
    )


def deformable_convolution(
    graph,
    inputs,
    offsets,
    kernel,
    bias=None,
    mask=None,
    strides=1,
    padding=1,
    dilation=1,
    groups=1,
    deform_groups=1,
):
    """A deformable convolution, see `ops.deform_conv.deform_conv`, by `GridSample`.

    `DeformConv` of opset 19 takes 0.92 of the CPU time, but ONNX Runtime before version
    1.25 does not have it on CPUs.

    Args:
        offsets: `[B, 2 * taps * D, Ho, Wo]`, `(dy, dx)` in cells, tap by tap; D is
            `deform_groups`.
        mask: `[B, taps * D, Ho, Wo]` or None.
        inputs, kernel, bias, strides, padding, dilation, groups: see `convolution`;
            `padding` is an int or a pair.
    """
    height, width, channels, filters = kernel.shape
    taps, channels = height * width, channels * groups
    tap_y, tap_x = np.divmod(np.arange(taps), width)
    places = []
    for axis, tap in ((1, tap_x), (0, tap_y)):
        tap = tap * _pair(dilation)[axis] - _pair(padding)[axis]
        tap, step = np.tile(tap, deform_groups), _pair(strides)[axis]
        places.append(_sample_places(graph, inputs, offsets, axis, tap, step))
    grid = graph.concat(places, axis=-1)
    parts = [
        _split_evenly(graph, tensor, size, deform_groups)
        for tensor, size in ((inputs, channels // deform_groups), (grid, taps))
    ]
    masks = [None] * deform_groups
    if mask is not None:
        masks = _split_evenly(graph, mask, taps, deform_groups)
    # The taps of a cell become rows of a larger map.
    cells = graph.sizes(offsets, 2, 3)
    columns = graph.slice(cells, 1, 2, 0)
    rows_first = graph.concat([np.array([0, -1]), columns, np.array([2])], axis=0)
    taps_apart = graph.concat([np.array([0, 0, taps]), cells], axis=0)
    samples = []
    for part, part_grid, part_mask in zip(*parts, masks, strict=True):
        part_grid = graph.node("Reshape", part_grid, rows_first)
        settings = {"mode": "bilinear", "padding_mode": "zeros", "align_corners": 0}
        values = graph.node("GridSample", part, part_grid, **settings)
        values = graph.node("Reshape", values, taps_apart)
        if part_mask is not None:
            part_mask = graph.node("Unsqueeze", part_mask, np.array([1]))
            values = graph.node("Mul", values, part_mask)
        samples.append(values)
    samples = samples[0] if deform_groups == 1 else graph.concat(samples, axis=1)
    together = graph.concat([np.array([0, taps * channels]), cells], axis=0)
    samples = graph.node("Reshape", samples, together)
    kernel = kernel.reshape(taps, channels // groups, filters).transpose(1, 0, 2)
    kernel = kernel.reshape(1, 1, -1, filters)
    return convolution(graph, samples, kernel, bias, groups=groups)


def _sample_places(graph, inputs, offsets, axis, taps, strides):
    """Where `inputs` are sampled along one axis (0 for rows), in units of `GridSample`.

    `taps` `[N]` are the taps' places for cell 0 without offsets. Returns float32
    `[B, N, Ho, Wo, 1]`, `(2 * place + 1) / size - 1`.
    """
    count = len(taps)
    own = np.arange(axis, 2 * count, 2)
    moved = graph.node("Gather", offsets, own, axis=1)
    moved = graph.node("Add", moved, _float32(taps[:, None, None]))
    cells = graph.node("Squeeze", graph.sizes(offsets, 2 + axis))
    cells = graph.node("Range", np.int64(0), cells, np.int64(1))
    cells = graph.node("Mul", graph.cast(cells, "float32"), np.float32(strides))
    if axis == 0:
        cells = graph.node("Unsqueeze", cells, np.array([1]))
    place = graph.node("Add", moved, cells)
    # Clipped: places further out are 0 as well, and may be too large for an index.
    size = graph.cast(graph.sizes(inputs, 2 + axis), "float32")
    place = graph.node("Max", graph.node("Min", place, size), np.float32(-1))
    place = graph.node("Add", graph.node("Add", place, place), np.float32(1))
    place = graph.node("Sub", graph.node("Div", place, size), np.float32(1))
    return graph.node("Unsqueeze", place, np.array([4]))


def _split_evenly(graph, tensor, size, count):
    """Splits axis 1 into `count` parts of `size`."""
    if count == 1:
        return [tensor]
    sizes = np.full(count, size)
    return graph.node("Split", tensor, sizes, outputs=count, axis=1)


def _pair(value):
    return [value, value] if isinstance(value, int) else list(value)


def activate(graph, inputs, activation):
    """A Keras activation function, by its name."""
    name = keras.activations.serialize(activation)
    name = name if isinstance(name, str) else name["config"]["name"]
    if name == "linear":
        return inputs
    if name == "relu6":
        return graph.node("Clip", inputs, np.float32(0), np.float32(6))
    if name in ("silu", "swish"):
        return graph.node("Mul", inputs, graph.node("Sigmoid", inputs))
    kinds = {"relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh"}
    if name not in kinds:
        raise ValueError(
            "An activation must be linear, relu, relu6, sigmoid, silu or tanh to be "
            f"exported to ONNX. Received: activation={name}"
        )
    return graph.node(kinds[name], inputs)


def _scale_and_shift(norm):
    """Factor and summand per channel of a norm with stored statistics, float64 `[C]`."""
    mean, variance = _array(norm.moving_mean), _array(norm.moving_variance)
    gamma = 1.0 if norm.gamma is None else _array(norm.gamma)
    beta = 0.0 if norm.beta is None else _array(norm.beta)
    scale = gamma / np.sqrt(variance + norm.epsilon)
    return scale, beta - mean * scale


def _conv_norm_act(graph, layer, inputs):
    kernel = _array(layer.conv.kernel)
    bias = _array(layer.conv.bias) if layer.use_bias else None
    if layer.norm in ("frozen_batch_norm", "batch_norm"):
        scale, shift = _scale_and_shift(layer.norm_layer)
        kernel = kernel * scale
        bias = shift if bias is None else shift + bias * scale
    if layer.deformable:
        outputs = _deformable(graph, layer.conv, inputs, kernel, bias)
    else:
        cells = cells_around(layer.kernel_size, layer.dilation_rate, layer.padding)
        cells = "same" if cells is None else cells
        settings = (layer.strides, cells, layer.dilation_rate, layer.groups)
        outputs = convolution(graph, inputs, kernel, bias, *settings)
    if layer.norm == "group_norm":
        outputs = _group_norm(graph, layer.norm_layer, outputs)
    return activate(graph, outputs, layer.activation)


def _deformable_conv(graph, layer, inputs):
    bias = _array(layer.bias) if layer.use_bias else None
    outputs = _deformable(graph, layer, inputs, _array(layer.kernel), bias)
    return activate(graph, outputs, layer.activation)


def _deformable(graph, layer, inputs, kernel, bias):
    """A `DeformableConv2D` with another kernel and bias."""
    if layer.cells is None:
        raise ValueError(
            "A deformable convolution must be padded alike on all sides to be exported "
            f"to ONNX. Received: padding='same' of {layer.name}"
        )
    settings = {
        "strides": layer.strides,
        "padding": layer.cells,
        "dilation": layer.dilation_rate,
    }
    own = (_array(layer.conv_offset.kernel), _array(layer.conv_offset.bias))
    offsets = convolution(graph, inputs, *own, **settings)
    mask = None
    if layer.modulated:
        sizes = np.array([layer.num_offsets, layer.num_offsets // 2])
        offsets, mask = graph.node("Split", offsets, sizes, outputs=2, axis=1)
        mask = graph.node("Sigmoid", mask)
    settings |= {"groups": layer.groups, "deform_groups": layer.deform_groups}
    return deformable_convolution(
        graph, inputs, offsets, kernel, bias, mask, **settings
    )


def _star_conv(graph, layer, inputs, distances):
    """A star's taps as offsets from a plain 3x3: sums of a distance and a constant.

    A 1x1 convolution computes them.
    """
    # From (left, top, right, bottom) to (dy, dx) of each tap.
    kernel, bias = np.zeros((1, 1, 4, 18)), np.zeros(18)
    for tap in range(9):
        for axis, step in enumerate((tap // 3 - 1, tap % 3 - 1)):
            if step:
                side = 1 - axis if step < 0 else 3 - axis
                kernel[0, 0, side, 2 * tap + axis] = step
                bias[2 * tap + axis] = -step
    distances = graph.node("Min", distances, np.float32(MAX_DISTANCE))
    with graph.scope(SUMS):
        offsets = convolution(graph, distances, kernel, bias)
    return deformable_convolution(graph, inputs, offsets, _array(layer.kernel))


def _group_norm(graph, layer, inputs):
    """Instance normalisation of the groups, which all runtimes have."""
    groups = layer.groups
    flat = graph.node("Reshape", inputs, np.array([0, groups, -1]))
    one, zero = np.ones(groups, "float32"), np.zeros(groups, "float32")
    kind = "InstanceNormalization"
    normed = graph.node(kind, flat, one, zero, epsilon=layer.epsilon)
    normed = graph.node("Reshape", normed, graph.node("Shape", inputs))
    return _times_plus(graph, normed, _array(layer.gamma), _array(layer.beta))


def _times_plus(graph, inputs, scale, shift):
    scaled = graph.node("Mul", inputs, _float32(scale[:, None, None]))
    return graph.node("Add", scaled, _float32(shift[:, None, None]))


def _batch_norm(graph, layer, inputs):
    return _times_plus(graph, inputs, *_scale_and_shift(layer))


def _tower(graph, layer, inputs):
    for conv in layer.convs:
        (inputs,) = convert(graph, conv, [inputs])
    return inputs


def _keras_conv(graph, layer, inputs, kernel=None, bias=None, groups=None):
    _check_layout(layer)
    kernel = _array(layer.kernel) if kernel is None else kernel
    if bias is None and layer.use_bias:
        bias = _array(layer.bias)
    padding = 0 if layer.padding == "valid" else layer.padding
    groups = layer.groups if groups is None else groups
    settings = (layer.strides, padding, layer.dilation_rate, groups)
    outputs = convolution(graph, inputs, kernel, bias, *settings)
    return activate(graph, outputs, layer.activation)


def _folded_conv(graph, layer, inputs):
    scale, shift = _scale_and_shift(layer.norm)
    return _keras_conv(graph, layer, inputs, _array(layer.kernel) * scale, shift)


def _depthwise_conv(graph, layer, inputs):
    kernel = _array(layer.kernel)  # [kh, kw, C, multiplier]
    height, width, channels, multiplier = kernel.shape
    kernel = kernel.reshape(height, width, 1, channels * multiplier)
    return _keras_conv(graph, layer, inputs, kernel, groups=channels)


def _check_layout(layer):
    if layer.data_format != "channels_last":
        raise ValueError(
            "Layers must be `channels_last`. "
            f"Received: data_format={layer.data_format} of {layer.name}"
        )


def _pool(kind, **settings):
    def convert_pool(graph, layer, inputs):
        _check_layout(layer)
        # Like TensorFlow, the runtime leaves cells beyond the map out of a mean.
        padded = {"pads": [0] * 4}
        if layer.padding == "same":
            padded = {"auto_pad": "SAME_UPPER"}
        sizes = {"kernel_shape": [*layer.pool_size], "strides": [*layer.strides]}
        return graph.node(kind, inputs, **sizes, **padded, **settings)

    return convert_pool


_SYMMETRIC_POOL = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1] * 4}


def _symmetric_max_pool(graph, layer, inputs):
    # It pads with the lowest number instead of 0, which is the same because no cell is
    # negative after the ReLU before it.
    return graph.node("MaxPool", inputs, **_SYMMETRIC_POOL)


def _symmetric_average_pool(graph, layer, inputs):
    return graph.node("AveragePool", inputs, **_SYMMETRIC_POOL, count_include_pad=1)


def _zero_padding(graph, layer, inputs):
    _check_layout(layer)
    (top, bottom), (left, right) = layer.padding
    pads = np.array([0, 0, top, left, 0, 0, bottom, right])
    return graph.node("Pad", inputs, pads)


def _sum(graph, layer, *inputs):
    total = inputs[0]
    for other in inputs[1:]:
        total = graph.node("Add", total, other)
    return total


def _concatenate(graph, layer, *inputs):
    if layer.axis not in (-1, 3):
        raise ValueError(
            "Maps must be joined along their channels. "
            f"Received: axis={layer.axis} of {layer.name}"
        )
    return graph.concat(inputs, axis=1)


def _split(graph, layer, inputs):
    count = layer.scales
    return graph.node("Split", inputs, outputs=count, num_outputs=count, axis=1)


def _relu(graph, layer, inputs):
    if layer.negative_slope or layer.threshold:
        raise ValueError(
            "A ReLU must have neither slope nor threshold. Received: "
            f"negative_slope={layer.negative_slope}, threshold={layer.threshold}"
        )
    if layer.max_value is None:
        return graph.node("Relu", inputs)
    return graph.node("Clip", inputs, np.float32(0), np.float32(layer.max_value))


def _dropout(graph, layer, inputs):
    return inputs


def add_upsampled(graph, fine, coarse):
    """See `necks.fpn.add_upsampled`."""
    settings = {
        "mode": "nearest",
        "coordinate_transformation_mode": "asymmetric",
        "nearest_mode": "floor",
    }
    factors = np.array([1, 1, 2, 2], "float32")
    doubled = graph.node("Resize", coarse, None, factors, **settings)
    # An odd side of the finer map is one cell less than twice the coarser one's.
    ends = graph.sizes(fine, 2, 3)
    cut = graph.node("Slice", doubled, np.array([0, 0]), ends, np.array([2, 3]))
    return graph.node("Add", fine, cut)


def _convert_each(graph, layers, inputs):
    pairs = zip(layers, inputs, strict=True)
    return [convert(graph, layer, [tensor])[0] for layer, tensor in pairs]


def _top_down(graph, neck, inputs):
    """(levels after their output convolutions, layers of the further levels)."""
    inputs = [inputs[level] for level in neck.in_levels]
    levels = _convert_each(graph, neck.laterals, inputs)
    for index in reversed(range(len(levels) - 1)):
        levels[index] = add_upsampled(graph, levels[index], levels[index + 1])
    split = len(levels)
    return _convert_each(graph, neck.outputs[:split], levels), neck.outputs[split:]


def _fpn(graph, neck, inputs):
    results, extra = _top_down(graph, neck, inputs)
    for number, output in enumerate(extra):
        x = results[-1]
        if number == 0 and neck.extra_from == "input":
            x = inputs[neck.in_levels[-1]]
        if number > 0 and neck.relu_before_extra:
            x = graph.node("Relu", x)
        results += convert(graph, output, [x])
    return dict(zip(neck.out_levels, results, strict=True))


def _pafpn(graph, neck, inputs):
    levels, extra = _top_down(graph, neck, inputs)
    for index, downsample in enumerate(neck.downsamples):
        (down,) = convert(graph, downsample, [levels[index]])
        levels[index + 1] = graph.node("Add", levels[index + 1], down)
    results = _convert_each(graph, neck.final_outputs, levels)
    for number, output in enumerate(extra):
        x = graph.node("Relu", results[-1]) if number > 0 else results[-1]
        results += convert(graph, output, [x])
    return dict(zip(neck.out_levels, results, strict=True))


def convert_neck(graph, neck, features):
    """A backbone's maps to the levels of the pyramid, dicts by level.

    Raises:
        ValueError: for another neck than `FPN` and `PAFPN`.
    """
    necks = {FPN: _fpn, PAFPN: _pafpn}
    if type(neck) not in necks:
        raise ValueError(
            f"A neck must be FPN or PAFPN. Received: {type(neck).__name__}"
        )
    with graph.scope("neck"):
        return necks[type(neck)](graph, neck, features)


#: Class of a layer -> function of the graph, the layer and its inputs.
CONVERTERS = {
    ConvNormAct: _conv_norm_act,
    ConvTower: _tower,
    DeformableConv2D: _deformable_conv,
    FoldedConv2D: _folded_conv,
    FrozenBatchNorm: _batch_norm,
    GroupNorm: _group_norm,
    StarDeformableConv2D: _star_conv,
    SymmetricMaxPool: _symmetric_max_pool,
    _ScaleSplit: _split,
    _SymmetricAveragePool: _symmetric_average_pool,
    keras.layers.Activation: lambda graph, layer, x: activate(
        graph, x, layer.activation
    ),
    keras.layers.Add: _sum,
    keras.layers.AveragePooling2D: _pool("AveragePool", count_include_pad=0),
    keras.layers.BatchNormalization: _batch_norm,
    keras.layers.Concatenate: _concatenate,
    keras.layers.Conv2D: _keras_conv,
    keras.layers.DepthwiseConv2D: _depthwise_conv,
    keras.layers.Dropout: _dropout,
    keras.layers.MaxPooling2D: _pool("MaxPool"),
    keras.layers.ReLU: _relu,
    keras.layers.ZeroPadding2D: _zero_padding,
}
