"""Checks for several layers, losses, assigners or detectors."""

import inspect
import json
import time
import zlib

import keras
import numpy as np
import pytest

HALF_POLICIES = ("float16", "bfloat16", "mixed_float16", "mixed_bfloat16")
on_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="graphs, tapes or tf.data"
)


def with_policy(policy, build):
    """The result of `build` under a global dtype policy, which is then restored."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        return build()
    finally:
        keras.config.set_dtype_policy(before)


def to_numpy(tree):
    """Tensors, alone or in dicts and sequences, as numpy arrays."""
    return keras.tree.map_structure(
        lambda x: np.array(keras.ops.convert_to_numpy(x)), tree
    )


def tensors(tree):
    """Arrays, alone or in dicts and sequences, as tensors of the backend."""
    return keras.tree.map_structure(keras.ops.convert_to_tensor, tree)


def evaluate(function, *arrays):
    """`function` of tensors, as numpy; on JAX compiled whole, not op by op."""
    tensors = [keras.ops.convert_to_tensor(array) for array in arrays]
    if keras.backend.backend() == "jax":
        import jax

        function = jax.jit(function)
    return to_numpy(function(*tensors))


def gradients(function, arrays, upstream=None):
    """Derivatives of `sum(function(*arrays) * upstream)` on the backend in force.

    Args:
        function: takes tensors, returns one tensor.
        arrays: list of float arrays; one gradient is returned for each.
        upstream: array of the result's shape, or None for ones.
    """
    arrays = [np.asarray(array, "float32") for array in arrays]

    def total(*tensors):
        result = function(*tensors)
        if upstream is not None:
            factor = keras.ops.convert_to_tensor(upstream, dtype="float32")
            result = result * keras.ops.cast(factor, result.dtype)
        return keras.ops.sum(keras.ops.cast(result, "float32"))

    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        tensors = [tf.constant(array) for array in arrays]
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            value = total(*tensors)
        return to_numpy(tape.gradient(value, tensors, unconnected_gradients="zero"))
    if backend == "jax":
        import jax

        tensors = [jax.numpy.asarray(array) for array in arrays]
        derivative = jax.jit(jax.grad(total, tuple(range(len(tensors)))))
        return to_numpy(list(derivative(*tensors)))
    import torch

    tensors = [torch.tensor(array, requires_grad=True) for array in arrays]
    total(*tensors).backward()
    return to_numpy([x.grad if x.grad is not None else 0 * x.data for x in tensors])


def shortest_times(functions, *arguments, runs=8):
    """Seconds of each function's shortest run; they take turns to share other load."""
    times = [[] for _ in functions]
    for function in functions:
        function(*arguments)  # traces
    for _ in range(runs):
        for function, own in zip(functions, times, strict=True):
            start = time.perf_counter()
            to_numpy(function(*arguments))
            own.append(time.perf_counter() - start)
    return [min(own) for own in times]


