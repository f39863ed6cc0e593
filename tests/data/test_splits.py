import pytest

from vfnet_tf.data.splits import by_split, split_named


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", "train"),
        ("TRAIN", "train"),
        ("Training", "train"),
        ("train2017", "train"),
        ("train_2017", "train"),
        ("val", "val"),
        ("valid", "val"),
        ("Validation", "val"),
        ("VALIDATION", "val"),
        ("val2014", "val"),
        (" test ", "test"),
        ("testing", "test"),
        ("trainval", None),
        ("test-dev2017", None),
        ("train20177", None),
        ("value", None),
        ("default", None),
        ("", None),
    ],
)
def test_a_name_stands_for_a_split_in_any_case_and_with_a_year(name, split):
    assert split_named(name) == split


def test_the_plainest_name_of_a_split_comes_first():
    names = ["val2017", "Validation", "test", "valid", "x", "val", "Train"]
    assert by_split(names) == {
        "train": ["Train"],
        "val": ["val", "valid", "val2017", "Validation"],
        "test": ["test"],
    }
    assert list(by_split([("test", 1), ("train", 2)], lambda pair: pair[0])) == [
        "train",
        "test",
    ]
