"""Every kind of detector, see `tests.conftest.SMALL`: outputs, steps, config, files."""

import keras
import numpy as np
import pytest

from tests import contracts
from tests.conftest import SMALL
from tests.contracts import on_tensorflow, tensors
from tests.detectors.hand_cases import NUM_POINTS, confident
from vfnet_tf.assigners import (
    ATSSAssigner,
    FCOSAssigner,
    FoveaAssigner,
    MaxIoUAssigner,
    PointAssigner,
)
from vfnet_tf.backbones import ResNet
from vfnet_tf.box_coders import DeltaCoder, DistanceCoder
from vfnet_tf.detectors import VFNet
from vfnet_tf.detectors.input_checks import TARGET_KEYS
from vfnet_tf.heads import VFNetHead
from vfnet_tf.losses import FocalLoss, GIoULoss, SmoothL1Loss, VarifocalLoss
from vfnet_tf.necks import FPN
from vfnet_tf.training.optimizers import SGD

each_kind = pytest.mark.parametrize("kind", SMALL)
#: One of each class, where graphs are traced for seconds.
each_class = pytest.mark.parametrize(
    "kind", ["vfnet", "fcos", "retinanet", "foveabox", "reppoints"]
)
#: Further outputs than class logits and boxes, points and strides.
FURTHER = {
    "vfnet": {"refined_boxes": 4},
    "vfnet_raw": {},
    "fcos": {"centerness_logits": 1},
    "atss": {"centerness_logits": 1},
    "retinanet": {"box_predictions": 4},
    "foveabox": {"box_predictions": 4},
    "reppoints": {"refined_boxes": 4},
}


def targets_of(batch):
    return {name: batch[name] for name in TARGET_KEYS}


@pytest.mark.backend
@each_kind
def test_predictions_have_one_row_for_each_point(small_detector, small_batch, kind):
    detector = small_detector(kind)
    found = contracts.evaluate(detector, small_batch["images"])
    rows = NUM_POINTS * detector.anchors_per_cell
    expected = {"class_logits": (2, rows, 3), "boxes": (2, rows, 4)}
    for name, channels in FURTHER[kind].items():
        expected[name] = (2, rows, channels)
    expected.update(points=(rows, 2), strides=(rows,))
    if kind == "retinanet":
        expected["anchors"] = (rows, 4)
    assert {name: value.shape for name, value in found.items()} == expected
    # Predictions before training lie about their points.
    assert np.all(found["boxes"][..., :2] < found["points"] + found["strides"][:, None])
    assert np.all(found["boxes"][..., 2:] > found["points"] - found["strides"][:, None])

    spec = detector.compute_output_spec(keras.KerasTensor((2, None, None, 3)))
    assert set(spec) == set(found)
    for name, value in found.items():
        assert len(spec[name].shape) == len(value.shape)
        assert spec[name].dtype == value.dtype
        if name != "strides":
            assert spec[name].shape[-1] == value.shape[-1]


@each_class
def test_detections_are_padded_sorted_and_inside_their_images(
    small_detector, small_batch, kind
):
    settings = {"max_detections": 10, "nms_iou_threshold": 0.9}
    detector = confident(small_detector(kind, **settings))
    images, size = small_batch["images"], small_batch["image_size"]
    scale = np.array([[2.0, 4.0]] * 2, "float32")
    # On TensorFlow in a graph of unknown sizes, and once more without one.
    found = contracts.to_numpy(detector.detect(images, size, scale))
    eagerly = detector.detect(images, size, scale, max_detections=10)
    for name, value in contracts.to_numpy(eagerly).items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-4)
    assert found["boxes"].shape == (2, 10, 4)
    assert found["scores"].shape == found["labels"].shape == (2, 10)
    np.testing.assert_array_equal(found["num_detections"], [10, 10])
    assert np.all(np.diff(found["scores"]) <= 0) and np.all(found["scores"] <= 1)
    assert set(found["labels"].ravel()) <= {0, 1, 2}
    margin = 1 if kind == "foveabox" else 0
    for boxes, (height, width) in zip(found["boxes"], size, strict=True):
        assert np.all(boxes >= 0)
        assert np.all(boxes[:, 2] <= (width - margin) / 4 + 1e-5)
        assert np.all(boxes[:, 3] <= (height - margin) / 2 + 1e-5)
    none = contracts.to_numpy(detector.detect(images, score_threshold=1.0))
    np.testing.assert_array_equal(none["num_detections"], [0, 0])
    np.testing.assert_array_equal(none["labels"], -1)
    np.testing.assert_array_equal(none["boxes"], 0)


