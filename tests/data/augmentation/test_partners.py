"""Augmentations in the pipeline: other images, epochs, resuming, replicas."""

import warnings

import numpy as np
import pytest
import tensorflow as tf

from tests.data.batch_rules import check_batch
from vfnet_tf.data.augmentation import CopyPaste, LargeScaleJitter, MixUp, Mosaic
from vfnet_tf.data.augmentation.partners import (
    count_partner_epochs,
    make_partner_loader,
)
from vfnet_tf.data.augmentation.presets import with_settings
from vfnet_tf.data.normalization import IDENTITY
from vfnet_tf.data.pipeline import build_pipeline

SIZES = [(48, 64), (64, 48), (48, 64), (40, 64), (64, 48), (48, 64), (50, 50), (48, 64)]
EVERYTHING = with_settings(
    "strong",
    {"MixUp": {"probability": 0.5}, "CopyPaste": {"from_partner": True}},
)


@pytest.fixture
def dataset(coco):
    for index, (height, width) in enumerate(SIZES):
        coco.image(height, width)
        for box in range(index):
            coco.box([3 * box, 3, 10, 20], image_id=index + 1)
    return coco.read(keep_empty=True)


def build(dataset, **options):
    options = {"batch_size": 2, "image_size": (64, 96), "training": True, **options}
    return build_pipeline(dataset, **{"augment": "strong", "epochs": 5, **options})


def epoch_of(batches):
    return list(batches.as_numpy_iterator())


def assert_same(first, second):
    assert len(first) == len(second) > 0
    for one, other in zip(first, second, strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@pytest.mark.parametrize(
    "augment, fields",
    [
        ("light", {}),
        (EVERYTHING, {"cache_decoded": True}),
        (EVERYTHING, {"random_crop": 0.5}),
    ],
    ids=["light", "cached", "cropped"],
)
def test_batches_keep_their_rules_and_their_canvases(dataset, augment, fields):
    batches = build(dataset, augment=augment, **fields)
    plain = build(dataset, augment="flip", **fields)
    assert batches.canvas_shapes == plain.canvas_shapes
    for batch in epoch_of(batches):
        check_batch(batch, num_classes=1)
        assert batch["images"].shape[1:3] in batches.canvas_shapes


def test_a_killed_and_resumed_epoch_is_bit_equal(dataset):
    batches = build(dataset, augment=EVERYTHING)
    epochs = [epoch_of(batches) for _ in range(3)]
    resumed = build(dataset, augment=EVERYTHING)
    for epoch, step in [(1, 0), (2, 2), (0, 3)]:
        resumed.epoch_order.resume(epoch, step)
        resumed.epoch_order.on_epoch_begin(epoch)
        rest = resumed.take(len(resumed) - step)
        assert_same(epoch_of(rest), epochs[epoch][step:])
    # And the epochs differ.
    first, second = epochs[0][0]["images"], epochs[1][0]["images"]
    assert first.shape != second.shape or (first != second).any()


def test_replicas_draw_the_same_as_one_device(dataset):
    whole = epoch_of(build(dataset, augment=EVERYTHING, batch_size=4))
    shares = [
        epoch_of(
            build(
                dataset,
                augment=EVERYTHING,
                batch_size=4,
                replicas=range(replica, replica + 1),
                num_replicas=2,
            )
        )
        for replica in range(2)
    ]
    joined = [
        {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        for parts in zip(*shares, strict=True)
    ]
    assert_same(joined, whole)


def test_mosaics_rest_in_the_last_epochs(dataset):
    options = {"augment": (Mosaic(probability=1.0),), "partners_off": 0.4, "flip": 0.0}
    batches = build(dataset, **options)
    plain = build(dataset, augment="flip", flip=0.0)
    is_plain = []
    for _ in range(5):
        pairs = list(zip(epoch_of(batches), epoch_of(plain), strict=True))
        is_plain.append(
            all((one["images"] == other["images"]).all() for one, other in pairs)
        )
    assert is_plain == [False, False, False, True, True]


@pytest.mark.parametrize(
    "share, epochs, expected",
    [
        (0.1, 12, 10),
        (0.1, 1, 1),
        (0.1, 2, 1),
        (0.0, 12, 12),
        (1.0, 12, 0),
        (0.5, 3, 1),
        (0.9, 2, 1),
    ],
)
def test_the_epochs_with_partners_by_hand(share, epochs, expected):
    assert count_partner_epochs([Mosaic()], share, epochs) == expected


def test_an_unknown_number_of_epochs_is_warned_of_only_if_it_matters():
    with pytest.warns(UserWarning, match=r"Mosaic run in all epochs.*epochs=\.\.\."):
        assert count_partner_epochs([Mosaic()], 0.1, None) > 2**60
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        count_partner_epochs([LargeScaleJitter(), CopyPaste()], 0.1, None)
        count_partner_epochs([Mosaic()], 0.0, None)


def test_partners_are_other_images_and_all_of_them():
    row = tf.constant([2, 7, 9], "int64")
    loaded = []

    def load(row, is_partner):
        assert is_partner
        loaded.append(row.numpy().tolist())

    load_other = make_partner_loader(load, row, 0, 4)
    for seed in range(60):
        load_other(tf.constant([0, seed]))
    assert {record for record, *_ in loaded} == {0, 1, 3}
    assert all(rest == [7, 9] for _, *rest in loaded)
    make_partner_loader(load, row * 0, 0, 1)(tf.constant([0, 1]))
    assert loaded[-1] == [0, 0, 0]


def test_room_is_made_for_the_boxes_of_all_images(dataset):
    # Seven boxes in the last image; three more pasted, and three partners.
    for augment, expected in [
        ((LargeScaleJitter(), Mosaic(probability=0.0)), 7),
        ((CopyPaste(count=3), Mosaic(), MixUp()), 38),
    ]:
        batches = build(dataset, augment=augment)
        assert batches.element_spec["boxes"].shape[1] == expected
    with pytest.raises(ValueError, match="at least 28, .* after its augmentations"):
        build(dataset, augment=(Mosaic(),), max_boxes=27)


def test_an_own_transform_with_too_many_boxes_is_told_the_remedy(dataset):
    def double(example, rng):
        boxes, labels = example["boxes"], example["labels"]
        boxes, labels = tf.tile(boxes, [2, 1]), tf.tile(labels, [2])
        return {**example, "boxes": boxes, "labels": labels}

    with pytest.raises(tf.errors.InvalidArgumentError, match="give .*max_boxes"):
        epoch_of(build(dataset, transforms=[double]))
    batches = build(dataset, transforms=[double], max_boxes=14)
    assert max((batch["labels"] >= 0).sum(1).max() for batch in epoch_of(batches)) == 14


def test_an_own_function_stands_beside_augmentations(dataset):
    def black(example, rng):
        return {**example, "image": tf.zeros_like(example["image"])}

    transforms = [Mosaic(), black, LargeScaleJitter()]
    for batch in epoch_of(
        build(dataset, transforms=transforms, normalization=IDENTITY)
    ):
        assert (batch["images"] == 0).all()


def test_the_paper_draws_as_before(dataset):
    """Augmentations that never act leave every draw of the others."""
    idle = tuple(kind(probability=0.0) for kind in (Mosaic, LargeScaleJitter))
    plain = build(dataset, augment="flip", cut_out=0.5)
    assert_same(
        epoch_of(build(dataset, augment=idle, cut_out=0.5)),
        epoch_of(plain),
    )
