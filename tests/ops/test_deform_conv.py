import numpy as np
import pytest
from keras import ops

from tests.contracts import (
    assert_close_to_max,
    evaluate,
    gradients,
    on_tensorflow,
    to_numpy,
)
from vfnet_tf.ops import deform_conv as module
from vfnet_tf.ops.deform_conv import deform_conv, sample_points, star_conv

CASES = (
    "deform_groups4",
    "groups2",
    "groups32",
    "groups32_s2",
    "integer_offsets",
    "k1",
    "s1_large_offsets",
    "s1_small",
    "s2",
    "s2_even",
    "star_like",
    "zero_offset",
)
VARIANTS = [(case, variant) for case in CASES for variant in ("v1", "v2")]
VARIANTS += [("s1_small", "v2bias"), ("groups2", "v2bias")]
PORTABLE = (
    ("s1_small", "v2bias"),
    ("s1_large_offsets", "v1"),
    ("s2_even", "v2"),
    ("deform_groups4", "v2"),
    ("groups2", "v2bias"),
)


def nhwc(array):
    return np.transpose(array, (0, 2, 3, 1))


def arguments_of(stored, case, variant):
    """Tensors by name, and the function of them that the case stands for."""
    _, stride, padding, groups, _ = stored[f"{case}/meta"]
    tensors = {
        "input": nhwc(stored[f"{case}/input"]),
        "offset": nhwc(stored[f"{case}/offset"]),
        "weight": np.transpose(stored[f"{case}/weight"], (2, 3, 1, 0)),
    }
    if variant != "v1":
        tensors["mask"] = nhwc(stored[f"{case}/mask"])
    if variant == "v2bias":
        tensors["bias"] = stored[f"{case}/bias"]

    def function(features, offsets, kernel, mask=None, bias=None):
        result = deform_conv(
            features,
            offsets,
            kernel,
            mask,
            strides=int(stride),
            padding=int(padding),
            groups=int(groups),
        )
        return result if bias is None else result + bias

    return tensors, function


@pytest.mark.parametrize(
    ("case", "variant"),
    [
        # JAX takes seconds to compile each; every branch of the code is in these.
        pytest.param(*pair, marks=pytest.mark.backend if pair in PORTABLE else ())
        for pair in VARIANTS
    ],
)
def test_outputs_are_those_of_the_official_operator(golden, case, variant):
    stored = golden("deform_conv")
    tensors, function = arguments_of(stored, case, variant)
    output = evaluate(function, *tensors.values())
    assert_close_to_max(output, nhwc(stored[f"{case}/{variant}/output"]), 1e-5)


@pytest.mark.parametrize(("case", "variant"), VARIANTS)
def test_gradients_are_those_of_the_official_operator(golden, case, variant):
    stored = golden("deform_conv")
    tensors, function = arguments_of(stored, case, variant)
    found = gradients(
        function, list(tensors.values()), nhwc(stored[f"{case}/grad_output"])
    )
    for name, gradient in zip(tensors, found, strict=True):
        expected = stored[f"{case}/{variant}/grad_{name}"]
        if name == "weight":
            expected = np.transpose(expected, (2, 3, 1, 0))
        elif name != "bias":
            expected = nhwc(expected)
        assert_close_to_max(gradient, expected, 2e-5)


@pytest.mark.backend
def test_samples_by_hand_inside_between_and_beyond_the_border():
    features = np.array([[1.0, 2.0], [3.0, 4.0]], "float32").reshape(1, 2, 2, 1)
    y = np.array([[0.0, 0.5, -0.5, -1.0, 1.5, 2.0]], "float32")
    x = np.array([[1.0, 0.5, 0.0, 0.0, 1.75, 0.0]], "float32")
    # Half a cell beyond the border half of the value is left, a quarter at both.
    expected = [2.0, 2.5, 0.5, 0.0, 4.0 * 0.5 * 0.25, 0.0]
    found = evaluate(sample_points, features, y, x)[0, :, 0]
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.backend
def test_without_offsets_it_is_a_plain_convolution():
    rng = np.random.default_rng(1)
    features = rng.normal(size=(1, 5, 6, 4)).astype("float32")
    kernel = rng.normal(size=(3, 3, 4, 2)).astype("float32")
    offsets = np.zeros((1, 5, 6, 18), "float32")
    expected = to_numpy(ops.conv(features, kernel, padding="same"))
    found = evaluate(deform_conv, features, offsets, kernel)
    assert_close_to_max(found, expected, 1e-5)


@pytest.mark.backend
def test_dilation_spreads_the_taps():
    rng = np.random.default_rng(2)
    features = rng.normal(size=(1, 7, 7, 2)).astype("float32")
    kernel = rng.normal(size=(3, 3, 2, 3)).astype("float32")
    offsets = np.zeros((1, 7, 7, 18), "float32")
    expected = to_numpy(ops.conv(features, kernel, padding="same", dilation_rate=2))

    def dilated(*tensors):
        return deform_conv(*tensors, padding=2, dilation=2)

    found = evaluate(dilated, features, offsets, kernel)
    assert_close_to_max(found, expected, 1e-5)


def star_offsets(distances):
    """Offsets `[B, H, W, 18]` of the star's nine points: docs/parity.md, S4."""
    left, top, right, bottom = ops.moveaxis(ops.convert_to_tensor(distances), -1, 0)
    zero = ops.zeros_like(left)
    offsets = []
    for row, y in zip((-1, 0, 1), (-top, zero, bottom), strict=True):
        for column, x in zip((-1, 0, 1), (-left, zero, right), strict=True):
            offsets += [y - row, x - column]
    return ops.stack(offsets, axis=-1)


