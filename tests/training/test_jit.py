"""Training steps that XLA compiles: `vfnet train --jit`."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import SMALL, build_small, build_two_levels
from tests.contracts import to_numpy
from vfnet_tf.config import (
    BackboneConfig,
    Config,
    DataConfig,
    ModelConfig,
    TrainingConfig,
)
from vfnet_tf.data.formats.coco import find_coco_splits, read_coco
from vfnet_tf.data.synthetic import make_synthetic_dataset
from vfnet_tf.training.optimizers import SGD
from vfnet_tf.training.trainer import Trainer

#: Two padded shapes: images are drawn within 48x64 to 64x96 pixels, and cropped.
CONFIG = Config(
    name="two_shapes",
    model=ModelConfig(
        backbone=BackboneConfig("resnet18"),
        neck_filters=32,
        head_filters=32,
        head_convs=1,
    ),
    data=DataConfig(
        image_size=(64, 96),
        scale_range=((48, 64), (64, 96)),
        random_crop=0.5,
        max_canvas_shapes=2,
    ),
    training=TrainingConfig(epochs=3, batch_size=2, warmup_steps=1, drop_epochs=(2,)),
)


def assert_compiled_steps_agree(build, batch):
    """Four steps with XLA and without: losses and weights to 2e-7 of the largest."""
    losses, weights = [], []
    for jit_compile in (False, True):
        keras.utils.set_random_seed(7)
        detector = build()
        before = to_numpy(detector.trainable_variables)
        optimizer = SGD(1e-3, momentum=0.9, weight_decay=1e-4)
        detector.compile(optimizer, jit_compile=jit_compile)
        rows = []
        for _ in range(4):
            logs = detector.train_on_batch(batch, return_dict=True)
            detector.reset_metrics()
            rows.append([float(logs[name]) for name in ("loss", *detector.loss_names)])
        losses.append(np.array(rows))
        weights.append(to_numpy(detector.trainable_variables))
    plain, compiled = losses
    assert np.ptp(plain[:, 0]) > 1e-3 * plain[0, 0]
    largest = plain[:, :1]
    np.testing.assert_allclose(compiled / largest, plain / largest, rtol=0, atol=2e-7)
    largest = max(np.abs(weight).max() for weight in weights[0])
    moved = max(
        np.abs(new - old).max() for new, old in zip(weights[0], before, strict=True)
    )
    assert moved > 1e-4 * largest
    for ours, expected in zip(*reversed(weights), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-7 * largest)


def test_compiled_steps_agree_with_plain_ones(small_batch):
    assert_compiled_steps_agree(build_two_levels, small_batch)


@pytest.mark.slow
@pytest.mark.parametrize("kind", SMALL)
def test_compiled_steps_of_each_kind_agree_with_plain_ones(kind, small_batch):
    assert_compiled_steps_agree(lambda: build_small(kind), small_batch)


def test_a_run_says_how_many_steps_xla_compiles(tmp_path):
    """XLA compiles once for the shapes of all arrays of a batch together."""
    make_synthetic_dataset(tmp_path / "set", 8, 1, image_size=(96, 128))
    dataset = read_coco(*find_coco_splits(tmp_path / "set")["train"])
    run = Trainer(CONFIG, dataset, None, tmp_path / "run", jit_compile=True)
    shapes = {
        tuple(array.shape for array in batch.values())
        for _ in range(CONFIG.training.epochs)
        for batch in run.train_batches.as_numpy_iterator()
    }
    assert len(shapes) == 2
    said = (
        "graphs     at most 2, one per padded shape, each compiled by XLA in its first"
    )
    assert f"{said} step: 64x64, 64x96\n" in run.describe()


@pytest.mark.parametrize("kind", ["vfnet", "fcos"])
def test_xla_compiles_for_shapes_and_not_for_the_values_of_a_batch(kind):
    """Keras traces a second shape with an open width.

    XLA takes a shape from an operation without its inputs' values, but not from a call
    of a function, see `shared_trace`.
    """
    detector = build_small(kind)
    detector.compile(SGD(1e-3))
    detector.optimizer.build(detector.trainable_variables)
    batch = {
        "images": tf.TensorSpec((2, 64, None, 3)),
        "boxes": tf.TensorSpec((2, 2, 4)),
        "labels": tf.TensorSpec((2, 2), "int32"),
        "image_size": tf.TensorSpec((2, 2)),
    }
    step = tf.function(detector.train_step, autograph=False, jit_compile=True)
    operations = step.get_concrete_function((batch,)).graph.get_operations()
    calls = {"PartitionedCall", "StatefulPartitionedCall", "If", "StatelessIf", "While"}
    assert len(operations) > 2000
    assert not calls & {operation.type for operation in operations}
