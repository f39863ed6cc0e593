"""Runs a detector's methods in each backend's fastest way, and renews stale traces."""

import keras
import numpy as np

from vfnet_tf.ops.kernels import tensorflow_kernels
from vfnet_tf.processor import check_weights_may_change, weights_are_frozen

_PLAIN = (bool, int, float, complex, str, bytes, type(None))

#: Attributes that do not change what a built layer computes.
_BOOKKEEPING = frozenset(
    {
        "autocast",
        "bias_initializer",
        "build",
        "built",
        "call_signature_parameters",
        "check_inputs",
        "compiled",
        "history",
        "kernel_initializer",
        "offset_initializer",
        "optimizer",
        "predict_function",
        "quantize",
        "stop_evaluating",
        "stop_predicting",
        "stop_training",
        "supports_jit",
        "test_function",
        "train_function",
    }
)


#: Bytes of a row of `_checksum`.
_ROW_BYTES = 8192


class Traces:
    """Functions that were traced from a model, until the model is changed.

    A trace contains everything that is no argument: thresholds, attributes of layers,
    losses, coders and assigners, dtype policies, the layers and variables themselves. It
    does not contain the values of variables, but where `weights_are_frozen`.

    Args:
        model: a Keras model.
    """

    def __init__(self, model):
        self._model = model
        self._functions = {}
        self._states = {}

    def is_stale(self, name):
        """Whether the model was changed since the last call for `name`; True at first."""
        state = state_of(self._model)
        is_stale = name not in self._states or not _is_same(self._states[name], state)
        self._states[name] = state
        return is_stale

    def settle(self, name):
        """Ignores changes made by the trace itself, such as a counter of calls."""
        self.is_stale(name)

    def functions(self):
        """The dict of functions that were traced from the model in its present state."""
        if self.is_stale("functions"):
            self._functions.clear()
        return self._functions


def state_of(model):
    """Everything that a trace of a model contains, a list for `_is_same`.

    Arrays, variables and functions are compared by identity: a constant that is changed
    in place is not noticed. Attributes whose names begin with `_` are left out.
    """
    state, seen = [tensorflow_kernels()], set()
    for layer in model._flatten_layers():
        state += [layer, layer.dtype_policy, layer.trainable]
        state += layer._trainable_variables
        state += layer._non_trainable_variables
        _collect(vars(layer), state, seen)
    if tensorflow_kernels() and weights_are_frozen():
        state += map(_checksum, model.variables)
    return state


