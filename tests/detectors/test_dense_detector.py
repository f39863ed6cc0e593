import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest

from tests import contracts
from tests.contracts import on_tensorflow
from tests.detectors.hand_cases import LEVEL_SIZES, confident, postprocess
from vfnet_tf.detectors.dense_detector import flatten_levels
from vfnet_tf.detectors.postprocess import (
    merge_candidates,
    select_candidates,
)
from vfnet_tf.losses import FocalLoss
from vfnet_tf.ops.nms import suppress

PARTS = ("class_loss", "box_loss", "refined_box_loss")


def test_a_batch_dict_stands_for_its_images(small_detector, small_batch):
    detector = small_detector()
    expected = contracts.to_numpy(detector(small_batch["images"]))
    for name, value in contracts.to_numpy(detector(small_batch)).items():
        np.testing.assert_array_equal(value, expected[name])


@pytest.mark.parametrize(
    "size", [(64, 96), pytest.param((70, 101), marks=pytest.mark.backend), (33, 32)]
)
def test_points_are_as_many_as_predictions_at_any_size(small_detector, size):
    detector = small_detector()
    found = contracts.evaluate(detector, np.zeros((1, *size, 3), "float32"))
    assert found["class_logits"].shape[1] == found["points"].shape[0]


@pytest.mark.backend
def test_levels_are_joined_in_order_and_row_by_row():
    fine = np.arange(8, dtype="float32").reshape(1, 2, 2, 2)
    coarse = np.full((1, 1, 1, 2), 9.0, "float32")
    found = contracts.to_numpy(flatten_levels({"P3": fine, "P4": coarse}))
    np.testing.assert_array_equal(found, [[[0, 1], [2, 3], [4, 5], [6, 7], [9, 9]]])


def assert_close(found, expected):
    """Detections beside those that were computed in another way."""
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-4)


def postprocessed(detector, images, size, scale=None, **settings):
    """Detections by the function that the official arrays were compared with."""

    def detections(images, size):
        outputs = detector(images)
        return postprocess(
            outputs["refined_boxes"],
            keras.ops.sigmoid(outputs["class_logits"]),
            LEVEL_SIZES,
            size,
            scale,
            **settings,
        )

    return contracts.evaluate(detections, images, np.float32(size))


@pytest.mark.backend
def test_detections_are_the_postprocessed_predictions(small_detector, small_batch):
    detector = confident(small_detector(max_detections=10))
    images, size = small_batch["images"], small_batch["image_size"]
    scale = np.array([[2.0, 4.0]] * 2, "float32")
    found = contracts.evaluate(detector.detect, images, size, scale)
    assert_close(found, postprocessed(detector, images, size, scale, max_detections=10))
    assert np.all(found["num_detections"] > 0)  # how many depends on the backend


def test_settings_may_be_overridden_for_one_call(small_detector, small_batch):
    detector = confident(small_detector(max_detections=5))
    images = small_batch["images"]
    usual = contracts.to_numpy(detector.detect(images))
    none = contracts.to_numpy(detector.detect(images, score_threshold=0.9999))
    np.testing.assert_array_equal(none["num_detections"], [0, 0])
    fewer = contracts.to_numpy(detector.detect(images, max_detections=2))
    np.testing.assert_allclose(fewer["scores"], usual["scores"][:, :2], rtol=1e-5)
    assert fewer["boxes"].shape == (2, 2, 4)
    assert detector.max_detections == 5


