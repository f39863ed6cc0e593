import numpy as np
import pytest

from tests import contracts
from vfnet_tf.heads.conv_tower import ConvTower

INPUT = np.random.default_rng(0).normal(size=(2, 5, 6, 4)).astype("float32")


def filled(**settings):
    tower = ConvTower(2, 32, **settings)
    tower.build(INPUT.shape)
    return contracts.randomise(tower)


@pytest.mark.backend
def test_it_is_its_convolutions_one_after_the_other():
    tower = filled()
    expected = tower.convs[1](tower.convs[0](INPUT))
    found = contracts.to_numpy(tower(INPUT))
    np.testing.assert_array_equal(found, contracts.to_numpy(expected))
    assert np.all(found >= 0)
    names = [v.name for v in tower.convs[0].variables]
    assert names == ["kernel", "gamma", "beta"]


def test_no_convolutions_pass_the_input_on():
    tower = ConvTower(0, 32)
    np.testing.assert_array_equal(contracts.to_numpy(tower(INPUT)), INPUT)


def test_without_a_norm_the_convolutions_have_biases():
    tower = filled(norm=None)
    assert [v.name for v in tower.convs[1].variables] == ["kernel", "bias"]


def test_kernels_start_small():
    tower = ConvTower(1, 32)
    tower.build((None, None, None, 64))
    kernel = contracts.to_numpy(tower.convs[0].conv.kernel)
    assert kernel.std() == pytest.approx(0.01, rel=0.05)
    assert kernel.mean() == pytest.approx(0, abs=3e-4)
