"""Rules that hold for every augmentation; one row of a table for each."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from vfnet_tf.data import augmentation
from vfnet_tf.data.augmentation import (
    CopyPaste,
    GaussianBlur,
    GaussianNoise,
    JpegQuality,
    LargeScaleJitter,
    MinIoUCrop,
    MixUp,
    Mosaic,
    PhotometricDistortion,
    QuarterTurn,
    RandomAffine,
    VerticalFlip,
)

ALL = [getattr(augmentation, name) for name in augmentation.__all__[1:]]
SIZE = (96, 128)
#: For each: settings of full strength, and of strength 0 with `apply` still called.
#: Mosaic and MixUp have no strength but their probability.
TABLE = [
    (PhotometricDistortion, {"each": 1.0}, None),
    (GaussianBlur, {"sigma": (0.5, 1.0)}, {"sigma": (0.0, 1e-9)}),
    (GaussianNoise, {}, {"deviation": (0.0, 1e-30)}),
    (JpegQuality, {}, {"quality": (100, 100)}),
    (VerticalFlip, {}, None),
    (QuarterTurn, {"turns": (1, 2, 3)}, {"turns": (0,)}),
    (
        RandomAffine,
        {"degrees": 30.0, "min_visible": 0.0},
        {"degrees": 0.0, "scale": (1.0, 1.0), "shift": 0.0},
    ),
    (
        LargeScaleJitter,
        {"scale": (0.3, 1.6), "min_visible": 0.0},
        {"scale": (1.0, 1.0)},
    ),
    (MinIoUCrop, {}, {"side": (1.0, 1.0)}),
    (CopyPaste, {}, {"count": 0}),
    (CopyPaste, {"from_partner": True}, {"count": 0, "from_partner": True}),
    (Mosaic, {"min_visible": 0.0}, None),
    (MixUp, {"min_visible": 0.0, "alpha": 1000.0}, None),
]
IDS = [f"{kind.__name__}-{number}" for number, (kind, *_) in enumerate(TABLE)]


def marked(box, size=SIZE, label=0):
    """A black image with one white object."""
    x1, y1, x2, y2 = box
    image = np.zeros((*size, 3), "uint8")
    image[y1:y2, x1:x2] = 255
    return {
        "image": tf.constant(image),
        "boxes": tf.constant([box], "float32"),
        "labels": tf.constant([label], "int32"),
        "image_id": tf.constant(3, "int64"),
        "scale": tf.constant([0.5, 0.25]),
    }


def noisy(seed=0, size=SIZE):
    """An image of noise with two boxes, one of which is thinner than a pixel."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), "uint8")
    boxes = [[10, 20, 70, 50.5], [80, 60, 80.25, 90]]
    return {
        **marked((0, 0, 1, 1)),
        "image": tf.constant(pixels),
        "boxes": tf.constant(boxes, "float32"),
        "labels": tf.constant([1, 0], "int32"),
    }


PARTNERS = [
    marked((20, 10, 50, 60), (96, 128), 1),
    marked((8, 30, 40, 70), (120, 72), 2),
    marked((30, 20, 90, 50), (60, 128), 3),
]


def call(transform, example, seeds, method="__call__"):
    """The examples that a transform gives for several seeds, as numpy arrays."""
    act = getattr(transform, method)

    @tf.function(autograph=False)
    def once(rng):
        if not transform.num_partners:
            return act(example, rng)
        return act(example, rng, lambda index: PARTNERS[index])

    outs = [once(tf.constant([7, seed])) for seed in range(seeds)]
    return [{name: value.numpy() for name, value in out.items()} for out in outs]


def test_the_table_has_a_row_for_every_augmentation():
    assert {kind for kind, *_ in TABLE} == set(ALL)


