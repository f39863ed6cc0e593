import keras
import numpy as np
import pytest

from tests.contracts import on_tensorflow
from vfnet_tf.ops.shapes import sizes_of


@pytest.mark.backend
def test_known_sizes_are_ints():
    found = sizes_of(keras.ops.ones((2, 3, 4)))
    assert found == (2, 3, 4) and all(type(size) is int for size in found)
    assert sizes_of(np.ones((5, 6))) == (5, 6)
    assert sizes_of(keras.KerasTensor((None, 7))) == (None, 7)


@on_tensorflow
def test_open_sizes_are_scalars_of_the_graph_and_known_ones_stay():
    import tensorflow as tf

    known = []

    @tf.function(input_signature=[tf.TensorSpec((None, 3, None))], autograph=False)
    def sizes(tensor):
        found = sizes_of(tensor)
        known.append(found[1])
        return found

    found = sizes(tf.ones((2, 3, 4)))
    assert [int(size) for size in found] == [2, 3, 4]
    assert known == [3] and found[0].dtype == tf.int32
