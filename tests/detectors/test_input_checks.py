"""Wrong inputs are refused by name and with a remedy; docs/mistakes.md lists them."""

import re
import warnings

import keras
import numpy as np
import pytest

from tests.conftest import build_small
from tests.contracts import on_tensorflow
from tests.golden import make_weights
from vfnet_tf.data.normalization import TORCHVISION, Normalization
from vfnet_tf.detectors.input_checks import (
    BatchChecker,
    check_images,
    check_target_values,
    find_targets,
    warn_of_unnormalized,
)

BOXES = np.array(
    [[[4, 6, 40, 50], [50, 10, 90, 60]], [[20, 8, 60, 40], [0, 0, 0, 0]]], "float32"
)
LABELS = np.array([[0, 2], [1, -1]], "int32")
SIZES = np.array([[64, 96], [60, 90]], "float32")


def as_xywh(boxes):
    return np.concatenate([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], axis=-1)


def batch(**changes):
    images = make_weights.make_image(3, 2, 64, 96)
    targets = {"boxes": BOXES, "labels": LABELS, "image_size": SIZES}
    return {"images": images, **targets, **changes}


#: mistake -> what is given instead, the argument that is named, what tells the mistake
VALUE_MISTAKES = {
    "labels from 1": ({"labels": LABELS + 1}, "`labels`", "label 3"),
    "a class too many": (
        {"labels": np.array([[0, 7], [1, -1]])},
        "`labels`",
        "label 7",
    ),
    "another padding": (
        {"labels": np.array([[0, 2], [1, -2]])},
        "`labels`",
        "label -2",
    ),
    "padding with a label": (
        {"labels": np.array([[0, 2], [1, 0]])},
        "`boxes`",
        "label must be -1",
    ),
    "xywh": ({"boxes": as_xywh(BOXES)}, "`boxes`", "width, height"),
    "yxyx": ({"boxes": BOXES[..., [1, 0, 3, 2]]}, "`boxes`", "y1, x1, y2, x2"),
    "fractions": ({"boxes": BOXES / [96, 64, 96, 64]}, "`boxes`", "fractions"),
    "boxes of the original image": ({"boxes": BOXES * 4}, "`boxes`", "outside"),
    "not finite": ({"boxes": np.where(BOXES == 50, np.nan, BOXES)}, "`boxes`", "nan"),
    "width before height": (
        {"image_size": SIZES[:, ::-1]},
        "`image_size`",
        r"\[96.0, 64.0\] for images of \[64, 96\]",
    ),
}


@pytest.mark.parametrize("mistake", VALUE_MISTAKES)
def test_wrong_values_are_refused_by_the_arguments_name(mistake):
    changes, argument, sign = VALUE_MISTAKES[mistake]
    with pytest.raises(ValueError, match=f"{argument}.*{sign}"):
        BatchChecker(3).checked(batch(**changes), None)


@on_tensorflow
@pytest.mark.parametrize("mistake", ["labels from 1", "xywh"])
def test_a_dataset_is_checked_batch_by_batch(mistake):
    import tensorflow as tf

    changes, argument, sign = VALUE_MISTAKES[mistake]
    both = [batch(), batch(**changes)]
    stacked = {key: np.stack([b[key] for b in both]) for key in both[0]}
    for dataset in (
        tf.data.Dataset.from_tensor_slices(stacked),
        tf.data.Dataset.from_tensor_slices((stacked["images"], stacked)),
    ):
        checker = BatchChecker(3)
        checked = checker.checked(dataset, None)
        assert checked.element_spec == dataset.element_spec
        assert checked.cardinality() == 2
        batches = iter(checked)
        first = next(batches)
        targets = first[1] if isinstance(first, tuple) else first
        np.testing.assert_array_equal(targets["boxes"], BOXES)
        with pytest.raises(tf.errors.OpError):
            next(batches)
        assert re.search(f"{argument}.*{sign}", str(checker.error))


def test_generators_and_keras_datasets_are_checked_once():
    bad = batch(labels=LABELS + 1)

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 2

        def __getitem__(self, place):
            return (bad,)

    with pytest.raises(ValueError, match="Subtract 1"):
        BatchChecker(3).checked(Batches(), None)
    with pytest.raises(ValueError, match="Subtract 1"):
        next(BatchChecker(3).checked(((bad,) for _ in range(2)), None))
    good = BatchChecker(3).checked(((batch(), None) for _ in range(2)), None)
    assert len(list(good)) == 2


def test_right_batches_pass_as_they_are():
    given = batch()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert BatchChecker(3).checked(given, None) is given
        assert BatchChecker(3).checked(given["images"], given) is given["images"]
        # Overhanging boxes, one of a pixel, none at all.
        boxes = np.array([[[-5, 50, 30, 66], [0, 0, 1, 1]]], "float32")
        check_target_values(boxes, [[0, 2]], [[64, 96]], 3)
        check_target_values(np.zeros((1, 0, 4)), np.zeros((1, 0)), [[64, 96]], 3)
        check_target_values(BOXES[1:], [[-1, -1]], [[64, 96]], 3)