@pytest.mark.parametrize("kind, settings, _", TABLE, ids=IDS)
def test_marked_pixels_lie_in_the_moved_boxes(kind, settings, _):
    transform = kind(probability=1.0, **settings)
    changed = 0
    example = marked((30, 24, 84, 52))
    for out in call(transform, example, 12):
        image, boxes = out["image"], out["boxes"]
        assert image.dtype == np.uint8 and boxes.dtype == np.float32
        assert len(boxes) == len(out["labels"]) >= 1
        assert (np.array(image.shape[:2]) <= SIZE).all()
        height, width = image.shape[:2]
        assert (boxes >= 0).all() and (boxes[:, 2:] <= (width, height)).all()
        assert (out["scale"] == (0.5, 0.25)).all() and out["image_id"] == 3
        # Grey from outside is 114; an object of half the strength is 127.
        is_marked = image.max(axis=-1) > 118
        is_in_a_box = np.zeros_like(is_marked)
        for x1, y1, x2, y2 in np.round(boxes).astype(int):
            inside = is_marked[y1:y2, x1:x2]
            # A box is the hull of its pixels; a turned one fills a part of it, and its
            # hull reaches further where the image cuts it.
            rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
            if kind is not RandomAffine:
                ends = [rows[0], inside.shape[0] - 1 - rows[-1]]
                ends += [columns[0], inside.shape[1] - 1 - columns[-1]]
                assert max(ends) <= 2, (boxes, ends)
                assert inside.mean() > 0.8
            else:
                assert inside.mean() > 0.3
            is_in_a_box[max(0, y1 - 2) : y2 + 2, max(0, x1 - 2) : x2 + 2] = True
        assert not (is_marked & ~is_in_a_box).any()
        changed += not np.array_equal(image, example["image"])
    assert changed >= 6


def test_a_turned_object_has_the_hull_of_its_corners():
    turned = call(
        RandomAffine(probability=1.0, degrees=40.0, shift=0.0, scale=(0.7, 0.7)),
        marked((30, 24, 84, 52)),
        8,
    )
    for out in turned:
        y, x = np.nonzero(out["image"].max(axis=-1) > 180)
        hull = [x.min(), y.min(), x.max() + 1, y.max() + 1]
        np.testing.assert_allclose(out["boxes"][0], hull, atol=1.6)


@pytest.mark.parametrize("kind, settings, still", TABLE, ids=IDS)
def test_strength_0_is_the_identity_exactly(kind, settings, still):
    transforms = [kind(**{**settings, "probability": 0.0})]
    if still is not None:
        transforms.append(kind(probability=1.0, **still))
    if kind is PhotometricDistortion:
        none = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
        # A tiny brightness only: the matrix is used, and is one.
        transforms += [kind(**none), kind(**{**none, "brightness": 1e-6, "each": 1.0})]
    example = noisy()
    for transform in transforms:
        outs = call(transform, example, 3)
        if transform.probability:
            # Also without the short cut for what is known to change nothing.
            outs += call(transform, example, 3, "apply")
        for out in outs:
            assert set(out) == set(example)
            for name, value in example.items():
                np.testing.assert_array_equal(out[name], value, err_msg=name)


