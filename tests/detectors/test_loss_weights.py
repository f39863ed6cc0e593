"""Weights of images and of losses count, and so do the losses of layers."""

import keras
import numpy as np
import pytest

from tests import contracts
from tests.conftest import SMALL, build_two_levels, tiny_model
from tests.contracts import on_tensorflow, tensors
from vfnet_tf.backbones import KerasBackbone
from vfnet_tf.detectors import VFNet
from vfnet_tf.detectors.input_checks import TARGET_KEYS
from vfnet_tf.heads import VFNetHead
from vfnet_tf.necks import FPN


def targets_of(batch):
    return {name: batch[name] for name in TARGET_KEYS}


@pytest.mark.backend
@pytest.mark.parametrize("kind", SMALL)
def test_the_loss_is_linear_in_the_images_weights(small_detector, small_batch, kind):
    detector = small_detector(kind)
    targets = tensors(targets_of(small_batch))

    def losses(images):
        outputs = detector(images)
        weights = {
            "none": None,
            "ones": np.ones(2, "float32"),
            "first": np.array([1.0, 0.0], "float32"),
            "second": np.array([[0.0], [1.0]]),
            "both": np.array([2, 5]),
            "by_key": {"labels": np.array([3.0, 3.0]), "boxes": np.zeros(2)},
        }
        return {
            name: detector.compute_losses(outputs, targets, weight)
            for name, weight in weights.items()
        }

    found = contracts.evaluate(losses, small_batch["images"])
    assert found["ones"] == found["none"]
    for name in detector.loss_names:
        first, second = found["first"][name], found["second"][name]
        np.testing.assert_allclose(first + second, found["none"][name], rtol=1e-5)
        assert first > 0 and second > 0
        expected = 2 * first + 5 * second
        np.testing.assert_allclose(found["both"][name], expected, rtol=1e-5)
        factor = 3 if name == "class_loss" else 0
        np.testing.assert_allclose(
            found["by_key"][name], factor * found["none"][name], rtol=1e-5
        )


def build_quick(model=None):
    """A VFNet that is traced in a second."""
    levels = ("P3", "P4")
    return VFNet(
        KerasBackbone(model or tiny_model(), ("c3", "c4", "c5")),
        FPN(8, ("C3", "C4"), levels),
        VFNetHead(3, 32, 0, levels=levels, star=False, refine=False),
    )


@on_tensorflow
def test_every_way_into_keras_takes_weights(small_batch):
    import tensorflow as tf

    detector = build_quick()
    detector.compile(keras.optimizers.SGD(0.0))
    images, targets = small_batch["images"], targets_of(small_batch)
    weights = np.array([0.25, 1.0], "float32")
    expected = {
        name: float(value)
        for name, value in detector.compute_losses(
            detector(images), tensors(targets), weights
        ).items()
    }
    expected["loss"] = sum(expected.values())
    triples = tf.data.Dataset.from_tensors((images, targets, weights))
    arguments = {
        "arrays": ((images, targets), {"sample_weight": weights}),
        "a batch dict": ((small_batch,), {"sample_weight": weights}),
        "triples": ((triples,), {}),
    }
    for what, (given, settings) in arguments.items():
        settings = {**settings, "verbose": 0}
        if what != "triples":
            settings["batch_size"] = 2
        fitted = detector.fit(*given, **settings).history
        tested = detector.evaluate(*given, **settings, return_dict=True)
        for name, value in expected.items():
            np.testing.assert_allclose(fitted[name][0], value, rtol=1e-4, err_msg=what)
            np.testing.assert_allclose(tested[name], value, rtol=1e-4, err_msg=what)
    found = detector.test_on_batch(
        images, targets, sample_weight=weights, return_dict=True
    )
    np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-4)
    validated = detector.fit(
        images,
        targets,
        batch_size=2,
        verbose=0,
        validation_data=(images, targets, weights),
    ).history
    np.testing.assert_allclose(validated["val_loss"][0], expected["loss"], rtol=1e-4)
    assert validated["loss"][0] > 3 * expected["loss"]


#: weights that cannot be those of two images -> what the message must have
BAD_WEIGHTS = {
    "too many": (np.ones(3), r"\(3,\).*\(2, 2\)"),
    "of boxes": (np.ones((2, 2)), r"\(2, 2\)"),
    "a number": (np.float32(1), r"shape \(\)"),
    "a list of names": ({"class_loss": np.ones(2)}, r"'labels'.*\['class_loss'\]"),
}


@pytest.mark.backend
@pytest.mark.parametrize("what", BAD_WEIGHTS)
def test_weights_of_another_shape_are_refused(small_batch, what):
    weights, message = BAD_WEIGHTS[what]
    detector = build_two_levels()
    targets = targets_of(small_batch)
    outputs = detector(small_batch["images"])
    with pytest.raises(ValueError, match=message):
        detector.compute_losses(outputs, targets, weights)
    with pytest.raises(ValueError, match=message):
        detector.compute_loss(small_batch["images"], targets, outputs, weights)