@pytest.mark.backend
@each_kind
@pytest.mark.parametrize("rows", [0, 3])
def test_without_objects_only_the_class_loss_is_left(
    small_detector, small_batch, kind, rows
):
    detector = small_detector(kind)
    targets = {
        "boxes": np.zeros((2, rows, 4), "float32"),
        "labels": np.full((2, rows), -1, "int32"),
        "image_size": small_batch["image_size"],
    }

    def losses(images):
        return detector.compute_losses(detector(images), tensors(targets))

    found = contracts.evaluate(losses, small_batch["images"])
    assert set(found) == set(detector.loss_names)
    assert found.pop("class_loss") > 0
    assert all(value == 0 for value in found.values())


@on_tensorflow
@each_kind
def test_predictions_at_negatives_may_be_anything(small_detector, small_batch, kind):
    import tensorflow as tf

    detector = small_detector(kind)
    targets = tensors(targets_of(small_batch))
    outputs = dict(detector(small_batch["images"]))
    is_free = ~contracts.to_numpy(detector.assign(outputs, targets).is_positive)
    if kind == "reppoints":
        given = (outputs["points"], outputs["strides"], *targets.values())
        is_free &= ~contracts.to_numpy(detector.initial_assigner(*given).is_positive)
    assert 0 < np.sum(~is_free) < is_free.size / 2
    wild = np.where(np.arange(is_free.shape[1]) % 2, np.inf, np.nan)[:, None]
    names = {"boxes", "refined_boxes", "box_predictions", "centerness_logits"}
    sources = []
    with tf.GradientTape() as tape:
        for name in sorted(names & set(outputs)):
            outputs[name] = tf.where(
                is_free[..., None], np.float32(wild), outputs[name]
            )
            sources.append(outputs[name])
        sources.append(outputs["class_logits"])
        tape.watch(sources)
        total = sum(detector.compute_losses(outputs, targets).values())
    assert np.isfinite(total)
    found = tape.gradient(total, sources, unconnected_gradients="zero")
    assert all(np.all(np.isfinite(gradient)) for gradient in found)
    assert np.any(found[-1])


@on_tensorflow
@each_class
def test_a_step_in_mixed_precision_is_near_that_in_float32(
    small_detector, small_batch, kind
):
    logs = {}
    for policy in ("float32", "mixed_bfloat16", "mixed_float16"):
        detector = contracts.with_policy(policy, lambda: small_detector(kind))
        compute = policy.removeprefix("mixed_")
        assert detector.backbone.layers[1].compute_dtype == compute
        # Half precision ends at the head.
        outputs = detector(small_batch["images"])
        parts = detector.compute_losses(outputs, small_batch)
        for name, tensor in {**outputs, **parts}.items():
            assert keras.backend.standardize_dtype(tensor.dtype) == "float32", name
            assert np.isfinite(contracts.to_numpy(tensor)).all(), name
        # One of them in a graph.
        is_eager = policy != "mixed_bfloat16"
        detector.compile(keras.optimizers.SGD(1e-3), run_eagerly=is_eager)
        logs[policy] = detector.train_on_batch(small_batch, return_dict=True)
        for variable in detector.trainable_variables:
            assert variable.dtype == "float32"
            assert np.all(np.isfinite(contracts.to_numpy(variable)))
    exact = logs.pop("float32")
    assert set(exact) == {"loss", *detector.loss_names, "num_positives"}
    assert exact["num_positives"] > 0
    for policy, half in logs.items():
        for name, value in exact.items():
            assert float(half[name]) == pytest.approx(float(value), rel=0.05), (
                policy,
                name,
            )


def detector_of_resnet18():
    keras.utils.set_random_seed(1)
    return VFNet(ResNet(18), FPN(32), VFNetHead(3, 32, 1))


@pytest.mark.parametrize("kind", [*SMALL, "resnet18"])
def test_keras_and_weights_files_give_the_same_bits(
    tmp_path, small_detector, small_batch, kind
):
    def build():
        return detector_of_resnet18() if kind == "resnet18" else small_detector(kind)

    detector, images = build(), small_batch["images"]
    rng = np.random.default_rng(0)
    for variable in detector.variables:
        noise = rng.uniform(0.0, 0.01, variable.shape).astype("float32")
        variable.assign_add(noise)
    expected = contracts.to_numpy(detector(images))
    detector.save(tmp_path / "detector.keras")
    loaded = keras.saving.load_model(tmp_path / "detector.keras")
    assert type(loaded) is type(detector)
    detector.save_weights(tmp_path / "detector.weights.h5")
    fresh = build()
    fresh.load_weights(tmp_path / "detector.weights.h5")
    for copy in (loaded, fresh):
        assert len(copy.trainable_variables) == len(detector.trainable_variables)
        for ours, theirs in zip(detector.variables, copy.variables, strict=True):
            assert ours.name == theirs.name
        contracts.assert_same_bits(copy.variables, detector.variables)
        contracts.assert_same_bits(copy(images), expected)
    targets = tensors(targets_of(small_batch))
    losses = [
        contracts.to_numpy(model.compute_losses(tensors(expected), targets))
        for model in (detector, loaded)
    ]
    assert losses[0] == losses[1]