@pytest.mark.backend
def test_soft_nms_is_a_setting_of_the_detector_and_of_one_call(
    small_detector, small_batch
):
    settings = {"nms": "soft_linear", "nms_iou_threshold": 0.3, "max_detections": 20}
    detector, images = confident(small_detector(**settings)), small_batch["images"]

    def expected(nms, **more):
        arguments = {"iou_threshold": 0.3, "max_detections": 20, "nms": nms, **more}
        return postprocessed(detector, images, [[64, 96]] * 2, **arguments)

    found = contracts.evaluate(detector.detect, images)
    assert_close(found, expected("soft_linear"))
    assert np.abs(found["scores"] - expected("hard")["scores"]).max() > 0.01

    def overridden(images):
        return detector.detect(
            images,
            nms="soft_gaussian",
            soft_nms_sigma=0.2,
            soft_nms_min_score=0.5,
        )

    found = contracts.evaluate(overridden, images)
    assert_close(found, expected("soft_gaussian", sigma=0.2, min_score=0.5))
    # Few are left when all below 0.5 are removed.
    assert 0 < found["num_detections"].min() < 20


def make_views(images):
    """The image as it is, mirrored, and at half the size with its own padding."""
    plain = {"images": images, "image_size": np.full((2, 2), (60, 90), "float32")}
    mirrored = np.zeros_like(images)
    mirrored[:, :60, :90] = images[:, :60, 89::-1]
    small = np.zeros((2, 32, 64, 3), "float32")
    small[:, :30, :45] = images[:, :60:2, :90:2]
    return [
        plain,
        {**plain, "images": mirrored, "flipped": True},
        {
            "images": small,
            "image_size": np.full((2, 2), (30, 45), "float32"),
            "scale": np.full((2, 2), 0.5, "float32"),
            "flipped": np.array([False, False]),
        },
    ]


@pytest.mark.backend
def test_the_views_of_images_share_one_nms(small_detector, small_batch):
    settings = {"score_threshold": 0.01, "candidates_per_level": 50}
    detector = confident(small_detector(max_detections=15, **settings))
    views = make_views(small_batch["images"])
    found = contracts.to_numpy(detector.detect_augmented(views))
    if keras.backend.backend() == "jax":  # op by op takes four times as long
        compiled = {method.__name__ for method, _ in detector._traces.functions()}
        assert compiled == {"_candidates", "suppress_candidates"}

    candidates = []
    for view, sizes in zip(
        views, [LEVEL_SIZES, LEVEL_SIZES, [32, 8, 2, 1, 1]], strict=True
    ):

        def select(images, view=view, sizes=sizes):
            outputs = detector(images)
            return select_candidates(
                outputs["refined_boxes"],
                keras.ops.sigmoid(outputs["class_logits"]),
                sizes,
                view["image_size"],
                view.get("scale"),
                view.get("flipped"),
                50,
            )

        candidates.append(contracts.evaluate(select, view["images"]))
    # In this order: best 50 of 96, then what the coarser levels have.
    assert [boxes.shape[1] for boxes, _ in candidates] == [83, 83, 44]
    merged = merge_candidates(candidates)
    assert_close(found, contracts.evaluate(lambda: suppress(*merged, 0.6, 0.01, 15)))


def test_one_view_is_the_image_and_settings_hold_for_views_too(
    small_detector, small_batch
):
    settings = {"score_threshold": 0.01, "max_detections": 15}
    detector = confident(small_detector(**settings))
    views = make_views(small_batch["images"])
    found = contracts.to_numpy(detector.detect_augmented(views))
    alone = contracts.to_numpy(detector.detect_augmented(views[:1]))
    usual = detector.detect(views[0]["images"], views[0]["image_size"])
    assert_close(alone, contracts.to_numpy(usual))
    assert np.abs(alone["scores"] - found["scores"]).max() > 0.01
    fewer = contracts.to_numpy(detector.detect_augmented(views, max_detections=3))
    np.testing.assert_allclose(fewer["scores"], found["scores"][:, :3], rtol=1e-4)


