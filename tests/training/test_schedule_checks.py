import re

import numpy as np
import pytest

from vfnet_tf.config import Config, override
from vfnet_tf.data.dataset import DetectionDataset, ImageRecord, ReadReport
from vfnet_tf.training.schedule_checks import find_faults


def dataset(count=64, side=40.0, labels=(0, 1)):
    """Images of 200x320, each with one box of `side` of each label."""
    records = [
        ImageRecord(
            image_id=number,
            path=f"{number}.jpg",
            height=200,
            width=320,
            boxes=np.tile(np.float32([10, 10, 10 + side, 90]), (len(labels), 1)),
            labels=np.array(labels, "int32"),
            annotation_ids=np.arange(len(labels)),
        )
        for number in range(count)
    ]
    return DetectionDataset(records, ("a", "b"), (1, 2), "a.json", ".", ReadReport(""))


def config(**changes):
    values = {
        "data__image_size": (400, 640),
        "training__batch_size": 8,
        "training__epochs": 10,
        "training__warmup_steps": 5,
        "training__drop_epochs": (7.0, 9.0),
    }
    return override(Config("mine"), **{**values, **changes})


def test_a_schedule_that_fits_has_no_fault():
    assert find_faults(config(), dataset(), 8) == []


@pytest.mark.parametrize(
    ("changes", "data", "fault", "remedy"),
    [
        (
            {"training__warmup_steps": 80},
            {},
            "warm-up takes 80 .* has 80:",
            "--warmup-steps 8$",
        ),
        (
            {"training__accumulate_steps": 2, "training__warmup_steps": 40},
            {},
            "takes 40 .* has 40",
            "--epochs",
        ),
        (
            {"training__warmup_steps": 80, "training__schedule": "cosine"},
            {},
            "warm-up takes 80",
            "--warmup-steps 8$",
        ),
        (
            {"training__drop_epochs": (7.0, 10.0)},
            {},
            "drops after epoch 10.0",
            "--schedule cosine",
        ),
        ({}, {"count": 7}, "takes 8 images, the data have 7:", "--batch-size"),
        (
            {
                "training__scale_learning_rate": False,
                "training__batch_size": 1,
            },
            {},
            "rate 0.01 for 1 image an update is far from 0.000625",
            "--scale-learning-rate",
        ),
        (
            {"training__base_learning_rate": 1.0},
            {},
            "rate 0.5 for 8 images",
            "--learning-rate .for 16 images",
        ),
        (
            {},
            {"side": 3.9},
            "100% of the objects .* 8 pixels at 400x640",
            "--image-size",
        ),
        ({}, {"labels": (1,)}, "^1 class has no object .*a", "annotations"),
    ],
)
def test_a_schedule_that_cannot_work_says_why_and_what_to_do(
    changes, data, fault, remedy
):
    (found,) = find_faults(config(**changes), dataset(**data), 8)
    assert re.search(fault, found), found
    assert re.search(remedy, found), found
