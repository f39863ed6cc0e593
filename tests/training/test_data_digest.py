import dataclasses
import shutil

import numpy as np
import pytest

from tests.training.test_schedule_checks import dataset
from vfnet_tf.data.dataset import DetectionDataset
from vfnet_tf.training.data_digest import data_digest, find_changes


def rebuilt(data, records, class_names=("a", "b")):
    return DetectionDataset(
        records, class_names, data.category_ids, "a.json", ".", data.report
    )


@pytest.fixture
def data(tmp_path):
    data = dataset(3)
    records = []
    for record in data.records:
        path = tmp_path / record.path
        path.write_bytes(record.path.encode() * 5000)
        records.append(dataclasses.replace(record, path=str(path)))
    return rebuilt(data, records)


def with_record(data, **changes):
    first, *others = data.records
    return rebuilt(data, [dataclasses.replace(first, **changes), *others])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: data.subset(2), "there are 2 images, and were 3"),
        (lambda data: with_record(data, height=201), "the sizes of the images changed"),
        (
            lambda data: with_record(data, boxes=data.records[0].boxes + 1),
            "the boxes or their labels changed",
        ),
        (
            lambda data: with_record(data, labels=data.records[0].labels[::-1]),
            "the boxes or their labels changed",
        ),
        (
            lambda data: rebuilt(data, data.records, ("a", "c")),
            "the classes changed",
        ),
    ],
)
def test_a_change_is_said(data, change, said):
    before = data_digest(data)
    assert find_changes(before, data_digest(data)) == []
    assert find_changes(before, data_digest(change(data))) == [said]


def test_other_pixels_in_a_file_of_the_same_size_are_noticed(data, tmp_path):
    before = data_digest(data)
    path = tmp_path / "0.jpg"
    content = path.read_bytes()
    path.write_bytes(content)  # another time, the same pixels
    assert find_changes(before, data_digest(data)) == []
    path.write_bytes(content[:-1] + b"?")
    said = ["the content of the image files changed"]
    assert find_changes(before, data_digest(data)) == said


def test_a_moved_folder_is_no_change(data, tmp_path):
    before = data_digest(data)
    moved = tmp_path / "moved"
    moved.mkdir()
    records = []
    for record in data.records:
        path = moved / record.path.rpartition("/")[2]
        shutil.copy(record.path, path)
        records.append(dataclasses.replace(record, path=str(path)))
    assert find_changes(before, data_digest(rebuilt(data, records))) == []


def test_a_state_of_an_older_version_is_not_compared():
    assert find_changes({}, {"images": 3}) == []
    assert data_digest(None) == {}
    assert np.iinfo("int64").max > max(data_digest(dataset(2)).values())
