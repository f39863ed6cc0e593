import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tests.data.batch_rules import check_batch
from tests.image_files import exif
from vfnet_tf.data import transforms
from vfnet_tf.data.augmentation import LargeScaleJitter
from vfnet_tf.data.canvases import choose_canvas_shapes
from vfnet_tf.data.epoch_plan import repeat_factors
from vfnet_tf.data.formats.coco import find_coco_splits, read_coco
from vfnet_tf.data.normalization import IDENTITY, TORCHVISION
from vfnet_tf.data.pipeline import build_pipeline

SIZES = [(48, 64), (64, 48), (48, 64), (40, 64), (64, 48), (48, 64), (50, 50)]


@pytest.fixture
def dataset(coco):
    """Seven images of both orientations; image n has n boxes, the first has none."""
    for index, (height, width) in enumerate(SIZES):
        coco.image(height, width)
        for box in range(index):
            coco.box([2 * box, 3, 10, 20], image_id=index + 1)
    return coco.read(keep_empty=True)


def build(dataset, **options):
    options = {"batch_size": 2, "image_size": (48, 64), "training": True, **options}
    return build_pipeline(dataset, **options)


def epochs(batches, count):
    return [list(batches.as_numpy_iterator()) for _ in range(count)]


def ids(epoch):
    return np.concatenate([batch["image_id"] for batch in epoch]).tolist()


