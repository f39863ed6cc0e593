import keras
import numpy as np
import pytest

from tests import contracts
from vfnet_tf.layers import FoldedConv2D

INPUT = np.random.default_rng(0).normal(size=(2, 6, 7, 4)).astype("float32")


@pytest.mark.backend
def test_it_is_the_convolution_then_the_norm():
    layer = FoldedConv2D(6, 3, 2, "same", epsilon=0.01)
    layer.build(INPUT.shape)
    contracts.randomise(layer)
    plain = keras.layers.Conv2D(6, 3, 2, "same", use_bias=False)
    plain.build(INPUT.shape)
    plain.kernel.assign(layer.kernel)
    contracts.assert_close_to_max(
        contracts.to_numpy(layer(INPUT)),
        contracts.to_numpy(layer.norm(plain(INPUT))),
        1e-5,
    )


def test_it_has_no_bias_beside_that_of_the_norm():
    layer = FoldedConv2D(6, 3, use_bias=True)
    layer.build(INPUT.shape)
    names = [variable.name for variable in layer.trainable_variables]
    assert names == ["kernel", "gamma", "beta"]


def test_its_config_is_complete():
    arguments = {"filters": 6, "kernel_size": (3, 3), "strides": (2, 2), "epsilon": 0.1}
    layer = FoldedConv2D(**arguments, dtype="mixed_bfloat16", name="other")
    copy = FoldedConv2D.from_config(layer.get_config())
    for name, value in arguments.items():
        assert getattr(copy, name) == value
    assert copy.norm.epsilon == 0.1
    assert (copy.name, copy.dtype_policy.name) == ("other", "mixed_bfloat16")


def test_it_computes_in_half_precision():
    contracts.check_half_precision(
        lambda policy: FoldedConv2D(6, 3, padding="same", dtype=policy), INPUT
    )


def test_it_runs_in_a_graph_of_unknown_sizes():
    layer = FoldedConv2D(6, 3, padding="same")
    layer.build(INPUT.shape)
    contracts.check_graph(contracts.randomise(layer), INPUT)


def test_it_is_saved_and_loaded(tmp_path):
    layer = FoldedConv2D(6, 3, padding="same")
    contracts.check_save_load(layer, INPUT, directory=tmp_path)
