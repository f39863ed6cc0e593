"""An ONNX graph under construction: nodes, constants and their names."""

import collections
import contextlib
import hashlib

import numpy as np

try:
    import onnx
    from onnx import helper, numpy_helper
except ImportError as error:
    raise ImportError(
        "To write ONNX files, install onnx: pip install 'vfnet_tf[onnx]'"
    ) from error

#: Version of the standard operators, the first whose reductions all take axes as input.
OPSET = 18
#: The oldest file format that has this opset: old runtimes refuse newer ones.
IR_VERSION = 8


class Graph:
    """Collects nodes; a tensor is a str, the name of a node's output.

    >>> graph = Graph()
    >>> x = graph.input("x", "float32", ("batch", 4))
    >>> doubled = graph.node("Mul", x, np.float32(2))
    >>> graph.output(doubled, "doubled", "float32", ("batch", 4))
    >>> [output.name for output in graph.model("double").graph.output]
    ['doubled']
    """

    def __init__(self):
        self._nodes, self._inputs, self._outputs = [], [], []
        self._constants = {}  # digest of the values -> TensorProto
        self._scopes = []
        self._counts = collections.Counter()

    @contextlib.contextmanager
    def scope(self, name):
        """The names of nodes that are added inside begin with `name/`."""
        self._scopes.append(name)
        try:
            yield
        finally:
            self._scopes.pop()

    def _unique(self, name):
        path = "/".join([*self._scopes, name])
        self._counts[path] += 1
        count = self._counts[path]
        return path if count == 1 else f"{path}_{count}"

    def input(self, name, dtype, shape, default=None):
        """Adds an input and returns it.

        Args:
            name: str.
            dtype: name of a numpy dtype.
            shape: tuple of int, or str for a dynamic size.
            default: array, the value of an input that the caller leaves out.
        """
        self._inputs.append(_value_info(name, dtype, shape))
        if default is not None:
            value = np.asarray(default, dtype)
            self._constants[name] = numpy_helper.from_array(value, name)
        return name

    def output(self, tensor, name, dtype, shape):
        """Makes a tensor an output of the graph with that name."""
        self._nodes.append(helper.make_node("Identity", [tensor], [name], name=name))
        self._outputs.append(_value_info(name, dtype, shape))

    def constant(self, value):
        """A constant tensor; equal ones are stored once.

        Args:
            value: numpy array or scalar; a Python int becomes int64, a list of ints too.
        """
        value = np.ascontiguousarray(value).reshape(np.shape(value))
        digest = hashlib.sha256(value.tobytes())
        digest.update(f"{value.dtype}{value.shape}".encode())
        key = digest.hexdigest()
        if key not in self._constants:
            name = self._unique("constant")
            self._constants[key] = numpy_helper.from_array(value, name)
        return self._constants[key].name

    def node(self, kind, *inputs, outputs=1, **attributes):
        """Adds a node.

        Args:
            kind: name of an ONNX operator.
            *inputs: tensors, arrays or numbers, which become constants, or None for an
                optional input.
            outputs: int, number of outputs.
            **attributes: of the operator.

        Returns:
            The output, or a list if there are several.
        """
        inputs = [
            "" if x is None else x if isinstance(x, str) else self.constant(x)
            for x in inputs
        ]
        name = self._unique(kind)
        names = [name]
        if outputs > 1:
            names = [f"{name}:{number}" for number in range(outputs)]
        self._nodes.append(
            helper.make_node(kind, inputs, names, name=name, **attributes)
        )
        return name if outputs == 1 else names

    def cast(self, tensor, dtype):
        """A tensor in another dtype, by numpy's name for it."""
        return self.node("Cast", tensor, to=_onnx_dtype(dtype))

    def sizes(self, tensor, *axes):
        """The sizes of some axes, as int64 `[len(axes)]`."""
        return self.node("Gather", self.node("Shape", tensor), np.array(axes))

    def slice(self, tensor, start, end, axis, step=1):
        """`start:end:step` along one axis, each an int or an int64 `[1]` tensor."""
        start, end = (
            x if isinstance(x, str) else np.array([x], "int64") for x in (start, end)
        )
        return self.node(
            "Slice", tensor, start, end, np.array([axis]), np.array([step])
        )

    def concat(self, tensors, axis):
        """Joins tensors, or constants, along an axis."""
        return self.node("Concat", *tensors, axis=axis)

    def model(self, name, properties=None):
        """The `onnx.ModelProto` with `metadata_props` by `properties`, a dict of str.

        Raises:
            onnx.checker.ValidationError: if a node does not fit its operator.
        """
        ends = (self._inputs, self._outputs)
        constants = list(self._constants.values())
        graph = helper.make_graph(self._nodes, name, *ends, constants)
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="vfnet_tf",
        )
        helper.set_model_props(model, properties or {})
        onnx.checker.check_model(model)
        return model


def _value_info(name, dtype, shape):
    return helper.make_tensor_value_info(name, _onnx_dtype(dtype), shape)


def _onnx_dtype(name):
    return helper.np_dtype_to_tensor_dtype(np.dtype(name))
