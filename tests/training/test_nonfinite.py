import json

import keras
import numpy as np
import pytest
from keras import ops

from tests.conftest import build_two_levels
from tests.contracts import assert_same_bits, on_tensorflow, to_numpy
from tests.golden import make_weights
from tests.training.tiny_training import X, fit, make_model
from vfnet_tf.detectors import VFNet
from vfnet_tf.training.nonfinite import NonFiniteAlarm
from vfnet_tf.training.optimizers import SGD, AdamW

NUM_BATCHES = 4


def batches_of(bad=()):
    """Four batches of two images; in those of `bad` the second image is marked."""
    import tensorflow as tf

    images = make_weights.make_image(3, 2 * NUM_BATCHES, 64, 96).astype("float32")
    marks = np.ones((len(images), 2), "float32")
    marks[[2 * number + 1 for number in bad]] = 0
    boxes = np.tile(
        np.array([[[4, 6, 40, 50], [50, 10, 90, 60]]], "float32"), (len(images), 1, 1)
    )
    return tf.data.Dataset.from_tensor_slices(
        {
            "images": images,
            "boxes": boxes,
            "labels": np.tile(np.array([[0, 2]], "int32"), (len(images), 1)),
            "image_size": np.tile(np.array([[64, 96]], "float32"), (len(images), 1)),
            "scale": marks,
        }
    ).batch(2)


class Fragile(VFNet):
    """Its loss and all gradients are NaN with a marked image.

    NaN pixels would not do: a fused convolution and ReLU makes 0 of them on CPUs.
    """

    def _loss_parts(self, outputs, targets):
        losses, num_positives = super()._loss_parts(outputs, targets)
        is_marked = ops.min(targets["scale"]) == 0
        losses["class_loss"] *= ops.where(is_marked, np.nan, 1.0)
        return losses, num_positives


def make_detector(optimizer=None, run_eagerly=True):
    keras.utils.set_random_seed(7)
    detector = build_two_levels(star=False, refine=False)
    detector.__class__ = Fragile
    # Without a graph, which takes seconds to trace.
    detector.compile(
        optimizer=optimizer or SGD(0.01), run_eagerly=run_eagerly, jit_compile=False
    )
    return detector


def train(detector, batches, *callbacks, epochs=1):
    return detector.fit(
        batches, epochs=epochs, verbose=0, callbacks=list(callbacks), shuffle=False
    )


def image_ids(epoch, step):
    return [100 * epoch + step, 7]


@on_tensorflow
@pytest.mark.parametrize("every", [2, 20])
def test_it_stops_and_says_where_on_which_images_and_what(tmp_path, every):
    detector = make_detector()
    path = tmp_path / "run" / "nonfinite.json"
    alarm = NonFiniteAlarm(path, image_ids=image_ids, every=every)
    train(detector, batches_of(), alarm)
    message = r"step 2 of epoch 1 .*rate 0\.01\): class_loss nan.*images \[1, 7\]"
    with pytest.raises(FloatingPointError, match=message):
        train(detector, batches_of(bad=[1]), alarm)
    (entry,) = json.loads(path.read_text())
    assert (entry["epoch"], entry["step"], entry["image_ids"]) == (1, 2, [1, 7])
    assert entry["parts"]["class_loss"] == "nan"
    # Seen after two steps, or at the end of the epoch: its weights cannot be used.
    assert entry["steps_not_finite"] == (1 if every == 2 else NUM_BATCHES - 1)


@on_tensorflow
def test_the_step_is_counted_from_the_begin_of_an_epoch_that_goes_on(tmp_path):
    alarm = NonFiniteAlarm(tmp_path / "a.json", image_ids=image_ids)
    alarm.begin_at(6)
    with pytest.raises(FloatingPointError, match=r"step 9 of epoch 1 .*\[8, 7\]"):
        train(make_detector(), batches_of(bad=[2]), alarm)


OPTIMIZERS = {
    "sgd": lambda: SGD(0.01, momentum=0.9, weight_decay=0.1),
    "adamw": lambda: AdamW(0.01, weight_decay=0.1),
}


@on_tensorflow
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_step_that_is_left_out_changes_nothing(tmp_path, capsys, optimizer):
    skipping, without = (make_detector(OPTIMIZERS[optimizer]()) for _ in range(2))
    path = tmp_path / "nonfinite.json"
    alarm = NonFiniteAlarm(path, "skip", image_ids)
    # At the end: the steps of AdamW before it are the same.
    history = train(skipping, batches_of(bad=[3]), alarm).history
    plain = train(without, batches_of().take(3)).history
    assert_same_bits(skipping.weights, without.weights)
    assert_same_bits(skipping.optimizer.variables[2:], without.optimizer.variables[2:])
    assert int(skipping.optimizer.iterations.numpy()) == 4
    for name, (value,) in plain.items():
        assert history[name][0] == pytest.approx(value, rel=1e-6), name
    assert "images [3, 7]" in capsys.readouterr().out
    (entry,) = json.loads(path.read_text())
    assert (entry["epoch"], entry["step"], entry["steps_not_finite"]) == (1, 4, 1)


@on_tensorflow
def test_replicas_leave_out_a_step_together(tmp_path, two_devices):
    from vfnet_tf.training.strategies import make_strategy

    found = []
    for devices in (two_devices[:1], two_devices):
        with make_strategy("mirrored", devices).scope():
            detector = make_detector(OPTIMIZERS["sgd"](), run_eagerly=False)
        # The mark is seen by the second replica alone.
        alarm = NonFiniteAlarm(tmp_path / f"{len(devices)}.json", "skip", image_ids)
        train(detector, batches_of(bad=[0]), alarm)
        found.append([to_numpy(variable) for variable in detector.weights])
    for one, two in zip(*found, strict=True):
        assert np.isfinite(one).all()
        np.testing.assert_allclose(one, two, atol=1e-5 * max(1, np.abs(one).max()))
    entries = [json.loads((tmp_path / f"{n}.json").read_text()) for n in (1, 2)]
    assert entries[0] == entries[1]


@on_tensorflow
def test_only_our_optimizers_can_leave_out_a_step(tmp_path):
    detector = make_detector(keras.optimizers.SGD(0.1))
    with pytest.raises(ValueError, match="Received: SGD"):
        train(detector, batches_of(), NonFiniteAlarm(tmp_path / "a.json", "skip"))


@on_tensorflow
def test_finite_losses_pass_and_leave_no_file(tmp_path):
    watched, plain = make_detector(), make_detector()
    train(watched, batches_of(), NonFiniteAlarm(tmp_path / "a.json"))
    train(plain, batches_of())
    assert not (tmp_path / "a.json").exists()
    assert_same_bits(watched.weights, plain.weights)


@pytest.mark.backend
def test_other_models_stop_at_the_end_of_the_epoch(tmp_path):
    x = X.copy()
    x[5] = np.nan
    alarm = NonFiniteAlarm(tmp_path / "a.json")
    fit(make_model(), alarm, epochs=1)
    with pytest.raises(FloatingPointError, match="mean loss of epoch 2"):
        fit(make_model(), alarm, epochs=2, start=1, x=x)


@pytest.mark.parametrize("arguments", [{"action": "ignore"}, {"every": 0}], ids=str)
def test_arguments_out_of_range_are_refused(tmp_path, arguments):
    with pytest.raises(ValueError, match="Received: "):
        NonFiniteAlarm(tmp_path / "a.json", **arguments)