@pytest.mark.backend
def test_loss_weights_of_compile_multiply_the_parts(small_batch, tmp_path):
    detector = build_two_levels()
    targets = targets_of(small_batch)

    def losses(model):
        outputs = model(small_batch["images"])
        return contracts.to_numpy(model.compute_losses(outputs, tensors(targets)))

    plain = losses(detector)
    detector.compile("adam", loss_weights={"class_loss": 3, "box_loss": 0.0})
    detector.save(tmp_path / "detector.keras")
    for model in (detector, keras.saving.load_model(tmp_path / "detector.keras")):
        found = losses(model)
        np.testing.assert_allclose(found["class_loss"], 3 * plain["class_loss"])
        assert found["box_loss"] == 0
        assert found["refined_box_loss"] == plain["refined_box_loss"]
    detector.compile("adam", loss_weights=[1.0, 1.0, 2.0])
    np.testing.assert_allclose(
        losses(detector)["refined_box_loss"], 2 * plain["refined_box_loss"]
    )
    detector.compile("adam")
    assert losses(detector) == plain


#: arguments of `compile` -> what the message must have
BAD_COMPILE = {
    "an unknown loss": ({"loss_weights": {"giou": 1}}, "refined_box_loss.*giou"),
    "too few weights": ({"loss_weights": [1.0]}, r"3 floats.*\[1.0\]"),
    "metrics": ({"metrics": ["accuracy"]}, "CocoEvaluation.*accuracy"),
    "weighted metrics": ({"weighted_metrics": ["mse"]}, "CocoEvaluation.*mse"),
    "a loss": ({"loss": "mse"}, "class_loss.*mse"),
}


@pytest.mark.parametrize("what", BAD_COMPILE)
def test_what_compile_cannot_use_is_refused(what):
    arguments, message = BAD_COMPILE[what]
    with pytest.raises(ValueError, match=message):
        build_two_levels().compile("sgd", **arguments)
    assert build_two_levels().loss is None


@on_tensorflow
def test_class_weight_is_refused(small_batch):
    detector = build_two_levels()
    detector.compile("sgd")
    with pytest.raises(ValueError, match="`class_weight`.*`sample_weight`"):
        detector.fit(small_batch, class_weight={0: 1.0, 1: 2.0, 2: 1.0})


@keras.saving.register_keras_serializable("tests")
class AddsALoss(keras.layers.Layer):
    def call(self, inputs):
        self.add_loss(keras.ops.convert_to_tensor(3.0))
        return inputs


@pytest.mark.backend
def test_losses_of_the_backbone_are_part_of_the_loss(small_batch):
    model = tiny_model()
    model.get_layer("c3").kernel_regularizer = keras.regularizers.L2(10.0)
    model = keras.models.model_from_json(model.to_json())
    c5 = AddsALoss(name="adds")(model.output)
    levels = ("P3", "P4")
    detector = VFNet(
        KerasBackbone(keras.Model(model.input, c5), ("c3", "c4_bn", "adds")),
        FPN(32, ("C3", "C4", "C5"), ("P3", "P4", "P5")),
        VFNetHead(3, 32, 1, levels=levels),
    )
    targets = tensors(targets_of(small_batch))
    images = small_batch["images"]
    outputs = detector(images)
    parts = contracts.to_numpy(detector.compute_losses(outputs, targets))
    kernel = contracts.to_numpy(detector.backbone.get_layer("c3").kernel)
    expected = sum(parts.values()) + 10 * np.sum(np.square(kernel)) + 3.0
    found = float(detector.compute_loss(images, targets, outputs))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    if keras.backend.backend() == "tensorflow":
        detector.compile(keras.optimizers.SGD(0.1))
        found = detector.train_on_batch(images, targets_of(small_batch))[0]
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        # L2 pulls the kernel to zero: 1 - 2 * 10 * 0.1 = -1 of it is left.
        after = contracts.to_numpy(detector.backbone.get_layer("c3").kernel)
        assert np.corrcoef(kernel.ravel(), after.ravel())[0, 1] < -0.9


@on_tensorflow
def test_losses_of_the_backbone_count_once_on_replicas(small_batch):
    import tensorflow as tf

    from vfnet_tf.training.strategies import make_strategy

    # One strategy of these devices for the whole process: two would mix their sums.
    devices = [device.name for device in tf.config.list_logical_devices("CPU")]
    strategy = make_strategy("mirrored", devices)
    images, targets = small_batch["images"], targets_of(small_batch)
    found = []
    for scope in (None, strategy):
        model = tiny_model()
        model.get_layer("c3").kernel_regularizer = keras.regularizers.L2(10.0)
        text = model.to_json()
        keras.utils.set_random_seed(3)
        with tf.distribute.get_strategy().scope() if scope is None else scope.scope():
            detector = build_quick(keras.models.model_from_json(text))
            detector.compile(keras.optimizers.SGD(0.001))
        weights = np.array([1.0, 3.0], "float32")
        history = detector.fit(
            tf.data.Dataset.from_tensors((images, targets, weights))
            .unbatch()
            .batch(2, drop_remainder=True),
            verbose=0,
        ).history
        found.append([history["loss"][0], *detector.get_weights()])
    for one, two in zip(*found, strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-5)