@pytest.mark.parametrize(
    ("images", "remedy"),
    [
        (batch()["images"][0], r"image\[None\].*\.batch"),
        (np.zeros((2, 3, 64, 96)), r"np\.transpose\(images, \(0, 2, 3, 1\)\)"),
        (np.zeros((2, 64, 96, 1)), r"shape \(2, 64, 96, 1\)"),
    ],
    ids=["no batch", "channels first", "grey"],
)
def test_images_of_another_shape_are_refused_with_the_remedy(images, remedy):
    with pytest.raises(ValueError, match=f"`images` must be.*{remedy}"):
        check_images(images)
    check_images(keras.KerasTensor((None, None, None, 3)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"image_size": None},
            r"`image_size`.*Received: \['boxes', 'images', 'labels'\]",
        ),
        ({"boxes": BOXES[0]}, r"`boxes`.*\[B, M, 4\].*batched"),
        ({"labels": np.eye(3)[LABELS]}, "`labels`.*not one-hot"),
        ({"boxes": BOXES[:, :1]}, r"`labels`.*\(2, 2\), B=2, M=1"),
        ({"boxes": [BOXES[0], BOXES[1][:1]]}, "`boxes`.*ragged"),
        (
            {"labels": np.array([LABELS[0], LABELS[1][:1]], dtype=object)},
            "`labels`.*ragged",
        ),
    ],
)
def test_wrong_forms_of_targets_are_refused_by_name(changes, message):
    targets = {k: v for k, v in batch(**changes).items() if v is not None}
    with pytest.raises(ValueError, match=message):
        find_targets(targets, None)
    with pytest.raises(ValueError, match="Received: a tuple of 2"):
        find_targets(batch()["images"], (BOXES, LABELS))


def test_a_batch_dict_without_images_is_refused_with_its_keys():
    given = batch()
    given["image"] = given.pop("images")
    with pytest.raises(ValueError, match=r"'images'. Received: \['boxes', 'image'"):
        BatchChecker(3).checked(given, None)


@on_tensorflow
def test_ragged_tensors_are_refused_before_anything_is_traced():
    import tensorflow as tf

    ragged = tf.RaggedTensor.from_row_lengths(BOXES.reshape(-1, 4)[:3], [2, 1])
    dataset = tf.data.Dataset.from_tensors(batch(boxes=ragged))
    for given in (batch(boxes=ragged), dataset):
        with pytest.raises(ValueError, match="`boxes`.*to_tensor"):
            BatchChecker(3).checked(given, None)
    with pytest.raises(ValueError, match="`images`.*batch"):
        BatchChecker(3).checked(tf.data.Dataset.from_tensor_slices(batch()), None)


@pytest.mark.parametrize(
    ("images", "value_range"),
    [
        (np.linspace(0, 1, 300).reshape(1, 10, 10, 3), "0..1"),
        (np.linspace(3, 255, 300).reshape(1, 10, 10, 3), "0..255"),
        (np.full((1, 10, 10, 3), 90, "uint8"), "0..255"),
    ],
)
def test_pixels_that_were_not_normalised_give_a_warning(images, value_range):
    with pytest.warns(UserWarning, match=rf"{value_range}.*TORCHVISION.*check_inputs"):
        warn_of_unnormalized(images)
    checker = BatchChecker(3)
    given = batch(images=np.full((2, 64, 96, 3), images.max()))
    with pytest.warns(UserWarning, match="not normalised"):
        checker.checked(given, None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checker.checked(given, None)  # said once
        warn_of_unnormalized(np.zeros((1, 4, 4, 3)))
        warn_of_unnormalized(batch()["images"])
        bright = np.linspace(130, 255, 300).reshape(1, 10, 10, 3)
        warn_of_unnormalized(TORCHVISION(bright))
        warn_of_unnormalized(
            Normalization((103.939, 116.779, 123.68), (1, 1, 1))(bright)
        )


@pytest.fixture(scope="module")
def detector():
    return build_small("vfnet")


def test_fit_gives_the_mistake_and_not_what_hid_it(detector):
    detector.compile("sgd", run_eagerly=True)
    bad = batch(labels=LABELS + 1)
    with pytest.raises(ValueError, match="`labels` must be in 0..2"):
        detector.fit(bad, verbose=0)
    with pytest.raises(ValueError, match="Training needs targets"):
        detector.fit(bad["images"], verbose=0)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        dataset = tf.data.Dataset.from_tensors(bad)
        with pytest.raises(ValueError, match=r"^`labels` must be in 0\.\.2"):
            detector.fit(dataset, shuffle=False, verbose=0)


def test_the_first_eager_call_checks_values(detector):
    images = batch()["images"]
    outputs = {"points": None}  # values are checked first
    with pytest.raises(ValueError, match="Subtract 1"):
        detector.compute_losses(outputs, batch(labels=LABELS + 1))
    other = build_small("vfnet", max_detections=3)
    with pytest.warns(UserWarning, match="not normalised"):
        other.detect(np.abs(images) * 100, score_threshold=0.9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other.detect(np.abs(images) * 100, score_threshold=0.9)
        detector.check_inputs = False
        detector.detect(np.abs(images) * 100, score_threshold=0.9)
    del detector.check_inputs


def test_weights_of_another_number_of_classes_are_refused_by_it(detector, tmp_path):
    path = tmp_path / "three.weights.h5"
    detector.save_weights(path)
    with pytest.raises(ValueError, match="num_classes=3.*num_classes=5"):
        build_small("vfnet", num_classes=5).load_weights(path)
    with pytest.raises(ValueError, match="could not be loaded"):
        build_small("vfnet_raw").load_weights(path)
