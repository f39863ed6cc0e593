import numpy as np
import pytest
import tensorflow as tf

from vfnet_tf.data import transforms

RNG = tf.constant([1, 2])


def make_pixels(height=20, width=30):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), "uint8")


def make_example(image, boxes=((1, 2, 11, 12),)):
    boxes = np.asarray(boxes, "float32").reshape(-1, 4)
    return {
        "image": tf.constant(image),
        "boxes": tf.constant(boxes),
        "labels": tf.zeros(len(boxes), "int32"),
        "image_id": tf.constant(1, "int64"),
    }


@pytest.mark.parametrize(
    "size, short, long, expected",
    [
        # 800 / 480 = 1.667: 640 * 1.667 = 1066.67, + .5 cut to 1067.
        ((480, 640), 800, 1333, (800, 1067)),
        ((640, 480), 800, 1333, (1067, 800)),
        # The long side limits: 1333 / 1000; 400 * 1.333 = 533.2.
        ((400, 1000), 800, 1333, (533, 1333)),
        # 5 * .5 = 2.5, + .5 gives 3 where rounding half to even would give 2.
        ((5, 10), 3, 5, (3, 5)),
        ((480, 640), 256, 320, (240, 320)),
        ((1, 1000), 256, 320, (1, 320)),
    ],
)
def test_keep_ratio_sizes_by_hand(size, short, long, expected):
    np.testing.assert_array_equal(
        transforms.keep_ratio_size(size, short, long), expected
    )


def test_resizing_interpolates_with_half_pixel_centres():
    # Target centres lie at -.25, .25, .75, 1.25 between the two source pixels.
    # 24.75 and 74.25 are rounded, not cut.
    image = np.repeat(np.array([[[0], [99]]], "uint8"), 3, axis=-1)
    out = transforms.resize_exact(1, 4)(make_example(image, [[0, 0, 1, 1]]))
    np.testing.assert_array_equal(out["image"][0, :, 0], [0, 25, 74, 99])
    assert out["image"].dtype == tf.uint8


def test_boxes_scale_by_axis_and_scale_is_height_first():
    # 7 x 10 by a factor .5 is 4 x 5: the axes differ.
    example = make_example(make_pixels(7, 10), [[2, 3.5, 10, 7]])
    out = transforms.resize_keep_ratio(4, 5)(example)
    assert out["image"].shape == (4, 5, 3)
    np.testing.assert_allclose(out["scale"], [4 / 7, 0.5], rtol=1e-6)
    np.testing.assert_allclose(out["boxes"], [[1, 2, 5, 4]], rtol=1e-6)


def test_an_edge_at_the_border_stays_at_the_border():
    # In float32 75 * (320 / 75) is 320.00003.
    example = make_example(make_pixels(40, 75), [[0, 0, 75, 40]])
    out = transforms.resize_keep_ratio(256, 320)(example)
    assert out["image"].shape[1] == 320
    assert float(out["boxes"][0, 2]) == 320.0


@pytest.mark.parametrize("size", [(53, 71), (64, 20), (200, 300), (113, 170)])
def test_pixels_do_not_depend_on_the_type_that_they_are_resized_in(size):
    # Smaller than 113x171 from uint8, larger from float32.
    pixels = np.random.default_rng(3).integers(0, 256, (113, 171, 3), dtype="uint8")
    out = transforms.resize_exact(*size)(make_example(pixels))
    expected = tf.image.resize(pixels.astype("float32"), size, "bilinear")
    np.testing.assert_array_equal(out["image"], np.round(expected).astype("uint8"))


def test_a_stretched_image_takes_no_negative_step_through_its_size():
    """At one, TensorFlow's optimiser gives up the whole graph and prints an error."""
    transform = transforms.resize_exact(20, 30)
    image = tf.TensorSpec([None, None, 3], "uint8")
    boxes = tf.TensorSpec([None, 4], "float32")
    function = tf.function(
        lambda image, boxes: transform({"image": image, "boxes": boxes}), [image, boxes]
    )
    slices = [
        operation
        for operation in function.get_concrete_function().graph.get_operations()
        if operation.type == "StridedSlice"
    ]
    assert slices
    for operation in slices:
        assert tf.get_static_value(operation.inputs[3]).min() > 0


def test_the_same_size_leaves_the_pixels_alone():
    example = make_example(make_pixels())
    out = transforms.resize_exact(20, 30)(example)
    np.testing.assert_array_equal(out["image"], example["image"])


