"""How a backend runs what a detector does, and whether a trace of it still holds."""

import keras

from vfnet_tf.ops.kernels import tensorflow_kernels

_PLAIN = (bool, int, float, complex, str, bytes, type(None))

#: Attributes that decide nothing of what a layer computes once it is built.
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


class Traces:
    """Functions that were traced from a model, until the model is changed.

    A trace has in it whatever it did not get as an argument: thresholds, attributes of
    layers and of their losses, coders and assigners, dtype policies, which layers and
    variables there are. The values of variables are not among them.

    Args:
        model: a Keras model.
    """

    def __init__(self, model):
        self._model = model
        self._functions = {}
        self._states = {}

    def is_stale(self, name):
        """Whether the model was changed since this was asked for `name`, or never was."""
        state = state_of(self._model)
        is_stale = name not in self._states or not _is_same(self._states[name], state)
        self._states[name] = state
        return is_stale

    def settle(self, name):
        """Takes what a trace itself changed, as a counter of calls, for no change."""
        self.is_stale(name)

    def functions(self):
        """The dict, by any key, of what was traced from the model as it is now."""
        if self.is_stale("functions"):
            self._functions.clear()
        return self._functions


def state_of(model):
    """What a trace of a model holds, a list for `_is_same`.

    Arrays, variables and functions count by identity: to change a constant give the
    layer another one. Attributes whose names begin with `_` do not count.
    """
    state, seen = [tensorflow_kernels()], set()
    for layer in model._flatten_layers():
        state += [layer, layer.dtype_policy, layer.trainable]
        state += layer._trainable_variables
        state += layer._non_trainable_variables
        _collect(vars(layer), state, seen)
    return state


def _collect(value, state, seen):
    """Adds what a value consists of to a state."""
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
        # Losses, coders, assigners; layers and variables have had their turn.
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
        # Arrays and variables have no single answer to `==`; policies have.
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

    As fast as a graph for each size, which would be traced each time. Within a graph
    already, and on other backends, it is the method itself.
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
    """A shape without what varies: batches, heights, widths, and numbers of boxes."""
    shape = list(tensor.shape)
    # Of whole numbers there are labels [B, M]; channels, sides and classes are fixed.
    is_fixed = len(shape) > 1 and not (len(shape) == 2 and tensor.dtype.is_integer)
    return [*[None] * (len(shape) - 1), shape[-1] if is_fixed else None]


def _compiled(traces, method, *arguments):
    """`method(*arguments)` compiled by JAX for each size; op by op takes minutes.

    Images that are spread over several devices are detected on where they lie, and
    so is what is found; others on one device, whatever the weights are spread over.
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
            # No device sends or waits for anything. Left to itself XLA gathers what
            # NMS sorts and picks from.
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


def is_eager(values):
    """Whether all values are known, and not those of a graph that is being traced."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.executing_eagerly() and not any(
            map(keras.utils.is_keras_tensor, values)
        )
    if backend == "jax":
        import jax

        # Of several processes each can read its own share only.
        return not any(
            isinstance(value, jax.core.Tracer)
            or not getattr(value, "is_fully_addressable", True)
            for value in values
        )
    return True
