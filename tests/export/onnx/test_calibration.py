import pathlib

import keras
import pytest

from tests import tiny_run

if keras.backend.backend() != "tensorflow":
    pytest.skip("datasets are read on TensorFlow", allow_module_level=True)

from vfnet_tf.export.onnx import calibration


def names(paths):
    return [pathlib.Path(path).name for path in paths]


def folders(paths):
    return {pathlib.Path(path).parent.name for path in paths}


def test_training_images_of_a_dataset_are_chosen_evenly(tmp_path):
    data = tiny_run.write_coco(tmp_path / "data")
    every = calibration.find_images(data, 1000)
    assert folders(every) == {"val"} and len(every) == 7
    tiny_run.write_coco(data, "train")
    every = calibration.find_images(data, 1000)
    assert folders(every) == {"train"} and len(every) == 7
    assert calibration.find_images(data, 1) == every[:1]
    three = calibration.find_images(str(data), 3)
    assert three == [every[0], every[2], every[4]]


def test_images_of_a_folder_or_a_glob_need_no_annotations(tmp_path):
    tiny_run.write_images(tmp_path / "photos")
    found = calibration.find_images(tmp_path / "photos")
    assert names(found) == sorted(names(found))
    assert set(names(found)) >= {"a.jpg", "c.png"}
    assert names(calibration.find_images(f"{tmp_path}/photos/[ab].jpg")) == [
        "a.jpg",
        "b.jpg",
    ]


def test_what_holds_no_images_is_refused_with_the_formats(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("no image")
    with pytest.raises(ValueError, match=r"--data must be in one of the formats"):
        calibration.find_images(tmp_path / "notes")
    with pytest.raises(ValueError, match="--data must be an existing folder"):
        calibration.find_images(tmp_path / "absent")
