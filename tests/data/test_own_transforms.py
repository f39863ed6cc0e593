import dataclasses
import functools

import numpy as np
import pytest
import tensorflow as tf

from vfnet_tf.data import pipeline
from vfnet_tf.data.augmentation import Augmentation, LargeScaleJitter, VerticalFlip
from vfnet_tf.data.own_transforms import name_of
from vfnet_tf.data.pipeline import build_pipeline
from vfnet_tf.data.transforms import flip_horizontal


@pytest.fixture
def dataset(coco):
    """Two images of 48x64 with two boxes, of one class."""
    for number in (1, 2):
        coco.image(48, 64)
        coco.box([4, 3, 10, 20], image_id=number)
        coco.box([30, 9.5, 10, 20], image_id=number)
    return coco.read()


def batches_of(dataset, *transforms):
    batches = build_pipeline(
        dataset,
        batch_size=2,
        image_size=(48, 64),
        training=True,
        transforms=transforms,
    )
    return list(batches.as_numpy_iterator())


def giving(**changes):
    """An own transform, `giving.<locals>.own`, whose keys come from functions."""

    def own(example, rng):
        return {**example, **{key: make(example) for key, make in changes.items()}}

    return own


def boxes(function):
    return giving(boxes=lambda example: function(example["boxes"]))


def labels(function):
    return giving(labels=lambda example: function(example["labels"]))


def image(function):
    return giving(image=lambda example: function(example["image"]))


def unknown_rank(image):
    return tf.numpy_function(lambda pixels: pixels, [image], "uint8")


@pytest.mark.parametrize(
    "transform, message",
    [
        (lambda example, rng: None, "must return the example.*NoneType"),
        (
            lambda example, rng: {"image": example["image"]},
            "all keys.*no boxes, labels, image_id, scale",
        ),
        (
            image(lambda image: tf.cast(image, "float32") / 255),
            "`image` as uint8: colours are 0 to 255.*convert_image_dtype.*float32",
        ),
        (image(lambda image: image[..., :1]), r"`image` of shape \[n, n, 3\]"),
        (image(lambda image: image[None]), r"`image` of shape \[n, n, 3\]"),
        (image(unknown_rank), r"tf.ensure_shape\(image, \[None, None, 3\]\)"),
        (boxes(lambda boxes: tf.cast(boxes, "int32")), "`boxes` as float32.*int32"),
        (boxes(lambda boxes: boxes[:, :3]), r"`boxes` of shape \[n, 4\]"),
        (labels(lambda labels: tf.cast(labels, "int64")), "`labels` as int32"),
        (labels(lambda labels: labels[:, None]), r"`labels` of shape \[n\]"),
    ],
)
def test_what_an_own_transform_must_return_is_said_with_its_name(
    dataset, transform, message
):
    name = transform.__qualname__.replace("<", "[<]").replace(">", "[>]")
    with pytest.raises(ValueError, match=rf"`{name}` \(transforms\[1\]\) .*{message}"):
        batches_of(dataset, flip_horizontal(0.5), transform)


@pytest.mark.parametrize(
    "transform, message",
    [
        (
            image(lambda image: tf.concat([image, image], axis=1)),
            "not make the image larger",
        ),
        (image(lambda image: tf.image.rot90(image)), "not make the image larger"),
        (boxes(lambda boxes: boxes[:1]), r"a label for each box.*\[1\] \[boxes,\] \[2"),
        (boxes(lambda boxes: boxes * np.nan), "boxes .*within the image"),
        (boxes(lambda boxes: boxes + 30), "boxes .*within the image"),
        (boxes(lambda boxes: boxes - 5), "boxes .*within the image"),
        (
            boxes(lambda boxes: tf.constant([64.0, 0, 64, 0]) - boxes * [1, -1, 1, -1]),
            "x1 < x2",
        ),
        (boxes(lambda boxes: boxes / [64, 48, 64, 48]), "not as shares of the image"),
        (labels(lambda labels: labels + 1), "labels from 0 to 0"),
        (labels(lambda labels: labels - 1), "labels from 0 to 0"),
    ],
)
def test_values_that_an_own_transform_must_not_give_are_said_with_its_name(
    dataset, transform, message
):
    with pytest.raises(tf.errors.InvalidArgumentError, match=message) as error:
        batches_of(dataset, flip_horizontal(0.5), transform)
    assert "`giving.<locals>.own` (transforms[1])" in str(error.value)


@pytest.mark.parametrize(
    "transforms, message",
    [
        (giving(), "must be a list of functions"),
        ("light", "must be a list of functions.*'light'"),
        ([VerticalFlip], r"such as VerticalFlip\(\). Received: <class"),
        ([None], "must hold functions.*None"),
    ],
)
def test_what_is_no_list_of_transforms_is_refused(dataset, transforms, message):
    with pytest.raises(ValueError, match=message):
        build_pipeline(dataset, batch_size=1, training=True, transforms=transforms)


def test_a_right_transform_passes_bit_by_bit(dataset):
    def drop_all(example, rng):
        drawn = tf.random.stateless_uniform([], rng) < 0.5
        rows = tf.where(drawn, 0, tf.shape(example["labels"])[0])
        parts = {key: example[key][:rows] for key in ("boxes", "labels")}
        return {**example, **parts}

    plain = [LargeScaleJitter(scale=(0.5, 2.0)), drop_all, flip_horizontal(0.5)]
    checked = batches_of(dataset, *plain)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "with_checks", lambda transform, *rest: transform)
        unchecked = batches_of(dataset, *plain)
    for key, value in checked[0].items():
        np.testing.assert_array_equal(value, unchecked[0][key])
    # Pixels that a rounding has moved across the edge.
    batches_of(dataset, boxes(lambda boxes: tf.constant([[-0.5, 0, 64.5, 48]] * 2)))


def test_own_augmentations_are_checked_and_those_of_the_library_are_not(
    dataset, monkeypatch
):
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Wrong(Augmentation):
        def apply(self, example, rng):
            return {**example, "boxes": example["boxes"] + 100}

    named = []

    def note(transform, name, num_classes):
        named.append((name, num_classes))
        return transform

    with pytest.raises(tf.errors.InvalidArgumentError, match="Wrong"):
        batches_of(dataset, Wrong(probability=1.0))
    monkeypatch.setattr(pipeline, "with_checks", note)
    batches_of(dataset, VerticalFlip(), flip_horizontal(0.5), LargeScaleJitter())
    assert named == []


def test_names_of_functions_that_are_wrapped():
    def grey(example, rng):
        return example

    assert name_of(functools.partial(grey, rng=None)).endswith("<locals>.grey")
    assert name_of(tf.function(grey, autograph=False)).endswith("<locals>.grey")
    assert name_of(VerticalFlip()) == "VerticalFlip"
