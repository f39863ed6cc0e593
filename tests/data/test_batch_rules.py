import numpy as np
import pytest

from tests.data.batch_rules import check_batch


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


def test_a_good_batch_passes():
    check_batch(make_batch(), num_classes=2)


def test_a_missing_key_is_named():
    batch = make_batch()
    del batch["labels"]
    with pytest.raises(ValueError, match="must have the keys .*'labels'"):
        check_batch(batch)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"images": np.zeros((1, 32, 64, 3), "uint8")}, "must be float32"),
        ({"images": np.zeros((1, 32, 64, 1), "float32")}, r"\[B=1, H=32, W=64, 3\]"),
        ({"images": np.full((1, 32, 64, 3), np.nan, "float32")}, "finite"),
        ({"image_size": np.array([[20, 65]], "float32")}, "canvas"),
        ({"scale": np.array([[0.5, 0]], "float32")}, "scale"),
        ({"labels": np.array([[2, -1]], "int32")}, "class below 2"),
        ({"labels": np.array([[-1, -1]], "int32")}, "Padding rows"),
        ({"boxes": np.ones((1, 2, 4), "float32")}, "Padding rows"),
        ({"image_size": np.array([[19, 40]], "float32")}, "y2 <= 19"),
        ({"boxes": np.array([[[2, 0, 2, 9], [0] * 4]], "float32")}, "x1 < x2"),
        ({"boxes": np.array([[[0, 0, np.nan, 9], [0] * 4]], "float32")}, r"boxes\[0\]"),
        ({"image_id": np.array([3, 4], "int64")}, "B=1"),
    ],
)
def test_a_bad_batch_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        check_batch(make_batch(**changes), num_classes=2)