def assert_close_to_max(actual, expected, tolerance):
    """`|actual - expected| <= tolerance * max|expected|`, shapes equal."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    limit = tolerance * np.max(np.abs(expected), initial=1e-30)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=limit)


def assert_same_bits(actual, expected):
    """Equal structures of equal arrays."""
    assert list(_paths(actual)) == list(_paths(expected))
    for path, value in _paths(expected).items():
        np.testing.assert_array_equal(_paths(actual)[path], value, err_msg=path)


def _paths(tree, prefix=""):
    """A nested dict or sequence as a flat dict of paths and numpy arrays."""
    if isinstance(tree, dict):
        items = tree.items()
    elif isinstance(tree, list | tuple):
        items = enumerate(tree)
    else:
        return {prefix: to_numpy(tree)}
    flat = {}
    for key, value in items:
        flat.update(_paths(value, f"{prefix}/{key}"))
    return flat


def assert_recorded_map(found, stored, key):
    """Compares a map `[B, H, W, C]` with the record of a golden file under a key."""
    assert found.shape == tuple(stored[f"{key}/shape"])
    rows, columns, channels = stored[f"{key}/stride"]
    values = stored.get(f"{key}/values", stored.get(f"{key}/slice"))
    # Rounding of float32 can reach 3e-6 of the largest value. The golden file has a part
    # of the map, and statistics of the whole.
    assert_close_to_max(found[:, ::rows, ::columns, ::channels], values, 2e-5)
    wide = found.astype("float64")
    statistics = [wide.mean(), wide.std(), wide.min(), wide.max(), np.abs(wide).mean()]
    assert_close_to_max(statistics, stored[f"{key}/stats"], 2e-5)


def check_config(cls, *argument_sets, base=None):
    """Checks that round trips of a config keep every argument.

    Args:
        cls: class of a layer, a loss or an assigner.
        *argument_sets: dicts of all arguments that `cls.__init__` names; each argument
            is off its default in one of them at least.
        base: arguments of the base class, such as `name` and `dtype`.
    """
    parameters = inspect.signature(cls.__init__).parameters.values()
    named = {
        p.name: p.default
        for p in parameters
        if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    }
    del named["self"]
    for name, default in named.items():
        values = [arguments[name] for arguments in argument_sets]
        assert not all(_same(value, default) for value in values), f"{name} is default"
    for arguments in argument_sets:
        assert set(arguments) == set(named)
        _check_round_trips(cls, arguments, base or {})


def check_detector_config(build, settings):
    """Checks that a detector's config keeps every argument.

    Args:
        build: from settings to a detector.
        settings: dict of all arguments but `backbone`, `neck` and `head`, none at its
            default.
    """
    from vfnet_tf.detectors import DenseDetector

    detector = build(**settings)
    cls = type(detector)
    defaults = {}
    for owner in (DenseDetector, cls):
        parameters = inspect.signature(owner.__init__).parameters.values()
        defaults.update({p.name: p.default for p in parameters})
    for name in ("self", "kwargs", "backbone", "neck", "head"):
        del defaults[name]
    assert set(settings) == {*defaults, "name"}
    for name, default in defaults.items():
        assert not _same(settings[name], default), f"{name} is default"
    text = json.dumps(keras.saving.serialize_keras_object(detector))
    copy = keras.saving.deserialize_keras_object(json.loads(text))
    assert type(copy) is cls
    for name, value in settings.items():
        assert _same(getattr(detector, name), value), f"{name} is not kept as given"
        assert _same(getattr(copy, name), value), f"{name} is lost"
    assert copy.head.get_config() == detector.head.get_config()
    assert copy.neck.get_config() == detector.neck.get_config()


def _check_round_trips(cls, arguments, base):
    original = cls(**arguments, **base)
    text = json.dumps(keras.saving.serialize_keras_object(original))
    for copy in (
        cls.from_config(original.get_config()),
        keras.saving.deserialize_keras_object(json.loads(text)),
    ):
        assert type(copy) is cls
        for name, value in {**arguments, **base}.items():
            if name == "dtype":
                assert copy.dtype_policy.name == value, "dtype is lost"
                continue
            assert _same(getattr(original, name), value), f"{name} is not kept as given"
            assert _same(getattr(copy, name), value), f"{name} is lost"


def _same(first, second):
    return _plain(first) == _plain(second)


def _plain(value):
    if hasattr(value, "get_config"):
        return type(value).__name__, json.dumps(value.get_config(), default=str)
    if isinstance(value, str) and value in ("zeros", "ones", "glorot_uniform"):
        return _plain(keras.initializers.get(value))
    if callable(value):
        return getattr(value, "__name__", value)
    if isinstance(value, list | tuple):
        return tuple(_plain(item) for item in value)
    return value


def randomise(layer):
    """Gives every variable random values, the same in every run; variances > 0."""
    for variable in layer.variables:
        values = _noise(variable, 0.3)
        variable.assign(np.abs(values) + 0.5 if "variance" in variable.name else values)
    return layer


def randomise_kernels(layer):
    """Gives every kernel random values; other variables keep their initial ones."""
    for variable in layer.variables:
        if "kernel" in variable.name:
            variable.assign(_noise(variable, 0.05))
    return layer


def _noise(variable, deviation):
    # The path without the layer's own name, which Keras counts up.
    path = variable.path.partition("/")[2]
    rng = np.random.default_rng(zlib.crc32(path.encode()))
    return rng.normal(0.0, deviation, variable.shape)


def check_half_precision(make, *inputs, tolerance, fill=randomise, output=None):
    """Checks dtypes and values of float16 and bfloat16, mixed or not.

    Args:
        make: from a dtype policy's name to a layer.
        *inputs: float32 arrays, or dicts of them, for its call.
        tolerance: difference to float32, relative to the largest value.
        fill: function that gives a built layer its values.
        output: dtype of the outputs, None for that of the computation.
    """
    expected = to_numpy(fill(_built(make("float32"), inputs))(*inputs))
    for policy in HALF_POLICIES:
        layer = fill(_built(make(policy), inputs))
        results = layer(*inputs)
        compute = policy.removeprefix("mixed_")
        for variable in layer.trainable_variables:
            stored = "float32" if policy.startswith("mixed") else compute
            assert variable.dtype in (stored, "float32")
        for result, value in zip(
            keras.tree.flatten(results), keras.tree.flatten(expected), strict=True
        ):
            assert keras.backend.standardize_dtype(result.dtype) == (output or compute)
            result = to_numpy(keras.ops.cast(result, "float32"))
            assert np.all(np.isfinite(result))
            assert_close_to_max(result, value, tolerance)


def _built(layer, inputs):
    layer(*inputs)
    return layer


def check_graph(layer, *inputs):
    """Checks the values in a graph with unknown batch, height and width."""
    import tensorflow as tf

    expected = layer(*inputs)
    specs = keras.tree.map_structure(
        lambda x: tf.TensorSpec((*[None] * (x.ndim - 1), x.shape[-1])), list(inputs)
    )
    results = tf.function(layer, input_signature=specs)(*inputs)
    for result, value in zip(
        keras.tree.flatten(results), keras.tree.flatten(expected), strict=True
    ):
        assert_close_to_max(to_numpy(result), to_numpy(value), 1e-5)


def check_save_load(layer, *inputs, directory, fill=randomise):
    """Checks that a `.keras` and a weights file give a model the same bits."""

    def symbol(array, name=None):
        return keras.Input((*[None] * (array.ndim - 2), array.shape[-1]), name=name)

    symbols = [
        {key: symbol(value, key) for key, value in one.items()}
        if isinstance(one, dict)
        else symbol(one)
        for one in inputs
    ]
    outputs = layer(*symbols)
    given, symbols = (x[0] if len(x) == 1 else list(x) for x in (inputs, symbols))
    model = fill(keras.Model(symbols, outputs))
    expected = to_numpy(model(given))
    model.save(directory / "model.keras")
    loaded = keras.saving.load_model(directory / "model.keras")
    assert_same_bits(loaded(given), expected)

    model.save_weights(directory / "model.weights.h5")
    for variable in loaded.variables:
        variable.assign(np.zeros(variable.shape))
    loaded.load_weights(directory / "model.weights.h5")
    assert_same_bits(loaded(given), expected)


def check_shape(layer, *inputs):
    """Checks `compute_output_shape` and symbolic calls against the outputs."""

    def shapes_of(tree):
        return keras.tree.map_structure(lambda x: tuple(x.shape), tree)

    result = layer(*inputs)
    symbols = keras.tree.map_structure(lambda x: keras.KerasTensor(x.shape), inputs)
    assert shapes_of(layer(*symbols)) == shapes_of(result)
    assert layer.compute_output_shape(*shapes_of(inputs)) == shapes_of(result)
    unknown = keras.tree.map_structure(
        lambda x: keras.KerasTensor((*[None] * (x.ndim - 1), x.shape[-1])), inputs
    )
    found = layer.compute_output_shape(*shapes_of(unknown))
    expected = keras.tree.map_structure(
        lambda x: keras.KerasTensor((*[None] * (len(x.shape) - 1), x.shape[-1])), result
    )
    assert found == shapes_of(expected)
