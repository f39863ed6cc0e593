import dataclasses
import json
import shutil

import numpy as np
import pytest

from tests import contracts, tiny_run
from tests.export import image_bytes as files
from vfnet_tf.export.saved_model import verification
from vfnet_tf.export.saved_model.exporter import export_saved_model, read_metadata
from vfnet_tf.export.saved_model.verification import verify_saved_model


def test_a_fresh_process_gives_the_detections_of_detect_in_batches_of_1_2_5(
    exported, detector, images
):
    report = verify_saved_model(exported, detector, images)
    assert report["num_batches"] == 5 + 3 + 1
    assert report["num_detections"] > 100
    assert (report["box_difference"], report["score_difference"]) == (0, 0)


@pytest.mark.slow
def test_soft_nms_and_the_other_box_format_are_equal_too(
    soft_exported, soft_detector, images
):
    report = verify_saved_model(soft_exported, soft_detector, images)
    assert report["num_detections"] > 100
    assert (report["box_difference"], report["score_difference"]) == (0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("signature", ["tf_example", "image_tensor"])
def test_other_signatures_are_equal_in_a_fresh_process(
    soft_exported, soft_detector, tmp_path, signature
):
    # Of one size and upright, which `image_tensor` needs.
    paths = [tmp_path / f"{seed}.png" for seed in range(5)]
    for seed, path in enumerate(paths):
        path.write_bytes(files.encode(tiny_run.picture(seed, 90, 140)))
    batches = [paths[:1], paths[:2], paths]
    detect = verification.PythonDetect(soft_detector, read_metadata(soft_exported))
    results = verification.detect_in_fresh_process(
        soft_exported, batches, signature=signature
    )
    for batch, found in zip(batches, results, strict=True):
        assert not found["status"].any()
        for name, value in detect(batch).items():
            np.testing.assert_array_equal(found[name], value)


def test_an_image_that_the_model_refuses_is_an_error(exported, detector, monkeypatch):
    answer(monkeypatch, status=[1])
    with pytest.raises(ValueError, match=r"Received: `status` \[1\] for film\.gif"):
        verify_saved_model(exported, detector, ["film.gif"])


def test_a_model_of_other_weights_or_another_config_is_named(
    exported, detector, config, soft_detector
):
    verification.check_origin(exported, detector, config)
    with pytest.raises(ValueError, match="`weights_sha256` of the SavedModel must be"):
        verification.check_origin(exported, soft_detector, config)
    other = dataclasses.replace(config, class_names=("one", "two", "three"))
    with pytest.raises(ValueError, match="`config_sha256` of the SavedModel must be"):
        verification.check_origin(exported, detector, other)


def test_python_detect_pads_a_mixed_batch_to_the_sizes_worked_out_by_hand(
    exported, detector, images
):
    # Into 128x160: 200x140 -> 160x112, 150x120 -> 160x128, 64x80 -> 128x160.
    python = verification.PythonDetect(detector, read_metadata(exported))
    batch, image_size, scale, original_size = python.batch(images[:3])
    assert batch.shape == (3, 160, 160, 3)
    assert image_size.tolist() == [[160, 112], [160, 128], [128, 160]]
    assert original_size.tolist() == [[200, 140], [150, 120], [64, 80]]
    np.testing.assert_allclose(scale, image_size / original_size)
    assert not batch[0, :, 112:].any() and batch[0, :, 111].any()
    assert not batch[2, 128:].any() and batch[2, 127].any()


def detections(**changes):
    """Two detections in one image, padded to three."""
    values = {
        "detection_boxes": [[[1, 2, 30, 40], [5, 6, 70, 80], [0, 0, 0, 0]]],
        "detection_scores": [[0.9, 0.2, 0.0]],
        "detection_classes": [[1, 0, -1]],
        "num_detections": [2],
    }
    return {name: np.array(value) for name, value in {**values, **changes}.items()}


def answer(monkeypatch, **changes):
    """`detections` as the detector's and, with changes, as the SavedModel's."""
    monkeypatch.setattr(
        verification,
        "detect_in_fresh_process",
        lambda directory, batches: [detections(**changes) for _ in batches],
    )
    monkeypatch.setattr(
        verification.PythonDetect, "__call__", lambda self, paths: detections()
    )


@pytest.mark.parametrize(
    "changes, rule",
    [
        ({"num_detections": [1]}, r"`num_detections` .* \[1\] in place of \[2\]"),
        ({"detection_classes": [[1, 2, -1]]}, "`detection_classes`"),
        ({"detection_scores": [[0.9, 0.201, 0.0]]}, "scores up to 0.001"),
        (
            {"detection_boxes": [[[1, 2, 30.5, 40], [5, 6, 70, 80], [0, 0, 0, 0]]]},
            "boxes up to 0.5 pixels",
        ),
        ({"detection_scores": [[float("nan"), 0.2, 0.0]]}, "scores up to nan"),
    ],
)
def test_a_difference_is_an_error_that_names_the_image(
    exported, detector, monkeypatch, changes, rule
):
    answer(monkeypatch, **changes)
    with pytest.raises(ValueError, match=rf"{rule}.* for street\.jpg"):
        verify_saved_model(exported, detector, ["street.jpg"])


def test_the_report_counts_batches_and_detections(exported, detector, monkeypatch):
    answer(monkeypatch, detection_scores=[[0.9, 0.200004, 0.0]])
    report = verify_saved_model(exported, detector, ["a", "b", "c"])
    # Three batches of 1, two of 2; 5 is more than all images.
    assert (report["num_batches"], report["num_detections"]) == (5, 10)
    assert report["box_difference"] == 0
    np.testing.assert_allclose(report["score_difference"], 4e-6, rtol=1e-3)


def test_a_damaged_model_is_reported_with_the_output_of_the_process(
    exported, detector, images, tmp_path
):
    damaged = tmp_path / "model"
    shutil.copytree(exported, damaged)
    (damaged / "saved_model.pb").write_bytes(b"not a graph")
    with pytest.raises(ValueError, match="with exit status 1") as caught:
        verify_saved_model(damaged, detector, images[:1])
    assert "saved_model.pb" in str(caught.value)


def test_no_images_and_no_export_are_refused(exported, detector, images, tmp_path):
    with pytest.raises(ValueError, match="at least one image"):
        verify_saved_model(exported, detector, [])
    with pytest.raises(ValueError, match="no assets/metadata.json"):
        read_metadata(tmp_path)


@pytest.mark.slow
def test_a_mixed_precision_detector_serves_in_that_precision(tmp_path, config, images):
    detector = contracts.with_policy(
        "mixed_bfloat16", lambda: tiny_run.tiny_detector(config)
    )
    directory = export_saved_model(detector, tmp_path / "model", config=config)
    text = (directory / "assets" / "metadata.json").read_text()
    assert json.loads(text)["precision"] == "mixed_bfloat16"
    report = verify_saved_model(directory, detector, images, batch_sizes=(2,))
    assert report["num_detections"] > 50
