import numpy as np
import pytest

from tests import contracts
from vfnet_tf.layers import StarDeformableConv2D

FEATURES = np.random.default_rng(0).normal(size=(2, 5, 6, 4)).astype("float32")
DISTANCES = np.random.default_rng(1).uniform(0, 3, (2, 5, 6, 4)).astype("float32")


def filled(**settings):
    layer = StarDeformableConv2D(3, **settings)
    layer.build(FEATURES.shape, DISTANCES.shape)
    return contracts.randomise(layer)


@pytest.mark.backend
def test_the_nine_points_by_hand():
    # A map whose value tells its place: 10 y + x. Weights of one tap at a time.
    y, x = np.mgrid[:7, :9]
    features = (10.0 * y + x).astype("float32")[None, ..., None]
    distances = np.zeros((1, 7, 9, 4), "float32")
    distances[0, 3, 4] = (2.0, 1.5, 3.0, 2.5)  # left, top, right, bottom
    layer = StarDeformableConv2D(1)
    layer.build(features.shape)
    seen = np.zeros((3, 3))
    for tap in np.ndindex(3, 3):
        kernel = np.zeros((3, 3, 1, 1))
        kernel[tap] = 1.0
        layer.kernel.assign(kernel)
        seen[tap] = contracts.to_numpy(layer(features, distances))[0, 3, 4, 0]
    rows, columns = np.array([1.5, 3.0, 5.5]), np.array([2.0, 4.0, 7.0])
    np.testing.assert_allclose(seen, 10 * rows[:, None] + columns, rtol=1e-6)


@pytest.mark.backend
def test_points_beyond_the_map_count_as_zero():
    distances = np.full_like(DISTANCES, 100.0)
    layer = filled()
    kernel = contracts.to_numpy(layer.kernel)
    found = contracts.to_numpy(layer(FEATURES, distances))
    contracts.assert_close_to_max(found, FEATURES @ kernel[1, 1], 1e-5)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_distances_keep_float32_in_half_precision(policy):
    # 200.3 cells would be 200 in bfloat16, where the map is as steep as 1 a cell.
    features = np.arange(300, dtype="float32").reshape(1, 1, 300, 1) / 300
    distances = np.zeros((1, 1, 300, 4), "float32")
    distances[..., 2] = 200.3
    layers = [StarDeformableConv2D(1, dtype=name) for name in ("float32", policy)]
    for layer in layers:
        layer.build(features.shape)
        kernel = np.zeros((3, 3, 1, 1))
        kernel[1, 2] = 300.0
        layer.kernel.assign(kernel)
    exact, half = (contracts.to_numpy(layer(features, distances)) for layer in layers)
    assert exact[0, 0, 0, 0] == pytest.approx(200.3, abs=1e-3)
    np.testing.assert_allclose(
        half.astype("float32")[0, 0, :90], exact[0, 0, :90], 0.01
    )


def test_gradients_reach_features_and_distances_in_half_precision():
    for policy in contracts.HALF_POLICIES:
        layer = filled(dtype=policy)
        found = contracts.gradients(layer, [FEATURES, DISTANCES])
        assert all(np.all(np.isfinite(g)) and np.any(g != 0) for g in found)
