"""What every layer, loss and assigner owes, checked in one place."""

import inspect
import json
import zlib

import keras
import numpy as np
import pytest

HALF_POLICIES = ("float16", "bfloat16", "mixed_float16", "mixed_bfloat16")


def with_policy(policy, build):
    """What `build` makes under a global dtype policy, which stays what it was."""
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


def assert_close_to_max(actual, expected, tolerance):
    """`|actual - expected| <= tolerance * max|expected|`, shapes equal."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    limit = tolerance * np.max(np.abs(expected), initial=1e-30)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=limit)


def check_config(cls, *argument_sets, base=None):
    """Round trips of a config keep every argument, each off its default.

    Args:
        cls: class of a layer, a loss or an assigner.
        *argument_sets: dicts of all arguments that `cls.__init__` names; each argument
            is off its default in one of them at least.
        base: arguments of the base class, such as `name` and `dtype`.
    """
    parameters = inspect.signature(cls.__init__).parameters.values()
    named = {p.name: p.default for p in parameters if p.kind is not p.VAR_KEYWORD}
    del named["self"]
    for name, default in named.items():
        values = [arguments[name] for arguments in argument_sets]
        assert not all(_same(value, default) for value in values), f"{name} is default"
    for arguments in argument_sets:
        assert set(arguments) == set(named)
        _check_round_trips(cls, arguments, base or {})


def check_detector_config(build, settings):
    """A detector's config keeps every argument, each off its default.

    Args:
        build: from settings to a detector.
        settings: dict of all arguments but `backbone`, `neck` and `head`.
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
    """Gives every variable values of its own, the same in every run; variances > 0."""
    for variable in layer.variables:
        rng = np.random.default_rng(zlib.crc32(variable.name.encode()))
        values = rng.normal(0.0, 0.3, variable.shape)
        variable.assign(np.abs(values) + 0.5 if "variance" in variable.name else values)
    return layer


def check_half_precision(make, *inputs, tolerance=0.05):
    """float16 and bfloat16, mixed or not: dtypes, finite values, near to float32's.

    Args:
        make: from a dtype policy's name to a layer.
        *inputs: float32 arrays for its call.
        tolerance: of values, relative to the largest.
    """
    expected = to_numpy(randomise(_built(make("float32"), inputs))(*inputs))
    for policy in HALF_POLICIES:
        layer = randomise(_built(make(policy), inputs))
        result = layer(*inputs)
        compute = policy.removeprefix("mixed_")
        assert keras.backend.standardize_dtype(result.dtype) == compute
        for variable in layer.trainable_variables:
            stored = "float32" if policy.startswith("mixed") else compute
            assert variable.dtype in (stored, "float32")
        result = to_numpy(keras.ops.cast(result, "float32"))
        assert np.all(np.isfinite(result))
        assert_close_to_max(result, expected, tolerance)


def _built(layer, inputs):
    layer(*inputs)
    return layer


def check_graph(layer, *inputs):
    """The same values in a graph whose batch, height and width are unknown."""
    if keras.backend.backend() != "tensorflow":
        pytest.skip("graph mode is TensorFlow's")
    import tensorflow as tf

    expected = layer(*inputs)
    specs = [tf.TensorSpec((None, None, None, x.shape[-1]), x.dtype) for x in inputs]
    result = tf.function(layer, input_signature=specs)(*inputs)
    assert result.shape == expected.shape
    np.testing.assert_allclose(to_numpy(result), to_numpy(expected), atol=1e-5)


def check_save_load(layer, *inputs, directory):
    """A model of the layer gives the same bits from a `.keras` and a weights file."""
    symbols = [keras.Input((None, None, x.shape[-1])) for x in inputs]
    model = keras.Model(symbols, layer(*symbols))
    randomise(model)
    expected = to_numpy(model(list(inputs)))
    model.save(directory / "model.keras")
    loaded = keras.saving.load_model(directory / "model.keras")
    np.testing.assert_array_equal(to_numpy(loaded(list(inputs))), expected)

    model.save_weights(directory / "model.weights.h5")
    for variable in loaded.variables:
        variable.assign(np.zeros(variable.shape))
    loaded.load_weights(directory / "model.weights.h5")
    np.testing.assert_array_equal(to_numpy(loaded(list(inputs))), expected)


def check_shape(layer, *inputs):
    """`compute_output_shape` and symbolic calls agree with what comes out."""
    result = layer(*inputs)
    assert tuple(layer.compute_output_shape(*[x.shape for x in inputs])) == tuple(
        result.shape
    )
    unknown = [(None, None, None, x.shape[-1]) for x in inputs]
    shape = layer.compute_output_shape(*unknown)
    assert tuple(shape) == (None, None, None, result.shape[-1])
