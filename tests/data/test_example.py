import numpy as np
import pytest

from vfnet_tf.data.example import validate_batch, validate_example


def make_example(**changes):
    example = {
        "image": np.zeros((4, 6, 3), "uint8"),
        "boxes": np.array([[0, 1, 6, 4]], "float32"),
        "labels": np.array([2], "int32"),
        "image_id": np.int64(5),
    }
    return {**example, **changes}


def make_batch(**changes):
    batch = {
        "images": np.zeros((1, 32, 64, 3), "float32"),
        "boxes": np.array([[[0, 0, 40, 20], [0, 0, 0, 0]]], "float32"),
        "labels": np.array([[1, -1]], "int32"),
        "image_size": np.array([[20, 40]], "float32"),
        "scale": np.array([[0.5, 0.5]], "float32"),
        "image_id": np.array([3], "int64"),
    }
    return {**batch, **changes}


def test_good_ones_pass():
    validate_example(make_example(), num_classes=3)
    validate_batch(make_batch(), num_classes=2)


def test_an_example_without_boxes_passes():
    no_boxes = {"boxes": np.zeros((0, 4), "float32"), "labels": np.zeros(0, "int32")}
    validate_example(make_example(**no_boxes))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"image": np.zeros((4, 6, 3), "float32")}, "must be uint8"),
        ({"image": np.zeros((4, 6, 1), "uint8")}, r"\[h=4, w=6, 3\]"),
        ({"labels": np.array([1, 2], "int32")}, r"shape \[R=1\]"),
        ({"labels": np.array([3], "int32")}, r"in \[0, 3\)"),
        ({"labels": np.array([-1], "int32")}, r"in \[0, 3\)"),
        ({"boxes": np.array([[0, 1, 6.5, 4]], "float32")}, "x2 <= 6"),
        ({"boxes": np.array([[2, 1, 2, 4]], "float32")}, "x1 < x2"),
        ({"boxes": np.array([[0, 1, np.nan, 4]], "float32")}, r"boxes\[0\]"),
    ],
)
def test_a_bad_example_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        validate_example(make_example(**changes), num_classes=3)


def test_a_missing_key_is_named():
    example = make_example()
    del example["labels"]
    with pytest.raises(ValueError, match="must have the keys .*'labels'"):
        validate_example(example)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"images": np.full((1, 32, 64, 3), np.nan, "float32")}, "finite"),
        ({"image_size": np.array([[20, 65]], "float32")}, "canvas"),
        ({"scale": np.array([[0.5, 0]], "float32")}, "scale"),
        ({"labels": np.array([[2, -1]], "int32")}, "class below 2"),
        ({"labels": np.array([[-1, -1]], "int32")}, "Padding rows"),
        ({"boxes": np.ones((1, 2, 4), "float32")}, "Padding rows"),
        ({"image_size": np.array([[19, 40]], "float32")}, "y2 <= 19"),
        ({"image_id": np.array([3, 4], "int64")}, "B=1"),
    ],
)
def test_a_bad_batch_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        validate_batch(make_batch(**changes), num_classes=2)