def general_star(features, distances, kernel):
    return deform_conv(features, star_offsets(distances), kernel)


def star_case(seed=0, height=6, width=7, channels=4, filters=3):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(2, height, width, channels)).astype("float32")
    distances = rng.uniform(0, 5, (2, height, width, 4)).astype("float32")
    kernel = rng.normal(size=(3, 3, channels, filters)).astype("float32")
    return features, distances, kernel


@pytest.mark.backend
@pytest.mark.parametrize("size", [(6, 7), (2, 3), (1, 1)])
def test_the_star_is_the_general_operator_with_the_stars_offsets(size):
    features, distances, kernel = star_case(3, *size)
    general = evaluate(general_star, features, distances, kernel)
    star = evaluate(star_conv, features, distances, kernel)
    assert_close_to_max(star, general, 1e-5)


def test_the_stars_gradients_are_those_of_the_general_operator():
    upstream = np.random.default_rng(5).normal(size=(2, 6, 7, 3))
    inputs = list(star_case(4))
    for found, expected in zip(
        gradients(star_conv, inputs, upstream),
        gradients(general_star, inputs, upstream),
        strict=True,
    ):
        assert_close_to_max(found, expected, 1e-4)


@pytest.mark.backend
def test_a_side_at_a_whole_cell_still_has_a_gradient():
    # All points on the cell itself: the right-hand cell decides about the slope.
    features = np.arange(9, dtype="float32").reshape(1, 3, 3, 1)
    distances = np.zeros((1, 3, 3, 4), "float32")
    kernel = np.ones((3, 3, 1, 1), "float32")
    upstream = np.zeros((1, 3, 3, 1))
    upstream[0, 1, 1] = 1.0  # one cell to the right is +1, one down is +3, thrice each
    gradient = gradients(star_conv, [features, distances, kernel], upstream)[1]
    np.testing.assert_allclose(gradient[0, 1, 1], [-3, -9, 3, 9], atol=1e-5)


@pytest.mark.parametrize(
    "value",
    [pytest.param(np.nan, marks=pytest.mark.backend), np.inf, -np.inf, 3e38],
)
def test_coordinates_that_are_no_numbers_sample_nothing(value):
    features, distances, kernel = star_case(6)
    distances[:, 2, 3] = value
    result = evaluate(star_conv, features, distances, kernel)
    assert np.all(np.isfinite(result))
    centre = features[:, 2, 3] @ kernel[1, 1]
    if not np.isnan(value):  # all but the centre lie far outside
        np.testing.assert_allclose(result[:, 2, 3], centre, atol=1e-4)
    result = evaluate(general_star, features, distances, kernel)
    assert np.all(np.isfinite(result))


def test_gradients_stay_finite_beside_coordinates_that_are_no_numbers():
    features, distances, kernel = star_case(7)
    distances[0, 1, 1] = np.nan
    distances[1, 2, 2] = np.inf
    features_gradient, _, kernel_gradient = gradients(
        star_conv, [features, distances, kernel]
    )
    assert np.all(np.isfinite(features_gradient))
    assert np.all(np.isfinite(kernel_gradient))


def test_the_fused_sampler_and_the_portable_one_agree(monkeypatch):
    features, distances, kernel = star_case(8)
    inputs = [features, distances, kernel]
    upstream = np.random.default_rng(9).normal(size=(2, 6, 7, 3))
    fused = evaluate(star_conv, *inputs)
    fused_gradients = gradients(star_conv, inputs, upstream)
    monkeypatch.setattr(module, "_fused_sampling_is_available", lambda: False)
    portable = evaluate(star_conv, *inputs)
    assert_close_to_max(fused, portable, 1e-5)
    for found, expected in zip(
        fused_gradients, gradients(star_conv, inputs, upstream), strict=True
    ):
        assert_close_to_max(found, expected, 1e-4)


def test_repeated_gradients_have_the_same_bits():
    features, distances, kernel = star_case(10, 24, 32, 16, 16)
    inputs = [features, distances, kernel]
    first = gradients(star_conv, inputs)
    for _ in range(4):
        for found, expected in zip(gradients(star_conv, inputs), first, strict=True):
            np.testing.assert_array_equal(found, expected)


@on_tensorflow
def test_xla_compiles_it_to_the_same_values_and_gradients():
    import tensorflow as tf

    features, distances, kernel = map(tf.constant, star_case(11))

    def step(features, distances, kernel):
        with tf.GradientTape() as tape:
            tape.watch([features, distances, kernel])
            result = star_conv(features, distances, kernel)
            total = tf.reduce_sum(result**2)
        return result, *tape.gradient(total, [features, distances, kernel])

    compiled = tf.function(step, jit_compile=True)(features, distances, kernel)
    for found, expected in zip(
        compiled, step(features, distances, kernel), strict=True
    ):
        assert_close_to_max(to_numpy(found), to_numpy(expected), 1e-5)


@on_tensorflow
def test_sizes_may_be_unknown_in_a_graph():
    import tensorflow as tf

    features, distances, kernel = star_case(12)
    signature = [
        tf.TensorSpec((None, None, None, 4)),
        tf.TensorSpec((None, None, None, 4)),
        tf.TensorSpec((3, 3, 4, 3)),
    ]
    traced = tf.function(star_conv, input_signature=signature)
    assert_close_to_max(
        to_numpy(traced(features, distances, kernel)),
        to_numpy(star_conv(features, distances, tf.constant(kernel))),
        1e-6,
    )