def _checksum(variable):
    """The bytes of a variable in a few words, at the speed of the memory."""
    values = np.asarray(variable.value.read_value())
    words = values.reshape(-1).view(np.uint8)
    rows = words.size // _ROW_BYTES
    columns = words[: rows * _ROW_BYTES].view(np.uint64).reshape(rows, _ROW_BYTES // 8)
    # Sums by column: channels that change their places are seen too.
    return columns.sum(axis=0).tobytes() + words[rows * _ROW_BYTES :].tobytes()


def _collect(value, state, seen):
    """Adds a value and its parts to a state."""
    if isinstance(value, dict):
        for name, item in value.items():
            if name in _BOOKKEEPING or (isinstance(name, str) and name[:1] == "_"):
                continue
            state.append(name)
            if isinstance(item, _PLAIN):
                state.append(item)
            else:
                _collect(item, state, seen)
    elif isinstance(value, list | tuple):
        state.append(len(value))
        for item in value:
            _collect(item, state, seen)
    else:
        state.append(value)
        # Losses, coders and assigners; `state_of` has the layers.
        is_part = hasattr(value, "get_config") and not isinstance(
            value, keras.layers.Layer | keras.metrics.Metric | type
        )
        if is_part and id(value) not in seen and hasattr(value, "__dict__"):
            seen.add(id(value))
            _collect(vars(value), state, seen)


def _is_same(first, second):
    if len(first) != len(second):
        return False
    for a, b in zip(first, second, strict=True):
        if a is b:
            continue
        # `==` of arrays and variables gives no single bool.
        if type(a) is not type(b) or not isinstance(a, (*_PLAIN, keras.DTypePolicy)):
            return False
        if a != b:
            return False
    return True


def run(traces, method, *arguments):
    """`method(*arguments)` in the backend's fastest way.

    Args:
        traces: `Traces` of the model that the method reads.
        method: a bound method of tensors to tensors.
        *arguments: tensors.
    """
    backend = keras.backend.backend()
    if backend == "tensorflow":
        return in_graph(traces, method, *arguments)
    if backend == "jax":
        return _compiled(traces, method, *arguments)
    return method(*arguments)


def in_graph(traces, method, *arguments):
    """`method(*arguments)` in one graph of TensorFlow for all sizes.

    It runs as fast as a graph for each size, each of which would have to be traced.
    Within a graph, and on other backends, it is a plain call.
    """
    if keras.backend.backend() != "tensorflow":
        return method(*arguments)
    import tensorflow as tf

    if not tf.executing_eagerly():
        return method(*arguments)
    functions = traces.functions()
    if method not in functions:
        signature = [tf.TensorSpec(_open_shape(x), x.dtype) for x in arguments]
        functions[method] = tf.function(method, signature, autograph=False)
        result = functions[method](*arguments)
        traces.settle("functions")
        return result
    return functions[method](*arguments)


def _open_shape(tensor):
    """A shape with None for batches, heights, widths and numbers of boxes."""
    shape = list(tensor.shape)
    # The last axis is fixed but in labels [B, M], the only integers.
    is_fixed = len(shape) > 1 and not (len(shape) == 2 and tensor.dtype.is_integer)
    return [*[None] * (len(shape) - 1), shape[-1] if is_fixed else None]


def _compiled(traces, method, *arguments):
    """`method(*arguments)` compiled by JAX for each size; op by op takes minutes.

    Images that are sharded over devices are computed where they lie, and so are their
    results; others on one device, even if the weights are sharded.
    """
    import jax

    if any(isinstance(argument, jax.core.Tracer) for argument in arguments):
        return method(*arguments)
    model = traces._model
    functions = traces.functions()
    is_spread = not arguments[0].sharding.is_fully_replicated
    key = (method, is_spread)
    if key not in functions:

        def call(values, arguments):
            mapping = zip(model.variables, values, strict=True)
            with keras.StatelessScope(state_mapping=mapping):
                return method(*arguments)

        if is_spread:
            # Without `shard_map`, XLA would gather the arrays of NMS on every device.
            sharding = arguments[0].sharding
            rows = jax.sharding.PartitionSpec(*sharding.spec[:1])
            call = jax.shard_map(
                call,
                mesh=sharding.mesh,
                in_specs=(jax.sharding.PartitionSpec(), rows),
                out_specs=rows,
                check_vma=False,
            )
        functions[key] = jax.jit(call)
    values = [variable.value for variable in model.variables]
    if not is_spread:
        values = [value.addressable_data(0) for value in values]
    result = functions[key](values, arguments)
    traces.settle("functions")  # JAX traces for each size
    return result


def check_eager_call():
    """Refuses layers op by op where kernels of one shape would be taken for one another.

    Raises:
        ValueError: on TensorFlow outside of a graph, if `weights_are_frozen`.
    """
    if not tensorflow_kernels() or not weights_are_frozen():
        return
    import tensorflow as tf

    if tf.executing_eagerly():
        check_weights_may_change("A detector that is called outside of a `tf.function`")


def is_eager(values):
    """Whether all values are known, none is part of a graph that is being traced."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.executing_eagerly() and not any(
            map(keras.utils.is_keras_tensor, values)
        )
    if backend == "jax":
        import jax

        # Each of several processes can read its own shards only.
        return not any(
            isinstance(value, jax.core.Tracer)
            or not getattr(value, "is_fully_addressable", True)
            for value in values
        )
    return True