#: Settings of all detectors, each off its default.
COMMON = {
    "score_threshold": 0.2,
    "nms_iou_threshold": 0.4,
    "candidates_per_level": 50,
    "max_detections": 7,
    "nms": "soft_gaussian",
    "soft_nms_sigma": 0.3,
    "soft_nms_min_score": 0.02,
    "name": "other",
    "box_loss_weight": 0.7,
    "class_loss": FocalLoss(0.3, 1.0),
}
#: What each class has of its own. ATSS is an FCOS of other parts.
OWN = {
    "vfnet": {
        "assigner": ATSSAssigner(top_k=4),
        "class_loss": VarifocalLoss(alpha=0.5, gamma=1.5),
        "box_loss": GIoULoss(epsilon=1e-3),
        "refined_box_loss_weight": 0.9,
    },
    "fcos": {
        "assigner": ATSSAssigner(top_k=4),
        "box_coder": DeltaCoder((0.1, 0.1, 0.2, 0.2), 8),
        "box_loss": GIoULoss(epsilon=1e-3),
        "centerness_loss_weight": 0.9,
        "point_offset": 0.0,
        "min_positives": 1,
    },
    "retinanet": {
        "assigner": MaxIoUAssigner(0.6, 0.3),
        "box_coder": DeltaCoder((0.1, 0.1, 0.2, 0.2)),
        "box_loss": SmoothL1Loss(0.2),
        "octaves": 1,
        "ratios": tuple(2.0**i for i in range(-4, 5)),
    },
    "foveabox": {
        "assigner": FoveaAssigner(sigma=0.5),
        "box_coder": DistanceCoder("exp", unit=1.0, limits=(0.5, 8.0)),
        "box_loss": SmoothL1Loss(0.2),
    },
    "reppoints": {
        "initial_assigner": PointAssigner(num_points=2),
        "assigner": MaxIoUAssigner(0.6, 0.3),
        "box_loss": SmoothL1Loss(0.2),
        "refined_box_loss_weight": 0.9,
        "point_scale": 2.0,
    },
}
OWN["atss"] = OWN["fcos"]


@pytest.mark.backend
@pytest.mark.parametrize("kind", OWN)
def test_its_config_keeps_every_setting(small_detector, kind):
    contracts.check_detector_config(
        lambda **settings: small_detector(kind, **settings), {**COMMON, **OWN[kind]}
    )


#: kind -> assigner, threshold of NMS
DEFAULTS = {
    "vfnet": (ATSSAssigner, 0.6),
    "fcos": (FCOSAssigner, 0.6),
    "retinanet": (MaxIoUAssigner, 0.5),
    "foveabox": (FoveaAssigner, 0.5),
    "reppoints": (MaxIoUAssigner, 0.5),
}


@pytest.mark.parametrize("kind", DEFAULTS)
def test_defaults_are_those_of_the_papers(small_detector, kind):
    detector = small_detector(kind)
    assert (type(detector.assigner), detector.nms_iou_threshold) == DEFAULTS[kind]


@pytest.mark.slow
@on_tensorflow
def test_half_precision_learns_as_float32_does(small_detector, small_batch):
    losses = {}
    for policy in ("float32", "mixed_bfloat16", "mixed_float16"):
        detector = contracts.with_policy(policy, small_detector)
        optimizer = SGD(0.01)
        detector.compile(optimizer, jit_compile=False, run_eagerly=True)
        is_scaled = isinstance(detector.optimizer, keras.optimizers.LossScaleOptimizer)
        assert is_scaled == (policy == "mixed_float16")
        losses[policy] = [
            float(detector.train_on_batch(small_batch, return_dict=True)["loss"])
            for _ in range(3)
        ]
        assert int(keras.ops.convert_to_numpy(optimizer.iterations)) == 3
    expected = np.asarray(losses["float32"])
    # The mean over the steps so far: it falls by less than a step does.
    assert expected[0] - expected[2] > 0.05
    np.testing.assert_allclose(losses["mixed_bfloat16"], expected, rtol=2e-3)
    np.testing.assert_allclose(losses["mixed_float16"], expected, rtol=5e-4)
