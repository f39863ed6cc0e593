"""Keras's own methods work on every backend, for each family of detectors."""

import keras
import numpy as np
import pytest

from tests import contracts
from tests.conftest import tiny_model
from vfnet_tf.backbones import KerasBackbone
from vfnet_tf.detectors import RepPoints, RetinaNet, VFNet
from vfnet_tf.detectors.input_checks import TARGET_KEYS
from vfnet_tf.heads import DenseHead, RepPointsHead, VFNetHead
from vfnet_tf.necks import FPN

LEVELS = ("P3", "P4")
KINDS = {
    "vfnet": (VFNet, lambda: VFNetHead(3, 32, 0, levels=LEVELS)),
    "retinanet": (
        RetinaNet,
        lambda: DenseHead(3, 32, 0, anchors_per_cell=2, levels=LEVELS),
    ),
    "reppoints": (RepPoints, lambda: RepPointsHead(3, 32, 0, levels=LEVELS)),
}


def build(kind):
    cls, head = KINDS[kind]
    settings = {"max_detections": 5, "score_threshold": 0.0}
    if kind == "retinanet":
        settings.update(octaves=1, ratios=(0.5, 2.0))
    backbone = KerasBackbone(tiny_model(), ("c3", "c4_bn", "c5"))
    return cls(backbone, FPN(8, ("C3", "C4"), LEVELS), head(), **settings)


@pytest.mark.backend
@pytest.mark.parametrize("kind", KINDS)
def test_training_prediction_and_files_work(kind, small_batch, tmp_path):
    keras.utils.set_random_seed(5)
    detector = build(kind)
    images = small_batch["images"]
    targets = {name: small_batch[name] for name in TARGET_KEYS}
    detector.compile(keras.optimizers.SGD(1e-3, momentum=0.9))

    expected = contracts.to_numpy(detector.detect(images))
    found = detector.predict(images, batch_size=2, verbose=0)
    sized = detector.predict(
        {"images": images, "image_size": small_batch["image_size"]}, verbose=0
    )
    assert set(found) == set(sized) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-4)
    # Of the second image, whose size is smaller than the batch.
    assert np.all(sized["boxes"][1] <= np.array([90, 60, 90, 60]))

    before = detector.get_weights()
    first = detector.evaluate(
        images, targets, batch_size=2, verbose=0, return_dict=True
    )
    for old, new in zip(before, detector.get_weights(), strict=True):
        np.testing.assert_array_equal(new, old)
    history = detector.fit(images, targets, batch_size=2, epochs=2, verbose=0).history
    assert set(history) == {"loss", "num_positives", *detector.loss_names}
    np.testing.assert_allclose(history["loss"][0], first["loss"], rtol=1e-4)
    assert history["loss"][1] < history["loss"][0]

    path = tmp_path / "detector.keras"
    detector.save(path)
    loaded = keras.saving.load_model(path)
    assert loaded.head.get_config() == detector.head.get_config()
    assert loaded.neck.get_config() == detector.neck.get_config()
    assert (loaded.max_detections, loaded.score_threshold) == (5, 0.0)
    assert int(loaded.optimizer.iterations) == 2
    expected = contracts.to_numpy(detector.detect(images))
    for name, value in contracts.to_numpy(loaded.detect(images)).items():
        np.testing.assert_array_equal(value, expected[name])
