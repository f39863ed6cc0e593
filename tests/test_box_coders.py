import keras
import numpy as np
import pytest

from tests.contracts import assert_close_to_max, check_config, evaluate, gradients
from vfnet_tf.box_coders import DeltaCoder, DistanceCoder, centers_and_sizes

pytestmark = pytest.mark.backend
PRIORS = {
    "points": np.array([[12, 20], [32, 48]], "float32"),
    "strides": np.array([8, 16], "float32"),
    "anchors": np.array([[0, 0, 10, 20], [20, 40, 40, 60]], "float32"),
}


def priors():
    return {name: keras.ops.convert_to_tensor(x) for name, x in PRIORS.items()}


def decode(coder, predictions):
    return evaluate(lambda x: coder.decode(x, priors()), as_rows(predictions))


def encode(coder, boxes):
    return evaluate(lambda x: coder.encode(x, priors()), as_rows(boxes))


def as_rows(rows):
    """`[1, P, 4]`; one row stands for both priors."""
    rows = np.asarray(rows, "float32")
    return np.broadcast_to(rows, (1, 2, 4)).copy()


def test_distances_are_in_strides_and_not_negative():
    found = decode(DistanceCoder(), [[1, 0.5, 2, -3], [0, 1, -1, 2]])
    np.testing.assert_array_equal(found[0], [[4, 16, 28, 20], [32, 32, 32, 80]])
    found = decode(DistanceCoder(unit=0.5), [1, 0.5, 2, -3])
    np.testing.assert_array_equal(found[0, 0], [8, 18, 20, 20])


def test_distances_may_be_exponents():
    found = decode(DistanceCoder("exp", unit=2.0), np.log([1.0, 0.5, 2.0, 0.25]))
    # 16 and 32 pixels to the unit.
    expected = [[-4, 12, 44, 24], [0, 32, 96, 56]]
    np.testing.assert_allclose(found[0], expected, rtol=1e-5, atol=1e-4)


def test_encoded_boxes_are_the_predictions_that_decode_to_them():
    boxes = [[4, 16, 28, 20], [30, 32, 33, 80]]
    found = encode(DistanceCoder(), boxes)
    np.testing.assert_array_equal(found[0], [[1, 0.5, 2, 0], [0.125, 1, 0.0625, 2]])
    # Logarithms of distances in units of two strides, clipped to 1/16 and 1.
    coder = DistanceCoder("exp", unit=2.0, limits=(1 / 16, 1.0))
    found = np.exp(encode(coder, boxes)[0])
    expected = [[0.5, 0.25, 1, 1 / 16], [1 / 16, 0.5, 1 / 16, 1]]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    # A box without the point has finite numbers, too.
    assert np.all(np.isfinite(encode(coder, [0, 0, 0, 0])))


def test_deltas_by_hand():
    # Half of an anchor of 10 x 20 to the right, a tenth up, twice as wide, as high.
    found = decode(DeltaCoder(), [0.5, -0.1, np.log(2.0), 0.0])
    expected = [[0, -2, 20, 18], [20, 38, 60, 58]]
    np.testing.assert_allclose(found[0], expected, rtol=1e-5, atol=1e-5)
    found = encode(DeltaCoder(), expected)
    assert_close_to_max(found[0], [[0.5, -0.1, np.log(2.0), 0.0]] * 2, 1e-6)


def test_deltas_are_divided_by_their_deviations():
    coder = DeltaCoder((0.1, 0.2, 0.5, 2.0))
    found = decode(coder, [5, -0.5, 2 * np.log(2.0), 0.0])
    np.testing.assert_allclose(
        found[0], [[0, -2, 20, 18], [20, 38, 60, 58]], rtol=1e-5, atol=1e-5
    )
    found = encode(coder, [[0, 0, 10, 40], [20, 40, 40, 80]])
    expected = [[0, 2.5, 0, np.log(2.0) / 2]] * 2
    assert_close_to_max(found[0], expected, 1e-6)


def test_anchors_may_be_squares_about_the_points():
    coder = DeltaCoder(anchor_scale=4)
    found = decode(coder, [0, 0, 0, 0])
    np.testing.assert_array_equal(found[0], [[-4, 4, 28, 36], [0, 16, 64, 80]])
    np.testing.assert_array_equal(encode(coder, found[0]), np.zeros((1, 2, 4)))


def test_sides_change_by_a_factor_of_62_and_a_half_at_most():
    found = decode(DeltaCoder(), [[0, 0, 9, -9], [0, 0, 1e4, -1e4]])
    widths, heights = found[0, :, 2] - found[0, :, 0], found[0, :, 3] - found[0, :, 1]
    np.testing.assert_allclose(widths, [625, 1250], rtol=1e-5)
    np.testing.assert_allclose(heights, [20 / 62.5, 20 / 62.5], rtol=1e-4)
    # Just within.
    found = decode(DeltaCoder(), [0, 0, 4.1, 0])
    np.testing.assert_allclose(found[0, 0, 2] - found[0, 0, 0], 10 * np.exp(4.1), 1e-5)


@pytest.mark.parametrize("coder", [DeltaCoder(), DistanceCoder()])
def test_extreme_predictions_have_finite_boxes_and_gradients(coder):
    values = np.array([[1e4, -1e4, 1e4, -1e4]], "float32")
    assert np.all(np.isfinite(decode(coder, values)))
    (gradient,) = gradients(lambda x: coder.decode(x, priors()), [as_rows(values)])
    assert np.all(np.isfinite(gradient))


def test_centres_and_sizes_by_hand():
    boxes = np.array([[[0, 2, 4, 10]]], "float32")
    centers, sizes = evaluate(centers_and_sizes, boxes)
    np.testing.assert_array_equal(centers, [[[2, 6]]])
    np.testing.assert_array_equal(sizes, [[[4, 8]]])


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="activation='softplus'"):
        DistanceCoder("softplus")
    for stds in ((1, 1, 1), (1, 1, 1, 0)):
        with pytest.raises(ValueError, match=rf"stds=\({stds[0]}, .*{stds[-1]}\)"):
            DeltaCoder(stds)


def test_their_configs_are_complete():
    settings = {"activation": "exp", "unit": 2.0, "limits": (0.1, 8.0)}
    check_config(DistanceCoder, settings)
    check_config(DeltaCoder, {"stds": (0.1, 0.1, 0.2, 0.2), "anchor_scale": 8})