def assert_same(first, second):
    """Two lists of epochs have the same batches."""
    assert list(map(len, first)) == list(map(len, second))
    for one, other in zip(sum(first, []), sum(second, []), strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


@pytest.fixture
def rare(coco):
    """Sixteen images with a cell, of which the last one has a rare class too."""
    coco.content["categories"].append({"id": 9, "name": "rare"})
    for index in range(16):
        coco.image(48, 64)
        coco.box([4, 3, 10, 20], image_id=index + 1)
    coco.box([20, 3, 10, 20], image_id=16, category_id=9)
    return coco.read()


def test_images_of_a_rare_class_are_repeated_by_hand(rare):
    # The rare class is in 1/16 of the images: sqrt(0.39 / (1 / 16)) = 2.498.
    factors = repeat_factors(rare, 0.39)
    np.testing.assert_allclose(factors, [1.0] * 15 + [2.498], atol=1e-3)
    np.testing.assert_array_equal(repeat_factors(rare, 1 / 16), np.ones(16))
    batches = build(rare, oversample=0.39, seed=3)
    assert len(batches) == 9  # of 18 images: 17.498, rounded up
    found = np.array([ids(epoch) for epoch in epochs(batches, 40)])
    counts = np.stack([(found == i + 1).sum(axis=1) for i in range(16)], axis=1)
    assert set(counts[:, 15]) == {2, 3} and counts[:, :15].min() == 1
    assert counts[:, 15].mean() == pytest.approx(2.5, abs=0.15)
    # Evaluation sees each image once; a resumed run sees the same repeats.
    assert sorted(ids(list(build(rare, oversample=0.39, training=False)))) == list(
        range(1, 17)
    )
    later = build(rare, oversample=0.39, seed=3, start_epoch=5)
    assert ids(epochs(later, 1)[0]) == found[5].tolist()


def test_canvases_by_hand():
    # Resized to at most 64 high or wide; rounded up to multiples of 32.
    assert choose_canvas_shapes([(30, 60), (60, 30)], (32, 64)) == [(32, 64), (64, 32)]
    assert choose_canvas_shapes([(30, 60), (60, 30)], (32, 64), 1) == [(64, 64)]
    assert choose_canvas_shapes([(480, 640)], (256, 320)) == [(256, 320)]
    assert choose_canvas_shapes([(480, 640)], (100, 70), keep_ratio=False) == [
        (128, 96)
    ]


def test_canvases_merge_where_it_adds_the_least_padding():
    # Widths are 192, 160 and 96 (from 70): the first two differ by 32, the last by 64.
    sizes = [(64, 192), (64, 160), (64, 70), (160, 64)]
    shapes = choose_canvas_shapes(sizes, (64, 192), 3)
    assert shapes == [(64, 96), (64, 192), (160, 64)]
    # 100 images of width 160 would pay 32 columns each, the one of 96 pays 64 once.
    shapes = choose_canvas_shapes(sizes + [(64, 160)] * 99, (64, 192), 3)
    assert shapes == [(64, 160), (64, 192), (160, 64)]


def test_orientations_share_a_canvas_only_if_nothing_else_is_left():
    # 64 x 96 and 96 x 64 would waste less together than 64 x 96 with 64 x 320 does.
    sizes = [(64, 70), (70, 64), (64, 320)]
    assert choose_canvas_shapes(sizes, (64, 320), 2) == [(64, 320), (96, 64)]


def test_every_image_fits_into_a_canvas():
    sizes = np.random.default_rng(0).integers(40, 700, (200, 2))
    shapes = choose_canvas_shapes(sizes, (800, 1333), 4)
    assert len(shapes) == 4
    assert all(side % 32 == 0 for shape in shapes for side in shape)
    landscape = sizes[:, 1] > sizes[:, 0]
    assert len(choose_canvas_shapes(sizes[landscape], (800, 1333), 4)) == 4


def test_batches_are_valid_and_of_the_promised_spec(dataset):
    batches = build(dataset)
    (epoch,) = epochs(batches, 1)
    assert len(epoch) == int(batches.cardinality())
    for batch in epoch:
        check_batch(batch, num_classes=1)
        assert batch["images"].shape[0] == 2 and batch["boxes"].shape == (2, 6, 4)
    assert {batch["images"].shape[1:3] for batch in epoch} == {(64, 64)}
    assert batches.element_spec["images"].shape == (2, 64, 64, 3)
    assert batches.element_spec["labels"].dtype == tf.int32


def test_several_canvases_leave_the_size_open(dataset):
    batches = build(dataset, image_size=(96, 128))
    assert batches.element_spec["images"].shape == (2, None, None, 3)
    (epoch,) = epochs(batches, 1)
    # The one image on 96 x 96 fills no batch and moves up.
    shapes = {batch["images"].shape[1:3] for batch in epoch}
    assert shapes == {(96, 128), (128, 96)}
    (epoch,) = epochs(build(dataset, image_size=(96, 128), training=False), 1)
    assert (96, 96) in {batch["images"].shape[1:3] for batch in epoch}


def test_pixels_and_boxes_end_where_the_arithmetic_says(coco):
    path = coco.image(40, 64, box=[8, 4, 16, 12])
    dataset = coco.read()
    batches = build(
        dataset, batch_size=1, image_size=(20, 32), training=False, max_boxes=3
    )
    (batch,) = batches.as_numpy_iterator()
    np.testing.assert_array_equal(batch["boxes"][0, 0], [4, 2, 12, 8])
    np.testing.assert_array_equal(batch["boxes"][0, 1:], 0)
    np.testing.assert_array_equal(batch["labels"], [[0, -1, -1]])
    np.testing.assert_array_equal(batch["image_size"], [[20, 32]])
    np.testing.assert_array_equal(batch["scale"], [[0.5, 0.5]])
    # Halving with half-pixel centres averages 2 x 2 pixels.
    pixels = np.asarray(Image.open(path)).astype("float32")
    mean = pixels.reshape(20, 2, 32, 2, 3).mean(axis=(1, 3))
    expected = TORCHVISION(np.round(mean))
    np.testing.assert_allclose(batch["images"][0, :20], expected, atol=1e-5)
    np.testing.assert_array_equal(batch["images"][0, 20:], 0)


def test_one_batch_holds_one_orientation(dataset):
    batches = build(dataset, max_canvas_shapes=1)
    for epoch in epochs(batches, 3):
        for batch in epoch:
            height, width = batch["image_size"].T
            assert len(set(width > height)) == 1


def test_an_epoch_holds_every_image_and_full_batches(dataset):
    for epoch in epochs(build(dataset, batch_size=3), 3):
        assert set(ids(epoch)) == set(range(1, 8))
        assert all(len(batch["image_id"]) == 3 for batch in epoch)


def test_drop_remainder_repeats_nothing(dataset):
    for epoch in epochs(build(dataset, drop_remainder=True), 3):
        assert len(ids(epoch)) == len(set(ids(epoch))) == 6


def test_images_left_over_move_to_a_larger_canvas(coco):
    for width in (64, 64, 64, 128, 128):
        coco.image(64, width + (width == 64), box=[1, 2, 10, 20])
    dataset = coco.read()
    options = {"image_size": (64, 128), "canvas_shapes": [(64, 96), (64, 128)]}
    for epoch in epochs(build(dataset, **options), 20):
        # Two of the three narrow ones, then the third among the wide ones.
        widths = sorted(batch["images"].shape[2] for batch in epoch)
        assert widths == [96, 128, 128]
        assert set(ids(epoch)) == {1, 2, 3, 4, 5}
        # One place is left, and nothing stands twice in a batch.
        assert len(ids(epoch)) == 6
        assert all(len(set(batch["image_id"].tolist())) == 2 for batch in epoch)
    (epoch,) = epochs(build(dataset, training=False, **options), 1)
    for batch in epoch:
        widths = batch["image_size"][:, 1]
        assert (batch["images"].shape[2] == 96) == (widths == 65).all()


RANGE = ((32, 64), (96, 160))


@pytest.mark.parametrize("has_draws", [False, True])
def test_seed_and_epoch_fix_everything_also_in_a_resumed_run(dataset, has_draws):
    options = {"seed": 3}
    if has_draws:  # A batch size of 1: no image fills up a last batch.
        options |= {"scale_range": RANGE, "random_crop": 0.5, "cut_out": 0.5}
        options["batch_size"] = 1
    first = epochs(build(dataset, **options), 3)
    assert_same(first, epochs(build(dataset, num_parallel=4, **options), 3))
    assert_same(first[1:], epochs(build(dataset, start_epoch=1, **options), 2))
    assert ids(first[0]) != ids(first[1]) != ids(first[2])
    assert ids(first[0]) != ids(epochs(build(dataset, **{**options, "seed": 4}), 1)[0])
    if has_draws:
        sizes = [np.concatenate([b["image_size"] for b in e]) for e in first[:2]]
        assert not np.array_equal(*(np.sort(size, axis=0) for size in sizes))


def test_flips_differ_between_epochs(dataset):
    """With the order fixed, an image is seen both ways."""
    first = [build_epoch[0] for build_epoch in epochs(build(dataset, shuffle=False), 8)]
    seen = {batch["images"][1].tobytes() for batch in first}
    assert len(seen) == 2


def test_an_order_that_comes_again_has_other_draws(dataset, monkeypatch):
    monkeypatch.setattr("vfnet_tf.data.pipeline.MAX_ORDERS", 2)
    settings = {"flip": 0, "augment": (LargeScaleJitter(scale=(0.5, 2.0)),)}
    found = epochs(build(dataset, **settings), 6)
    for first, again in zip(found[:4], found[2:], strict=True):
        assert ids(first) == ids(again)
        pairs = [(a["images"], b["images"]) for a, b in zip(first, again, strict=True)]
        assert not any(np.array_equal(a, b) for a, b in pairs)
    # A resumed run draws the same.
    assert_same(found[5:], epochs(build(dataset, start_epoch=5, **settings), 1))


def test_without_flip_and_shuffle_all_epochs_are_equal(dataset):
    first, second = epochs(build(dataset, flip=0, shuffle=False), 2)
    assert_same([first], [second])


class Recorder(keras.Model):
    """Notes the image ids of every batch that `fit` gives it."""

    def __init__(self):
        super().__init__()
        self.weight = self.add_weight(shape=(), initializer="zeros")
        self.seen = []

    def call(self, inputs):
        return self.weight * keras.ops.mean(inputs["images"])

    def compute_loss(self, x, y, y_pred, sample_weight, training=True):
        self.seen.append(keras.ops.convert_to_numpy(x["image_id"]).tolist())
        return self.weight * 0.0


def fit(batches, **options):
    model = Recorder()
    model.compile(optimizer="sgd", run_eagerly=True)
    model.fit(batches, verbose=0, shuffle=False, **options)
    return np.concatenate(model.seen).tolist()


def test_fit_sees_one_epoch_after_another(dataset):
    batches = build(dataset)
    expected = [ids(epoch) for epoch in epochs(build(dataset), 4)]
    iter(batches).get_next()  # An iterator thrown away shifts nothing.
    callbacks = [batches.epoch_order]
    seen = fit(batches, epochs=2, callbacks=callbacks)
    assert seen == expected[0] + expected[1]
    seen = fit(batches, epochs=4, initial_epoch=2, callbacks=callbacks)
    assert seen == expected[2] + expected[3]


def test_fit_goes_on_within_an_epoch(dataset):
    batches = build(dataset)
    size, whole = 2, len(batches)
    expected = [ids(epoch) for epoch in epochs(build(dataset), 3)]
    batches.epoch_order.resume(1, 2)
    callbacks = [batches.epoch_order]
    seen = fit(batches.take(whole - 2), epochs=2, initial_epoch=1, callbacks=callbacks)
    assert seen == expected[1][2 * size :]
    # Once: the same epoch from its start afterwards, and the next one.
    seen = fit(batches, epochs=3, initial_epoch=1, callbacks=callbacks)
    assert seen == expected[1] + expected[2]


def test_evaluation_gives_every_image_once_and_marks_the_rest(dataset):
    batches = build(dataset, training=False, batch_size=3)
    first, second = epochs(batches, 2)
    assert_same([first], [second])
    found = ids(first)
    assert sorted(i for i in found if i >= 0) == list(range(1, 8))
    assert all(len(batch["image_id"]) == 3 for batch in first)
    assert len(found) == 3 * len(first) > 7


@pytest.mark.parametrize("training", [True, False])
def test_processes_share_each_batch_without_overlap_or_loss(dataset, training):
    # Four replicas in two processes; the last batches are filled up.
    settings = {"training": training, "batch_size": 4, "seed": 3}
    whole = epochs(build(dataset, **settings), 2)
    shares = [
        epochs(build(dataset, replicas=rows, num_replicas=4, **settings), 2)
        for rows in (range(0, 2), range(2, 4))
    ]
    for epoch, expected in enumerate(whole):
        first, second = (share[epoch] for share in shares)
        assert len(first) == len(second) == 2 * len(expected)
        joined = [
            {
                name: np.concatenate([batch[name] for batch in batches])
                for name in batches[0]
            }
            for batches in zip(
                first[::2], first[1::2], second[::2], second[1::2], strict=True
            )
        ]
        assert_same([joined], [expected])


def test_a_share_knows_how_many_batches_it_has(dataset):
    share = build(dataset, batch_size=4, replicas=range(1, 3), num_replicas=4)
    whole = build(dataset, batch_size=4)
    assert share.cardinality() == 2 * whole.cardinality()
    assert len(list(share)) == share.cardinality()


def test_evaluation_can_end_in_smaller_batches(dataset):
    batches = build(dataset, training=False, batch_size=3, pad_last_batch=False)
    (epoch,) = epochs(batches, 1)
    assert sorted(ids(epoch)) == list(range(1, 8))
    # Four images lie across, three are upright or square.
    assert [len(batch["image_id"]) for batch in epoch] == [3, 3, 1]
    for batch in epoch:
        check_batch(batch)


def test_a_cache_changes_nothing(dataset):
    plain = build(dataset, image_size=(96, 128))
    cached = build(dataset, image_size=(96, 128), cache_decoded=True)
    assert_same(epochs(plain, 2), epochs(cached, 2))


def test_a_cache_beyond_its_limit_is_refused(dataset):
    # Five images of 48 x 64, one of 40 x 64 and one of 48 x 48, three bytes each.
    with pytest.raises(ValueError, match="would take 60672 bytes.*allows 60671"):
        build(dataset, cache_decoded=True, cache_limit=60671)


def test_scales_are_drawn_by_batch(dataset):
    scales = [(32, 64), (64, 128), (96, 192)]
    batches = build(dataset, scales=scales, image_size=(1, 1))
    shapes = set()
    for epoch in epochs(batches, 8):
        assert set(ids(epoch)) == set(range(1, 8))
        for batch in epoch:
            check_batch(batch)
            shapes.add(batch["images"].shape[1:3])
            assert batch["image_size"].min(axis=1).max() in (32, 64, 96)
    assert len(shapes) == 6
    repeated = epochs(build(dataset, scales=scales), 17)[16:]
    assert_same(epochs(batches, 9)[8:], repeated)


@pytest.fixture
def landscapes(coco):
    """Twelve landscape images of one size with a box each."""
    for _ in range(12):
        coco.image(48, 64, box=[8, 8, 40, 24])
    return coco.read()


def test_each_image_draws_its_scale_from_a_range(landscapes):
    batches = build(
        landscapes,
        scale_range=((32, 160), (96, 160)),
        batch_size=3,
        max_canvas_shapes=3,
    )
    seen = {32: 0, 96: 0}
    counts = []
    for epoch in epochs(batches, 25):
        assert ids(epoch) != list(range(1, 13)) and set(ids(epoch)) == {*range(1, 13)}
        for batch in epoch:
            check_batch(batch)
            shape = batch["images"].shape[1:3]
            assert shape in batches.canvas_shapes
            heights = batch["image_size"][:, 0]
            assert (batch["image_size"] <= shape).all()
            for side in seen:
                seen[side] += (heights == side).sum()
            counts.append(len(set(heights)))
    assert max(counts) == 3
    # 300 draws of 65 numbers: 4.6 for each.
    assert 1 <= seen[32] < 15 and 1 <= seen[96] < 15


def test_a_range_pads_little_and_keeps_to_the_number_of_shapes(dataset):
    options = {"scale_range": RANGE, "batch_size": 1}
    areas = {}
    for max_shapes in (1, 2, 5):
        batches = build(dataset, max_canvas_shapes=max_shapes, **options)
        assert len(batches.canvas_shapes) <= max_shapes
        shapes, area = set(), 0
        for batch in np.concatenate(epochs(batches, 6)):
            shapes.add(batch["images"].shape[1:3])
            area += np.prod(batch["images"].shape[1:3])
        assert shapes <= set(batches.canvas_shapes)
        areas[max_shapes] = area
    assert areas[5] < areas[2] < areas[1]
    one = build(dataset, max_canvas_shapes=1, **options)
    assert one.element_spec["images"].shape == (1, *one.canvas_shapes[0], 3)


def test_a_function_is_traced_once_for_each_shape(landscapes):
    batches = build(landscapes, scale_range=RANGE, max_canvas_shapes=3, batch_size=1)
    traced = []

    @tf.function
    def step(images):
        traced.append(tuple(images.shape[1:3]))
        return tf.reduce_mean(images)

    for batch in [*batches, *batches]:
        step(batch["images"])
    assert len(traced) == len(set(traced)) == 3
    assert sorted(traced) == batches.canvas_shapes


def test_a_range_leaves_the_number_of_batches_and_one_orientation_in_each(dataset):
    options = {"scale_range": RANGE, "random_crop": 1.0, "max_canvas_shapes": 6}
    for drop_remainder, expected in ((False, 4), (True, 3)):
        batches = build(dataset, drop_remainder=drop_remainder, **options)
        assert int(batches.cardinality()) == expected
        landscape = {1, 3, 4, 6}
        for epoch in epochs(batches, 6):
            assert len(epoch) == expected
            for batch in epoch:
                check_batch(batch)
                assert len({i in landscape for i in batch["image_id"]}) == 1


def test_boxes_stay_on_their_pixels_through_crop_and_scale(coco):
    pixels = np.zeros((200, 300, 3), "uint8")
    pixels[40:160, 60:240] = 255
    for index in range(4):
        Image.fromarray(pixels).save(coco.image(200, 300), quality=95)
        coco.box([60, 40, 180, 120], image_id=index + 1)
    dataset = coco.read()
    batches = build(
        dataset,
        image_size=(128, 192),
        scale_range=((100, 150), (128, 192)),
        random_crop=1.0,
        normalization=IDENTITY,
    )
    shapes = set()
    for batch in np.concatenate(epochs(batches, 3)):
        for image, boxes, size in zip(
            batch["images"], batch["boxes"], batch["image_size"], strict=True
        ):
            y, x = np.nonzero(image[..., 0] > 127)
            found = [x.min(), y.min(), x.max() + 1, y.max() + 1]
            np.testing.assert_allclose(boxes[0], found, atol=1.01)
            shapes.add(tuple((boxes[0, 2:] - boxes[0, :2]) / size[::-1]))
    # Uncropped, the box has .6 of either side.
    assert len(shapes) == 12 and np.max(list(shapes)) > 0.65


@pytest.mark.parametrize("cache_decoded", [False, True])
def test_holes_are_cut_anew_in_every_epoch(landscapes, cache_decoded):
    options = {"shuffle": False, "flip": 0.0, "normalization": IDENTITY}
    options["cache_decoded"] = cache_decoded
    (plain,) = epochs(build(landscapes, **options), 1)
    first, second = epochs(build(landscapes, cut_out=1.0, **options), 2)
    for batch, one, other in zip(plain, first, second, strict=True):
        np.testing.assert_array_equal(batch["boxes"], one["boxes"])
        for images in (one["images"], other["images"]):
            is_hole = (images == 0).all(axis=-1) & (batch["images"] > 0).any(axis=-1)
            assert is_hole.any(axis=(1, 2)).all()
            np.testing.assert_array_equal(images[~is_hole], batch["images"][~is_hole])
        assert (one["images"] != other["images"]).any()


def test_evaluation_draws_nothing(dataset):
    options = {"training": False, "image_size": (96, 128)}
    plain = epochs(build(dataset, **options), 1)
    options.update(scale_range=RANGE, random_crop=1.0, cut_out=1.0)
    assert_same(plain, epochs(build(dataset, **options), 1))


def test_exif_is_applied_with_its_boxes(coco):
    path = coco.image(48, 64)
    pixels = np.zeros((48, 64, 3), "uint8")
    pixels[8:24, 8:40] = 255
    Image.fromarray(pixels).save(path, quality=95, exif=exif(6))
    coco.content["images"][0].update(height=64, width=48)
    # Turned by 90 degrees to the right: x = 48 - y, y = x.
    coco.box([24, 8, 16, 32])
    dataset = coco.read()
    batches = build(
        dataset,
        batch_size=1,
        training=False,
        normalization=IDENTITY,
        max_canvas_shapes=1,
    )
    (batch,) = batches.as_numpy_iterator()
    x1, y1, x2, y2 = batch["boxes"][0, 0].astype(int)
    is_bright = batch["images"][0].mean(axis=-1) > 127
    assert is_bright[y1:y2, x1:x2].all() and is_bright.sum() == 16 * 32


def test_a_format_for_pil_can_stand_among_others(coco):
    coco.image()
    pixels = np.asarray(Image.open(coco.image()))
    Image.fromarray(pixels).save(coco.directory / "1.jpg", "BMP")
    dataset = coco.read(training=False)
    assert [record.needs_pil for record in dataset] == [False, True]
    batches = build(dataset, training=False, normalization=IDENTITY)
    (batch,) = batches.as_numpy_iterator()
    np.testing.assert_array_equal(batch["images"][1, :48, :64], pixels)


def test_images_without_boxes_give_padding_only(coco):
    coco.image()
    dataset = coco.read(training=False)
    (batch,) = build(dataset, batch_size=1, training=False).as_numpy_iterator()
    np.testing.assert_array_equal(batch["labels"], [[-1]])
    np.testing.assert_array_equal(batch["boxes"], np.zeros((1, 1, 4)))


def test_own_transforms_take_the_place_of_those_of_training(dataset):
    options = {"batch_size": 1, "training": False, "normalization": IDENTITY}
    plain = epochs(build(dataset, **options), 1)[0]
    mirror = [transforms.flip_horizontal(1.0)]
    for one, other in zip(
        plain, epochs(build(dataset, transforms=mirror, **options), 1)[0], strict=True
    ):
        height, width = one["image_size"][0].astype(int)
        image = one["images"][0, :height, :width]
        np.testing.assert_array_equal(
            other["images"][0, :height, :width], image[:, ::-1]
        )


def test_an_unknown_keyword_is_refused_with_those_that_are_known(dataset):
    with pytest.raises(TypeError, match=r"max_canvas_shapes.*Received: max_shapes"):
        build(dataset, max_shapes=2)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"batch_size": 0}, "`batch_size` must be >= 1"),
        ({"seed": -1}, "`seed` must be >= 0"),
        ({"flip": 1.5}, r"`flip` must be in \[0, 1\]"),
        ({"image_size": (64, 48)}, "short <= long"),
        ({"image_size": 64}, "short <= long"),
        ({"image_size": (0, 48), "keep_ratio": False}, r"\(height, width\)"),
        ({"max_boxes": 5}, "at least 6"),
        ({"canvas_shapes": [(64, 60)]}, "multiples of 32"),
        ({"canvas_shapes": [(32, 64)]}, "must fit into one.*0.jpg"),
        ({"max_canvas_shapes": 0}, "`max_shapes` must be >= 1"),
        ({"scales": [(32, 64)], "cache_decoded": True}, "`scales` cannot be combined"),
        ({"drop_remainder": True, "batch_size": 8}, "at least one batch"),
        ({"random_crop": 1.5}, r"`random_crop` must be in \[0, 1\]"),
        ({"cut_out": -1.0}, r"`cut_out` must be in \[0, 1\]"),
        ({"scale_range": ((32, 64), (24, 96))}, "the smallest and the largest"),
        ({"scale_range": ((32, 64),)}, "the smallest and the largest"),
        ({"scale_range": ((32, 64), (96, 80))}, "short <= long"),
        ({"scale_range": RANGE, "keep_ratio": False}, "needs `keep_ratio=True`"),
        ({"scale_range": RANGE, "cache_decoded": True}, "`scale_range` and"),
        ({"oversample": 1.5}, r"`oversample` must be in \[0, 1\]"),
        ({"oversample": 0.5, "random_crop": 0.5}, "`oversample` cannot be combined"),
        ({"random_crop": 0.5, "cache_decoded": True}, "`scale_range` and"),
        ({"random_crop": 0.5, "scales": [(32, 64)]}, "cannot be combined with"),
        ({"scale_range": RANGE, "canvas_shapes": [(96, 96)]}, "cannot be combined"),
        ({"scale_range": RANGE, "max_canvas_shapes": 0}, "`max_shapes` must be >= 1"),
        (
            {"scale_range": RANGE, "drop_remainder": True, "batch_size": 8},
            "at least one batch",
        ),
        ({"batch_size": 3, "num_replicas": 2}, "a multiple of `num_replicas`"),
        ({"num_replicas": 2, "replicas": range(2, 3)}, "`replicas` must hold"),
        ({"num_replicas": 2, "pad_last_batch": False}, "shares of one size"),
    ],
)
def test_bad_arguments_are_refused(dataset, options, message):
    with pytest.raises(ValueError, match=message):
        build(dataset, **options)


@pytest.mark.parametrize("name, size", [("bccd", (96, 128)), ("coco_mini", (96, 160))])
def test_the_shared_datasets_pass_through(shared_data, name, size):
    for split, (file, image_dir) in find_coco_splits(shared_data(name)).items():
        training = split == "train"
        dataset = read_coco(file, image_dir, training=training).subset(12)
        batches = build(dataset, batch_size=4, image_size=size, training=training)
        found = set()
        for batch in batches.as_numpy_iterator():
            check_batch(batch, dataset.num_classes)
            found |= set(batch["image_id"].tolist())
        assert found - {-1} == {record.image_id for record in dataset}
