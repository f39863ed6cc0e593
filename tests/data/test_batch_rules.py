import numpy as np
import pytest

from tests.data.batch_rules import check_batch

BATCH = {
    "images": np.zeros((1, 32, 64, 3), "float32"),
    "boxes": np.array([[[0, 0, 40, 20], [0, 0, 0, 0]]], "float32"),
    "labels": np.array([[1, -1]], "int32"),
    "image_size": np.array([[20, 40]], "float32"),
    "scale": np.array([[0.5, 0.5]], "float32"),
    "image_id": np.array([3], "int64"),
}


@pytest.mark.parametrize(
    "changes",
    [
        {"images": np.zeros((1, 32, 64, 3), "uint8")},
        {"images": np.zeros((1, 32, 64, 1), "float32")},
        {"images": np.full((1, 32, 64, 3), np.nan, "float32")},
        {"image_size": np.array([[20, 65]], "float32")},
        {"image_size": np.array([[19, 40]], "float32")},
        {"scale": np.array([[0.5, 0]], "float32")},
        {"labels": np.array([[2, -1]], "int32")},
        {"labels": np.array([[-2, -1]], "int32")},
        {"labels": np.array([[-1, -1]], "int32")},
        {"boxes": np.ones((1, 2, 4), "float32")},
        {"boxes": np.array([[[2, 0, 2, 9], [0] * 4]], "float32")},
        {"boxes": np.array([[[0, 0, np.nan, 9], [0] * 4]], "float32")},
        {"image_id": np.array([3, 4], "int64")},
    ],
)
def test_a_good_batch_passes_and_a_bad_one_does_not(changes):
    check_batch(BATCH, num_classes=2)
    with pytest.raises(AssertionError):
        check_batch({**BATCH, **changes}, num_classes=2)


def test_a_missing_key_is_named():
    with pytest.raises(KeyError, match="labels"):
        check_batch({name: BATCH[name] for name in BATCH if name != "labels"})