def test_a_mirrored_view_finds_the_same_in_the_pixels_of_the_image(
    small_detector, small_batch
):
    # Mirrored twice, an image that is its own mirror image is found where it was.
    images = small_batch["images"]
    images = images + images[:, :, ::-1]
    detector = confident(small_detector(max_detections=8, nms_iou_threshold=0.9))
    plain = contracts.to_numpy(detector.detect(images))
    found = contracts.to_numpy(
        detector.detect_augmented([{"images": images, "flipped": True}])
    )
    np.testing.assert_allclose(found["scores"], plain["scores"], rtol=1e-4)
    x1, y1, x2, y2 = np.moveaxis(plain["boxes"], -1, 0)
    mirrored = np.stack([96 - x2, y1, 96 - x1, y2], axis=-1)
    np.testing.assert_allclose(found["boxes"], mirrored, atol=1e-3)


@on_tensorflow
def test_images_and_views_of_any_size_share_their_traces(
    small_detector, small_batch, monkeypatch
):
    detector = small_detector()
    traced = []

    def count(name):
        method = getattr(detector, name)

        def counted(*inputs):
            traced.append(name)
            return method(*inputs)

        counted.__name__ = name
        monkeypatch.setattr(detector, name, counted)

    for height, width in ((64, 96), (96, 64), (32, 32)):
        found = detector.detect(np.zeros((1, height, width, 3)))
        assert found["boxes"].shape == (1, detector.max_detections, 4)
        if not traced:
            count("_candidates")
            traced.append("detect")
    assert traced == ["detect"]
    count("suppress_candidates")
    views = make_views(small_batch["images"])
    for some in (views, views[2:], [{"images": views[2]["images"][:1]}]):
        detector.detect_augmented(some)
    assert traced == ["detect", "_candidates", "suppress_candidates"]


@pytest.mark.parametrize(
    ("views", "message"),
    [
        ([], r"one at least. Received: \[\]"),
        ([{"scale": 1.0}], r"Received: \[\['scale'\]\]"),
        ([{"images": np.zeros((1, 32, 32, 3)), "flip": True}], "'flip'"),
        ([{"images": np.zeros((32, 32, 3))}], "must be a batch"),
    ],
)
def test_bad_views_are_refused(small_detector, views, message):
    with pytest.raises(ValueError, match=message):
        small_detector().detect_augmented(views)


def test_bad_arguments_of_detect_are_refused(small_detector, small_batch):
    detector = small_detector()
    with pytest.raises(ValueError, match="batch.*shape \\(64, 96, 3\\)"):
        detector.detect(small_batch["images"][0])
    with pytest.raises(ValueError, match="nms_threshold"):
        detector.detect(small_batch["images"], nms_threshold=0.5)


@on_tensorflow
def test_predict_gives_the_detections_of_arrays_and_batches(
    small_detector, small_batch
):
    import tensorflow as tf

    detector = confident(small_detector(max_detections=6))
    images = small_batch["images"]
    eagerly = {"max_detections": 6}  # an override: nothing is traced
    expected = contracts.to_numpy(detector.detect(images, **eagerly))
    assert_close(detector.predict(images, batch_size=1, verbose=0), expected)
    small_batch["scale"][:] = 2.0
    size, scale = small_batch["image_size"], small_batch["scale"]
    expected = contracts.to_numpy(detector.detect(images, size, scale, **eagerly))
    batches = tf.data.Dataset.from_tensors(small_batch).repeat(2)
    found = detector.predict(batches, verbose=0)
    twice = {name: np.concatenate([value] * 2) for name, value in expected.items()}
    assert_close(found, twice)