@pytest.mark.parametrize("kind, settings, _", TABLE, ids=IDS)
def test_a_seed_gives_the_same_each_time_and_others_differ(kind, settings, _):
    transform = kind(**{**settings, "probability": 0.5})
    example = {**noisy(), "boxes": tf.constant([[10.0, 20, 30, 40], [60, 10, 80, 30]])}
    first, again = call(transform, example, 16), call(transform, example, 16)
    num_changed = 0
    for one, other in zip(first, again, strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
        num_changed += not np.array_equal(one["image"], example["image"])
    assert 2 <= num_changed <= 14


@pytest.mark.parametrize("kind, settings, _", TABLE, ids=IDS)
def test_an_image_without_boxes_passes_and_one_of_a_pixel_too(kind, settings, _):
    transform = kind(probability=1.0, **settings)
    example = {
        **noisy(),
        "boxes": tf.zeros([0, 4]),
        "labels": tf.zeros([0], "int32"),
    }
    for out in call(transform, example, 3):
        assert transform.num_partners or len(out["boxes"]) == 0
        assert out["boxes"].shape[1] == 4
    tiny = {**example, "image": example["image"][:1, :1]}
    for out in call(transform, tiny, 3):
        assert out["image"].shape == (1, 1, 3)


@pytest.mark.parametrize(
    "kind, settings",
    [
        (Mosaic, {"probability": 1.5}),
        (PhotometricDistortion, {"hue": 200}),
        (GaussianBlur, {"sigma": (2.0, 1.0)}),
        (QuarterTurn, {"turns": ()}),
        (QuarterTurn, {"turns": (4,)}),
        (LargeScaleJitter, {"scale": (0.0, 1.0)}),
    ],
)
def test_settings_outside_their_limits_are_named(kind, settings):
    (name,) = settings
    with pytest.raises(ValueError, match=rf"`.*{name}`.*Received: {name}="):
        kind(**settings)


def test_all_settings_have_limits():
    free = {"from_partner", "turns"}
    for kind in ALL:
        names = {field.name for field in dataclasses.fields(kind)} - {"probability"}
        assert names - free == set(kind.limits), kind


def test_photometric_distortion_is_what_its_four_parts_are_by_hand():
    transform = PhotometricDistortion(each=1.0)
    colors = np.array([[200, 100, 50], [90, 90, 90]], "float64")
    for seed in range(20):
        rng = tf.constant([1, seed])
        matrix, offset = (value.numpy() for value in transform.draw(rng))
        # Grey stays grey: brightness and contrast alone act on it.
        grey = colors[1] @ matrix + offset
        assert np.ptp(grey) < 1e-3
        contrast = matrix.sum(axis=0).mean()
        assert 0.5 <= contrast <= 1.5 and abs(offset / contrast) <= 32
        # The luma of a colour follows that of its grey.
        luma = np.array([0.299, 0.587, 0.114])
        moved = colors[0] @ matrix + offset
        np.testing.assert_allclose(
            moved @ luma, (colors[0] @ luma) * contrast + offset, rtol=1e-4
        )


@pytest.mark.parametrize("draw, expected", [(0.999, 1.5), (0.0, 0.5)])
def test_saturation_scales_the_distance_from_grey(draw, expected, monkeypatch):
    module = __import__(PhotometricDistortion.__module__, fromlist=["uniform"])
    draws = tf.stack([tf.zeros(4), tf.constant([0.5, 0.5, draw, 0.5])])
    monkeypatch.setattr(module, "uniform", lambda rng, shape: draws)
    matrix, offset = PhotometricDistortion(each=1.0).draw(None)
    luma = np.array([0.299, 0.587, 0.114])
    color = np.array([200.0, 100, 50])
    moved = expected * (color - color @ luma) + color @ luma
    np.testing.assert_allclose(color @ matrix.numpy() + offset, moved, atol=0.3)


def test_a_crop_has_the_iou_with_an_object_that_was_asked_for():
    example = marked((30, 24, 84, 52))
    crops = call(
        MinIoUCrop(probability=1.0, min_ious=(0.5,), side=(0.2, 1.0)), example, 20
    )
    changed = [
        out for out in crops if len(out["image"]) != 96 or out["boxes"][0, 0] != 30
    ]
    assert len(changed) >= 6
    for out in changed:
        x1, y1, x2, y2 = out["boxes"][0]
        factor_area = np.prod(out["image"].shape[:2])
        # In the crop's own pixels the object covers at least half.
        assert (x2 - x1) * (y2 - y1) >= 0.48 * factor_area


def test_pasted_objects_leave_enough_of_those_that_are_there():
    transform = CopyPaste(probability=1.0, count=6, max_covered=0.1)
    example = marked((10, 10, 50, 50))
    counts = []
    for out in call(transform, example, 10):
        boxes = out["boxes"]
        counts.append(len(boxes))
        assert (boxes[0] == (10, 10, 50, 50)).all()
        np.testing.assert_array_equal(boxes[:, 2:] - boxes[:, :2], 40)
        for row, box in enumerate(boxes):
            for later in boxes[row + 1 :]:
                common = np.minimum(box[2:], later[2:]) - np.maximum(box[:2], later[:2])
                assert np.prod(np.maximum(common, 0)) <= 0.1 * 1600 + 1e-3
    assert max(counts) > 2 and max(counts) <= 7


def test_an_object_that_others_cover_is_not_copied():
    example = marked((10, 10, 50, 50))
    example["boxes"] = tf.constant([[10.0, 10, 50, 50], [10, 10, 50, 30]])
    example["labels"] = tf.constant([0, 1])
    for out in call(CopyPaste(probability=1.0), example, 5):
        np.testing.assert_array_equal(out["boxes"], example["boxes"])
        np.testing.assert_array_equal(out["image"], example["image"])


def test_a_mixture_shows_both_images_by_one_share():
    example = marked((30, 24, 84, 52))
    for out in call(MixUp(probability=1.0), example, 5):
        assert out["labels"].tolist() == [0, 1]
        values = sorted(set(np.unique(out["image"]).tolist()) - {0, 255})
        # Where one of them is white: shares of the two, which add up to one.
        assert len(values) in (1, 2) and abs(values[0] + values[-1] - 255) <= 1


def test_the_tiles_of_a_mosaic_come_from_four_images():
    labels = [out["labels"] for out in call(Mosaic(probability=1.0), PARTNERS[0], 20)]
    assert set(np.concatenate(labels).tolist()) == {1, 2, 3}
    most = Mosaic().most_boxes(5, 7)
    assert most == 26 and MixUp().most_boxes(5, 7) == 12
    assert CopyPaste(count=4).most_boxes(5, 7) == 9
