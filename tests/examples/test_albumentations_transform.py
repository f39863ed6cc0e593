import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from vfnet_tf.data.formats.coco import read_coco
from vfnet_tf.data.formats.readers import find_splits
from vfnet_tf.data.normalization import IDENTITY
from vfnet_tf.data.pipeline import build_pipeline
from vfnet_tf.data.synthetic import make_synthetic_dataset

PATH = Path(__file__).parents[2] / "examples" / "albumentations_transform.py"


@pytest.fixture(scope="module")
def example():
    return runpy.run_path(str(PATH))


def test_the_image_and_its_boxes_move_together(example):
    image = np.zeros((20, 40, 3), "uint8")
    image[5:15, 4:10] = 255
    given = {
        "image": tf.constant(image),
        "boxes": tf.constant([[4.0, 5, 10, 15]]),
        "labels": tf.constant([2]),
    }
    places = set()
    for seed in range(5):
        transform = tf.function(example["wrap"](example["Shift"]), autograph=False)
        moved = transform(given, tf.constant([1, seed]))
        x1, y1, x2, y2 = moved["boxes"].numpy()[0].astype(int)
        assert (moved["image"].numpy()[y1:y2, x1:x2] == 255).all()
        assert moved["image"].numpy().sum() == image.sum()
        assert moved["labels"].numpy().tolist() == [2]
        places.add(x1)
    assert len(places) > 1


def test_it_is_part_of_a_pipeline_whose_epochs_can_be_repeated(example, tmp_path):
    folder = make_synthetic_dataset(tmp_path / "data", num_train=4, num_val=1)
    dataset = read_coco(*find_splits(folder)["train"])

    def first_epoch():
        batches = build_pipeline(
            dataset,
            batch_size=2,
            training=True,
            image_size=(64, 80),
            normalization=IDENTITY,
            transforms=[example["wrap"](example["Shift"])],
        )
        return list(batches.as_numpy_iterator())

    for one, other in zip(first_epoch(), first_epoch(), strict=True):
        np.testing.assert_array_equal(one["images"], other["images"])
        np.testing.assert_array_equal(one["boxes"], other["boxes"])


def test_the_script_prints_boxes(example, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("VFNET_TF_CACHE", str(tmp_path))
    monkeypatch.setitem(
        example["main"].__globals__,
        "make_synthetic_dataset",
        lambda: make_synthetic_dataset(tmp_path / "data", num_train=4, num_val=1),
    )
    monkeypatch.setattr(sys, "argv", ["example"])
    example["main"]()
    assert capsys.readouterr().out.count("image ") == 2