@pytest.mark.parametrize("as_pair", [False, True], ids=["batch dict", "x and y"])
def test_fit_takes_a_step_and_shows_the_parts(small_detector, small_batch, as_pair):
    detector = small_detector()
    targets = {k: small_batch[k] for k in ("boxes", "labels", "image_size")}
    expected = contracts.to_numpy(
        detector.compute_losses(detector(small_batch["images"]), targets)
    )
    before = contracts.to_numpy(detector.trainable_variables)
    detector.compile(keras.optimizers.SGD(1e-3), run_eagerly=as_pair)
    if as_pair:
        history = detector.fit(small_batch["images"], targets, batch_size=2, verbose=0)
    else:
        history = detector.fit(small_batch, batch_size=2, verbose=0)
    logs = {name: values[0] for name, values in history.history.items()}
    assert set(logs) == {"loss", *PARTS, "num_positives"}
    for name in PARTS:
        assert logs[name] == pytest.approx(expected[name], rel=1e-4)
    assert logs["loss"] == pytest.approx(sum(expected.values()), rel=1e-4)
    assert logs["num_positives"] > 0
    after = contracts.to_numpy(detector.trainable_variables)
    # Scales of levels without objects and the like move by less than float32 shows.
    moved = [np.any(a != b) for a, b in zip(before, after, strict=True)]
    assert sum(moved) > len(moved) // 2


def test_a_compiled_detector_trains_on_after_loading(
    tmp_path, small_detector, small_batch
):
    detector = small_detector()
    detector.compile(keras.optimizers.SGD(1e-3, momentum=0.9), run_eagerly=True)
    detector.fit(small_batch, verbose=0)
    detector.save(tmp_path / "detector.keras")
    loaded = keras.saving.load_model(tmp_path / "detector.keras")
    loaded.run_eagerly = True
    logs = [
        model.fit(small_batch, epochs=2, verbose=0).history["loss"]
        for model in (detector, loaded)
    ]
    np.testing.assert_allclose(logs[0], logs[1], rtol=1e-5)


@on_tensorflow
@pytest.mark.parametrize(
    ("kind", "parts"),
    # FoveaBox's divisor counts the images of all replicas, too.
    [("vfnet", PARTS), ("foveabox", ("class_loss", "box_loss"))],
)
def test_two_replicas_have_the_gradients_and_metrics_of_one(tmp_path, kind, parts):
    """One global batch whose second half has no objects at all."""
    script = pathlib.Path(__file__).parent / "mirrored_step.py"
    root = str(script.parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, script, tmp_path / "steps.npz", kind]
    subprocess.run(command, env=environment, check=True)
    with np.load(tmp_path / "steps.npz") as steps:
        names = [key.removeprefix("one/") for key in steps if key.startswith("one/")]
        assert {f"logs/{part}" for part in (*parts, "loss", "num_positives")} <= set(
            names
        )
        assert steps["one/logs/num_positives"] > 0
        for name in names:
            one, two = steps[f"one/{name}"], steps[f"two/{name}"]
            if name.startswith("logs/"):
                np.testing.assert_allclose(two, one, rtol=1e-5, err_msg=name)
            else:
                contracts.assert_close_to_max(two, one, 1e-3)


WRONG_SETTINGS = [
    ("score_threshold", 1.5),
    ("nms_iou_threshold", -0.1),
    ("nms_iou_threshold", float("nan")),
    ("candidates_per_level", 0),
    ("max_detections", 0),
    ("max_detections", -3),
    ("nms", "softer"),
    ("soft_nms_sigma", 0.0),
    ("soft_nms_min_score", -0.1),
]


@pytest.mark.backend
def test_settings_that_make_no_sense_are_refused_by_their_names(small_detector):
    images = np.zeros((1, 64, 64, 3), "float32")
    for name, value in WRONG_SETTINGS:
        with pytest.raises(ValueError, match=f"`{name}` must be"):
            small_detector(**{name: value})
        detector = small_detector()
        with pytest.raises(ValueError, match=f"`{name}` must be"):
            detector.detect(images, **{name: value})
        setattr(detector, name, value)
        with pytest.raises(ValueError, match=f"`{name}` must be"):
            detector.detect(images)


def test_a_class_loss_of_probabilities_is_refused(small_detector):
    with pytest.raises(ValueError, match="focal_loss with from_logits=False"):
        small_detector(class_loss=FocalLoss(from_logits=False))