def test_a_crop_clips_boxes_and_removes_those_outside():
    boxes = [[0, 0, 8, 8], [6, 5, 20, 25], [2, 2, 5, 9], [25, 3, 30, 9], [9, 9, 12, 12]]
    example = make_example(make_pixels(20, 30), boxes)
    example["labels"] = tf.range(5)
    out = transforms.crop(4, 5, 12, 16)(example)
    np.testing.assert_array_equal(out["image"], example["image"][4:16, 5:21])
    # The third ends at the left edge, the fourth begins beyond the right one.
    expected = [[0, 0, 3, 4], [1, 1, 15, 12], [4, 5, 7, 8]]
    np.testing.assert_array_equal(out["boxes"], expected)
    np.testing.assert_array_equal(out["labels"], [0, 1, 4])


def test_a_crop_may_leave_no_box():
    example = make_example(make_pixels(20, 30), [[0, 0, 5, 5]])
    crop = tf.function(lambda e, left: transforms.crop(0, left, 20, 20)(e))
    out = crop(example, tf.constant(5))
    assert out["boxes"].shape == (0, 4) and out["labels"].shape == (0,)
    assert crop(example, tf.constant(4))["boxes"].shape == (1, 4)


def cut(cut_out, height, width, count):
    """`count` white images after a cut-out, with seeds of their own."""
    example = make_example(np.full((height, width, 3), 255, "uint8"))
    transform = tf.function(cut_out)
    outs = [transform(example, tf.constant([3, index])) for index in range(count)]
    for out in outs:
        np.testing.assert_array_equal(out["boxes"], example["boxes"])
        assert out["image"].dtype == tf.uint8
    images = np.stack([out["image"] for out in outs])
    assert (images == images[..., :1]).all()
    return images[..., 0]


def test_a_hole_begins_at_any_pixel_and_is_cut_off_at_the_edges():
    images = cut(transforms.cut_out((1, 1), ((3, 2),), 1.0), 4, 5, 300)
    corners = set()
    for image in images:
        y, x = np.argwhere(image == 0)[0]
        corners.add((int(y), int(x)))
        expected = np.full((4, 5), 255)
        # Width comes first in a size, and the corner is the top left one.
        expected[y : y + 2, x : x + 3] = 0
        np.testing.assert_array_equal(image, expected)
    assert corners == {(y, x) for y in range(4) for x in range(5)}


def test_the_number_of_holes_has_both_ends_of_its_range():
    # Two holes of one pixel each coincide once in 480 000 pairs.
    images = cut(transforms.cut_out((5, 10), ((1, 1),), 1.0), 600, 800, 60)
    assert set((images == 0).sum(axis=(1, 2)).tolist()) == {5, 6, 7, 8, 9, 10}


def test_holes_draw_every_size():
    sizes = ((1, 4), (4, 1), (2, 2))
    images = cut(transforms.cut_out((1, 1), sizes, 1.0), 400, 500, 60)
    found = []
    for image in images:
        rows, columns = np.nonzero(image == 0)
        found.append((int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1))
    assert set(found) == set(sizes)
    assert min(found.count(size) for size in sizes) > 8


def test_a_cut_out_depends_on_the_seed_alone_and_keeps_to_its_probability():
    transform = transforms.cut_out(probability=0.5)
    first, again = cut(transform, 100, 120, 60), cut(transform, 100, 120, 60)
    np.testing.assert_array_equal(first, again)
    num_cut = (first == 0).any(axis=(1, 2)).sum()
    assert 15 < num_cut < 45
    assert (cut(transforms.cut_out(probability=0.0), 100, 120, 9) == 255).all()


def test_a_flip_mirrors_pixels_and_boxes():
    example = make_example(make_pixels(20, 30), [[1, 2, 11, 12], [0, 0, 30, 20]])
    out = transforms.flip_horizontal(1.0)(example, RNG)
    np.testing.assert_array_equal(out["image"], example["image"][:, ::-1])
    np.testing.assert_array_equal(out["boxes"], [[19, 2, 29, 12], [0, 0, 30, 20]])


def test_a_flip_depends_on_the_seed_alone():
    example = make_example(make_pixels())
    flip = transforms.flip_horizontal(0.5)
    seeds = [tf.constant([7, index]) for index in range(40)]
    first = [float(flip(example, seed)["boxes"][0, 0]) for seed in seeds]
    again = [float(flip(example, seed)["boxes"][0, 0]) for seed in seeds]
    assert first == again
    assert 10 < sum(x == 1 for x in first) < 30


def test_what_is_put_in_front_leaves_the_draws_of_the_others():
    def note(example, rng):
        return {**example, "rng": rng}

    still = transforms.flip_horizontal(0)
    example = make_example(make_pixels())
    for steps in ([note], [still, note]):
        noted = transforms.compose(steps)(example, RNG)["rng"]
        np.testing.assert_array_equal(noted, RNG)
    moved = transforms.compose([note, still])(example, RNG)["rng"]
    assert np.any(np.asarray(moved) != np.asarray(RNG))
