import keras
import numpy as np
import pytest

from tests import contracts
from tests.conftest import build_small, build_two_levels
from vfnet_tf.ops.kernels import portable_kernels
from vfnet_tf.ops.shared_trace import shared_trace

if keras.backend.backend() != "tensorflow":
    pytest.skip("only TensorFlow has a graph", allow_module_level=True)

import tensorflow as tf

MAPS = [np.full((2, size, size + 2, 3), size, "float32") for size in (1, 4, 6)]


class Levels:
    """`scale * map + number` of each map; counts how often that was written down."""

    def __init__(self):
        self.calls = 0
        self.scale = tf.Variable(3.0)

    def one(self, features, scalars):
        self.calls += 1
        return {"out": features * scalars["scale"] + scalars["number"]}

    def __call__(self, maps):
        one = shared_trace(self.one, maps[0])
        return [
            one(features, {"scale": self.scale, "number": number})["out"]
            for number, features in enumerate(maps)
        ]

    def graph(self, specs):
        return tf.function(self, autograph=False).get_concrete_function(specs)


def specs_of(maps, sizes):
    return [tf.TensorSpec((2, *sizes(x), 3)) for x in maps]


def check(found):
    for number, (values, expected) in enumerate(zip(found, MAPS, strict=True)):
        np.testing.assert_array_equal(values, 3 * expected + number)


@pytest.mark.parametrize(
    "sizes", [lambda x: (None, None), lambda x: (None, x.shape[2])]
)
def test_a_graph_of_open_sizes_has_it_once(sizes):
    levels = Levels()
    graph = levels.graph(specs_of(MAPS, sizes))
    assert levels.calls == 1
    check(graph([tf.constant(x) for x in MAPS]))


@pytest.mark.parametrize("sizes", [lambda x: (None, None), lambda x: x.shape[1:3]])
def test_gradients_are_those_of_each_map(sizes):
    levels = Levels()

    def gradient(maps):
        with tf.GradientTape() as tape:
            total = sum(map(tf.reduce_sum, levels(maps)))
        return tape.gradient(total, levels.scale)

    graph = tf.function(gradient, autograph=False)
    graph = graph.get_concrete_function(specs_of(MAPS, sizes))
    assert graph([tf.constant(x) for x in MAPS]) == sum(x.sum() for x in MAPS)


def test_one_of_fixed_sizes_has_it_for_each_map():
    levels = Levels()
    graph = levels.graph(specs_of(MAPS, lambda x: x.shape[1:3]))
    assert levels.calls == len(MAPS)
    check(graph([tf.constant(x) for x in MAPS]))


def test_a_portable_graph_has_it_for_each_map():
    levels = Levels()
    with portable_kernels():
        graph = levels.graph(specs_of(MAPS, lambda x: (None, None)))
    assert levels.calls == len(MAPS)
    assert not graph.graph.as_graph_def().library.function


def test_outside_of_a_graph_nothing_is_traced():
    levels = Levels()
    assert shared_trace(levels.one, MAPS[0]) == levels.one
    check(levels(MAPS))
    assert shared_trace(levels.one, keras.KerasTensor((2, None, None, 3))) == levels.one


def gradients_of(build, policy, batch):
    """Of all weights: with the graph of open sizes, and without a graph."""
    keras.utils.set_random_seed(7)
    detector = contracts.with_policy(policy, build)
    targets = {k: batch[k] for k in ("boxes", "labels", "image_size")}
    detector(batch["images"])
    variables = [v.value for v in detector.trainable_variables]

    def gradients(images):
        with tf.GradientTape() as tape:
            losses = detector.compute_losses(detector(images, training=True), targets)
            total = sum(losses.values())
        return tape.gradient(total, variables, unconnected_gradients="zero")

    spec = tf.TensorSpec((None, None, None, 3))
    graph = tf.function(gradients, [spec], autograph=False).get_concrete_function()
    assert graph.graph.as_graph_def().library.function
    both = [calculate(batch["images"]) for calculate in (graph, gradients)]
    return variables, *contracts.to_numpy(both)


@pytest.mark.parametrize("build", [build_two_levels, lambda: build_small("atss")])
def test_a_detector_has_the_gradients_that_it_has_without_a_graph(build, small_batch):
    for variable, one, two in zip(
        *gradients_of(build, "float32", small_batch), strict=True
    ):
        try:
            contracts.assert_close_to_max(one, two, 1e-4)
        except AssertionError as error:
            raise AssertionError(variable.name) from error


@pytest.mark.parametrize(
    "build",
    [build_two_levels, lambda: build_small("atss"), lambda: build_small("reppoints")],
)
def test_in_half_precision_they_are_near(build, small_batch):
    # As a whole: single elements are sums in which 8 bits cancel.
    _, found, expected = gradients_of(build, "mixed_bfloat16", small_batch)
    found, expected = (
        np.concatenate([np.ravel(gradient) for gradient in one])
        for one in (found, expected)
    )
    # In six seeds VFNet's differ by 0.003.
    assert 0 < np.linalg.norm(expected) < np.inf
    assert np.linalg.norm(found - expected) < 0.02 * np.linalg.norm(expected)
