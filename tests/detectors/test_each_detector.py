"""What every kind of detector owes; VFNet's own in test_dense_detector.py."""

import keras
import numpy as np
import pytest

from tests import contracts
from tests.detectors.test_dense_detector import NUM_POINTS, on_tensorflow
from tests.detectors.test_vfnet import tensors
from vfnet_tf.training.optimizers import SGD

RIVALS = ("vfnet_raw", "fcos", "atss", "retinanet", "foveabox", "reppoints")
each_rival = pytest.mark.parametrize("kind", RIVALS)
#: One of each class, where graphs are traced for seconds; VFNet has such tests itself.
each_class = pytest.mark.parametrize(
    "kind", ["fcos", "retinanet", "foveabox", "reppoints"]
)


def confident(detector):
    """Many scores of all sizes."""
    rng = np.random.default_rng(1)
    conv = detector.head.class_predictor.conv
    conv.kernel.assign(rng.normal(0, 0.5, conv.kernel.shape))
    conv.bias.assign(rng.normal(-1.0, 0.5, conv.bias.shape))
    return detector


@pytest.mark.backend
@each_rival
def test_predictions_have_one_row_for_each_point(small_detector, small_batch, kind):
    detector = small_detector(kind)
    found = contracts.evaluate(detector, small_batch["images"])
    rows = NUM_POINTS * detector.anchors_per_cell
    sizes = {name: value.shape for name, value in found.items()}
    assert sizes["class_logits"] == (2, rows, 3)
    assert sizes["boxes"] == (2, rows, 4)
    assert sizes["points"] == (rows, 2) and sizes["strides"] == (rows,)
    assert ("anchors" in sizes) == (kind == "retinanet")
    assert ("centerness_logits" in sizes) == (kind in ("fcos", "atss"))
    assert ("refined_boxes" in sizes) == (kind == "reppoints")
    # Predictions before training lie about their points.
    assert np.all(found["boxes"][..., :2] < found["points"] + found["strides"][:, None])
    assert np.all(found["boxes"][..., 2:] > found["points"] - found["strides"][:, None])


@each_rival
def test_symbolic_calls_tell_the_outputs(small_detector, small_batch, kind):
    detector = small_detector(kind)
    spec = detector.compute_output_spec(keras.KerasTensor((2, None, None, 3)))
    found = detector(small_batch["images"])
    assert set(spec) == set(found)
    for name, value in found.items():
        assert len(spec[name].shape) == len(value.shape)
        if name != "strides":
            assert spec[name].shape[-1] == value.shape[-1]
        assert keras.backend.standardize_dtype(value.dtype) == spec[name].dtype


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
@each_rival
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
@each_rival
@pytest.mark.parametrize("rows", [0, 2])
def test_every_gradient_is_finite_and_without_objects_none_is_missing(
    small_detector, small_batch, kind, rows
):
    import tensorflow as tf

    detector = small_detector(kind)
    targets = {k: small_batch[k][:, :rows] for k in ("boxes", "labels")}
    targets["image_size"] = small_batch["image_size"]
    sources = [v.value for v in detector.trainable_variables]
    with tf.GradientTape() as tape:
        outputs = detector(small_batch["images"], training=True)
        total = sum(detector.compute_losses(outputs, tensors(targets)).values())
    found = tape.gradient(total, sources)
    for variable, gradient in zip(detector.trainable_variables, found, strict=True):
        assert gradient is not None, variable.path
        assert np.all(np.isfinite(gradient)), variable.path


@on_tensorflow
@each_rival
@pytest.mark.parametrize("wild", [np.inf, np.nan])
def test_predictions_at_negatives_may_be_anything(
    small_detector, small_batch, kind, wild
):
    import tensorflow as tf

    detector = small_detector(kind)
    targets = tensors({k: small_batch[k] for k in ("boxes", "labels", "image_size")})
    outputs = dict(detector(small_batch["images"]))
    is_free = ~contracts.to_numpy(detector.assign(outputs, targets).is_positive)
    if kind == "reppoints":
        given = (outputs["points"], outputs["strides"], *targets.values())
        is_free &= ~contracts.to_numpy(detector.initial_assigner(*given).is_positive)
    assert 0 < np.sum(~is_free) < is_free.size / 2
    names = {"boxes", "refined_boxes", "box_predictions", "centerness_logits"}
    sources = []
    with tf.GradientTape() as tape:
        for name in sorted(names & set(outputs)):
            outputs[name] = tf.where(is_free[..., None], wild, outputs[name])
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
def test_a_step_in_a_graph_and_in_mixed_precision_is_near_the_eager_one(
    small_detector, small_batch, kind
):
    logs = {}
    for policy in ("float32", "mixed_bfloat16"):
        detector = contracts.with_policy(policy, lambda: small_detector(kind))
        is_eager = policy == "float32"
        detector.compile(keras.optimizers.SGD(1e-3), run_eagerly=is_eager)
        logs[policy] = detector.train_on_batch(small_batch, return_dict=True)
        for variable in detector.trainable_variables:
            assert variable.dtype == "float32"
            assert np.all(np.isfinite(contracts.to_numpy(variable)))
    assert set(logs["float32"]) == {"loss", *detector.loss_names, "num_positives"}
    assert logs["float32"]["num_positives"] > 0
    for name, exact in logs["float32"].items():
        assert float(logs["mixed_bfloat16"][name]) == pytest.approx(
            float(exact), rel=0.05
        ), name


@each_rival
def test_keras_and_weights_files_give_the_same_bits(
    tmp_path, small_detector, small_batch, kind
):
    detector, images = small_detector(kind), small_batch["images"]
    rng = np.random.default_rng(0)
    for variable in detector.variables:
        noise = rng.uniform(0.0, 0.01, variable.shape).astype("float32")
        variable.assign_add(noise)
    expected = contracts.to_numpy(detector(images))
    detector.save(tmp_path / "detector.keras")
    loaded = keras.saving.load_model(tmp_path / "detector.keras")
    assert type(loaded) is type(detector)
    assert len(loaded.trainable_variables) == len(detector.trainable_variables)
    detector.save_weights(tmp_path / "detector.weights.h5")
    fresh = small_detector(kind)
    fresh.load_weights(tmp_path / "detector.weights.h5")
    for copy in (loaded, fresh):
        found = contracts.to_numpy(copy(images))
        assert list(found) == list(expected)
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value)
    targets = {k: small_batch[k] for k in ("boxes", "labels", "image_size")}
    losses = [
        contracts.to_numpy(model.compute_losses(tensors(expected), tensors(targets)))
        for model in (detector, loaded)
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    "kind", ["vfnet", "fcos", "retinanet", "foveabox", "reppoints"]
)
def test_half_precision_ends_at_the_head(kind, small_detector, small_batch):
    detector = contracts.with_policy("mixed_float16", lambda: small_detector(kind))
    assert detector.backbone.layers[1].compute_dtype == "float16"
    outputs = detector(small_batch["images"])
    tensors = {**outputs, **detector.compute_losses(outputs, small_batch)}
    for name, tensor in tensors.items():
        assert keras.backend.standardize_dtype(tensor.dtype) == "float32", name
        assert np.isfinite(keras.ops.convert_to_numpy(tensor)).all(), name


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
