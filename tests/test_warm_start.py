import numpy as np
import pytest

from tests.contracts import to_numpy
from tests.tiny_run import CLASS_NAMES, tiny_config, tiny_detector
from vfnet_tf.builder import build_detector
from vfnet_tf.config import load_config, override, save_config
from vfnet_tf.warm_start import load_run_weights


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run directory of VFNet with the classes disc, square, star; its detector."""
    folder = tmp_path_factory.mktemp("run")
    detector = tiny_detector(tiny_config())
    detector.save_weights(folder / "best.weights.h5")
    save_config(tiny_config(), folder / "config.json")
    return folder / "best.weights.h5", detector


def with_classes(*names, **changes):
    return build_detector(
        override(
            tiny_config(), model__num_classes=len(names), class_names=names, **changes
        )
    )


def classifier(detector):
    return to_numpy(detector.head.class_predictor.weights)


def test_the_same_classes_give_the_same_weights(run):
    path, source = run
    detector = with_classes(*CLASS_NAMES)
    load_run_weights(detector, path, CLASS_NAMES)
    for ours, theirs in zip(detector.weights, source.weights, strict=True):
        np.testing.assert_array_equal(to_numpy(ours), to_numpy(theirs))


def test_other_classes_take_all_weights_but_classifier_rows_of_other_names(run):
    path, source = run
    names = ("star", "moon", "disc", "sun")
    detector = with_classes(*names)
    fresh = classifier(detector)
    said = load_run_weights(detector, path, names)
    ids = {id(v) for v in detector.head.class_predictor.weights}
    for ours, theirs in zip(detector.weights, source.weights, strict=True):
        if id(ours) not in ids:
            np.testing.assert_array_equal(to_numpy(ours), to_numpy(theirs))
    loaded = zip(classifier(detector), fresh, classifier(source), strict=True)
    for ours, before, theirs in loaded:
        np.testing.assert_array_equal(ours[..., 0], theirs[..., 2])
        np.testing.assert_array_equal(ours[..., 2], theirs[..., 0])
        np.testing.assert_array_equal(ours[..., [1, 3]], before[..., [1, 3]])
    assert "knows 3 classes, this detector 4" in said
    assert "the rows of star, disc" in said


def test_as_many_other_classes_are_other_classes(run):
    path, source = run
    names = ("moon", "sun", "mars")
    detector = with_classes(*names)
    fresh = classifier(detector)
    said = load_run_weights(detector, path, names)
    for ours, before in zip(classifier(detector), fresh, strict=True):
        np.testing.assert_array_equal(ours, before)
    assert "the rows of" not in said


def test_rows_of_several_anchors_in_a_cell_are_copied(tmp_path):
    config = load_config("vfl_retinanet_r50_fpn_4x4_1x_coco")
    config = override(
        config,
        model__backbone__name="resnet18",
        model__neck_filters=32,
        model__head_filters=32,
        model__head_convs=1,
        model__num_classes=2,
        class_names=("cat", "dog"),
    )
    source = build_detector(config)
    source.head.class_predictor.weights[-1].assign(np.arange(18.0))
    source.save_weights(tmp_path / "best.weights.h5")
    save_config(config, tmp_path / "config.json")
    detector = build_detector(override(config, model__num_classes=3))
    names = ("cow", "dog", "hen")
    load_run_weights(detector, tmp_path / "best.weights.h5", names)
    bias = classifier(detector)[-1].reshape(9, 3)
    np.testing.assert_array_equal(bias[:, 1], np.arange(1.0, 18.0, 2.0))
    assert (bias[:, [0, 2]] < 0).all()  # the prior


def test_another_detector_is_refused_and_named(run):
    path, _ = run
    detector = with_classes("a", "b", model__head_filters=32)
    with pytest.raises(ValueError, match=r"Only the classifier .*Received: .*best"):
        load_run_weights(detector, path, ("a", "b"))
    detector = with_classes("a", "b", model__star=False, model__refine=False)
    with pytest.raises(ValueError, match="Received: "):
        load_run_weights(detector, path, ("a", "b"))
