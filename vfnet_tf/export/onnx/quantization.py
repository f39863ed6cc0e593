"""Smaller numbers in an ONNX graph: int8 convolutions, or a network of float16.

What decides about places stays float32: the last convolutions before boxes, scores and
the points that deformable convolutions read, with all nodes behind them. There a step of
8 bits, or of the 11 bits of float16, is pixels wide.
"""

import itertools
import pathlib
import statistics
import tempfile
import time

import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import quantization

from vfnet_tf.export.onnx.layers import SUMS
from vfnet_tf.inference.onnx import open_session

#: Formats of the weights.
QUANTIZATIONS = ("none", "float16", "int8")

# `GridSample` reads at places, and the variance of a group may exceed float16.
_FLOAT32_OPERATORS = ("GridSample", "InstanceNormalization")


def float32_nodes(model):
    """Names of the nodes that stay float32.

    They are found backwards from the outputs and from the grids of `GridSample`, up to
    and including the first convolution with weights on each way. The size of a map does
    not depend on its numbers, so no way leads through `Shape`.

    Args:
        model: `onnx.ModelProto`, all nodes with names.

    Returns:
        set of str.
    """
    nodes = model.graph.node
    producers = {name: node for node in nodes for name in node.output}
    waiting = [output.name for output in model.graph.output]
    waiting += [node.input[1] for node in nodes if node.op_type == "GridSample"]
    found = set()
    while waiting:
        node = producers.get(waiting.pop())
        if node is None or node.name in found or node.op_type == "Shape":
            continue
        found.add(node.name)
        if node.op_type != "Conv" or f"/{SUMS}/" in node.name:
            waiting += node.input
    return found


def to_int8(model, feeds):
    """Quantises convolutions by `onnxruntime.quantization.quantize_static`.

    Weights become int8 with a scale for each filter; the inputs of convolutions become
    uint8 by the smallest and largest number that the calibration met. Other operators
    compute in float32.

    Args:
        model: `onnx.ModelProto` of float32.
        feeds: iterable of dicts, one batch of inputs each, for the calibration.

    Returns:
        `onnx.ModelProto`, with `QuantizeLinear` and `DequantizeLinear` nodes.
    """
    kept = float32_nodes(model)
    kept = [n.name for n in model.graph.node if n.op_type == "Conv" and n.name in kept]
    prepared = onnx.ModelProto()
    prepared.CopyFrom(model)
    # The tool warns without this mark of its own preparation, which folds norms and
    # infers shapes: the former is done here, the latter it does anyway.
    helper.set_model_props(prepared, {"onnx.quant.pre_process": "onnxruntime.quant"})
    with tempfile.TemporaryDirectory() as folder:
        source, target = pathlib.Path(folder, "float32"), pathlib.Path(folder, "int8")
        onnx.save(prepared, source)
        quantization.quantize_static(
            source,
            target,
            _Reader(feeds),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            nodes_to_exclude=kept,
            per_channel=True,
            # x86 without VNNI adds pairs of products in 16 bits, which 8 bits exceed.
            reduce_range=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
        return _with_origin(onnx.load(target), model)


class _Reader(quantization.CalibrationDataReader):
    """An iterable as the tool asks for it."""

    def __init__(self, feeds):
        self._feeds = iter(feeds)

    def get_next(self):
        return next(self._feeds, None)


def to_float16(model):
    """A graph whose weights and maps are float16, its inputs and outputs float32.

    `onnxruntime.transformers.float16` rounds between all nodes, also between those that
    stay float32, so that a box at pixel 1300 moves by up to half a pixel.

    Args:
        model: `onnx.ModelProto` of float32.

    Returns:
        `onnx.ModelProto`.
    """
    model = onnx.shape_inference.infer_shapes(model)
    graph, kept = model.graph, float32_nodes(model)
    values = itertools.chain(graph.input, graph.value_info, graph.output)
    floats = {
        value.name
        for value in values
        if value.type.tensor_type.elem_type == TensorProto.FLOAT
    }
    weights = {t.name: t for t in graph.initializer if t.data_type == TensorProto.FLOAT}
    in_float16, made, nodes = set(), {}, []

    def converted(name, to_float16):
        """The tensor in the other type, by a constant or a node that is added once."""
        new = f"{name}:{'float16' if to_float16 else 'float32'}"
        if new not in made:
            made[new] = None
            if name in weights:
                value = numpy_helper.to_array(weights[name]).astype("float16")
                made[new] = numpy_helper.from_array(value, new)
            else:
                kind = TensorProto.FLOAT16 if to_float16 else TensorProto.FLOAT
                nodes.append(helper.make_node("Cast", [name], [new], name=new, to=kind))
        return new

    for node in graph.node:
        is_kept = node.name in kept or node.op_type in _FLOAT32_OPERATORS
        for place, name in enumerate(node.input):
            # The factors of `Resize` are float32 in every case.
            wanted = not is_kept and not (node.op_type == "Resize" and place > 0)
            if (name in floats or name in weights) and wanted != (name in in_float16):
                node.input[place] = converted(name, wanted)
        if not is_kept:
            in_float16.update(name for name in node.output if name in floats)
            for attribute in node.attribute if node.op_type == "Cast" else ():
                if attribute.i == TensorProto.FLOAT:
                    attribute.i = TensorProto.FLOAT16
        nodes.append(node)
    used = {name for node in nodes for name in node.input}
    used |= {value.name for value in graph.input}
    constants = [*graph.initializer, *(t for t in made.values() if t is not None)]
    constants = [tensor for tensor in constants if tensor.name in used]
    ends = (list(graph.input), list(graph.output))
    result = onnx.ModelProto()
    result.CopyFrom(model)
    result.graph.CopyFrom(helper.make_graph(nodes, graph.name, *ends, constants))
    return result


def _with_origin(changed, model):
    """A graph by another program with the descriptions of the model it was made of."""
    changed.producer_name = model.producer_name
    properties = {entry.key: entry.value for entry in model.metadata_props}
    helper.set_model_props(changed, properties)
    return changed


def seconds_of(models, inputs, rounds=5):
    """Seconds of one batch in each model; they take turns.

    Args:
        models: list of the bytes of ONNX files.
        inputs: dict of arrays; a model takes those that it has.
        rounds: int, after one that does not count.

    Returns:
        list of float, medians.
    """
    sessions = [open_session(model) for model in models]
    times = [[] for _ in sessions]
    for _ in range(rounds + 1):
        for session, own in zip(sessions, times, strict=True):
            start = time.perf_counter()
            session.run(None, inputs)
            own.append(time.perf_counter() - start)
    return [statistics.median(own[1:]) for own in times]
