"""One small exported detector, and images of several sizes, formats, orientations."""

import keras
import pytest

from tests import tiny_run
from tests.conftest import build_small

# A SavedModel is written on the TensorFlow backend. (`pytest.skip` would be an error
# here: a conftest is no test module.)
collect_ignore_glob = []
if keras.backend.backend() != "tensorflow":
    collect_ignore_glob = ["*test_*.py"]


@pytest.fixture(scope="session")
def config():
    return tiny_run.tiny_config()


@pytest.fixture(scope="session")
def detector(config):
    return tiny_run.tiny_detector(config)


@pytest.fixture(scope="session")
def exported(tmp_path_factory, detector, config):
    """The directory of a SavedModel; do not change it."""
    from vfnet_tf.export.saved_model.exporter import export_saved_model

    directory = tmp_path_factory.mktemp("export") / "model"
    return export_saved_model(detector, directory, config=config)


@pytest.fixture(scope="session")
def loaded(exported):
    import tensorflow as tf

    return tf.saved_model.load(str(exported))


@pytest.fixture(scope="session")
def soft_detector():
    """A very small VFNet with soft-NMS."""
    detector = build_small(
        "vfnet", nms="soft_linear", nms_iou_threshold=0.3, max_detections=20
    )
    detector.head.class_predictor.conv.bias.assign([-1.0, -2.0, -1.5])
    return detector


@pytest.fixture(scope="session")
def soft_exported(tmp_path_factory, soft_detector):
    """Its SavedModel for images of 64x96, in the other box format, with a low limit."""
    from vfnet_tf.export.saved_model.exporter import export_saved_model

    return export_saved_model(
        soft_detector,
        tmp_path_factory.mktemp("soft") / "model",
        image_size=(64, 96),
        keep_ratio=False,
        max_pixels=10**6,
        max_batch=50,
        box_format="yxyx_normalized",
    )


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """Five paths: grey, turned by EXIF, 16 bits, RGBA and plain."""
    folder = tmp_path_factory.mktemp("images")
    tiny_run.write_images(folder)
    return [folder / name for name in ("b.jpg", "f.jpg", "c.png", "d.png", "a.jpg")]
