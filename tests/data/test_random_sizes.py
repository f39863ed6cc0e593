import itertools

import numpy as np
import pytest

from vfnet_tf.data import transforms
from vfnet_tf.data.canvases import keep_ratio_sizes
from vfnet_tf.data.random_sizes import RandomSizes, choose_nested_canvases

WHOLE = np.array([[0, 0, 1000, 1000]])


def make(sizes, scale_range, crop=0.0, boxes=None, **options):
    sizes = np.asarray(sizes)
    boxes = [WHOLE] * len(sizes) if boxes is None else boxes
    landscape = sizes[:, 1] > sizes[:, 0]
    return RandomSizes(sizes, boxes, landscape, scale_range, crop, **options)


def rng():
    return np.random.default_rng(5)


def test_sizes_are_those_of_the_transform():
    generator = rng()
    sizes = generator.integers(1, 900, (50, 2))
    short = generator.integers(1, 900, 50)
    long = short + generator.integers(0, 900, 50)
    found = keep_ratio_sizes(sizes, short, long)
    for row, size in enumerate(sizes):
        expected = transforms.keep_ratio_size(size, short[row], long[row])
        np.testing.assert_array_equal(found[row], expected)


def test_nested_canvases_by_hand():
    sizes = [(20, 30), (32, 32), (1, 1), (60, 64)]
    # 3 x 1024 + 1 x 6144 pixels; with (64, 64) first it were 4 x 4096.
    found = choose_nested_canvases(sizes, (60, 90), 2)
    assert found.tolist() == [[32, 32], [64, 96]]
    found = choose_nested_canvases(sizes, (60, 90), 3)
    assert found.tolist() == [[32, 32], [64, 64], [64, 96]]
    assert choose_nested_canvases(sizes, (60, 90), 1).tolist() == [[64, 96]]
    # No more than are of use.
    assert len(choose_nested_canvases(sizes, (60, 90), 9)) == 3


@pytest.mark.parametrize("count", [2, 3])
def test_nested_canvases_waste_as_little_as_any_chain(count):
    sizes = rng().integers(1, 129, (40, 2))
    cells = list(itertools.product((32, 64, 96, 128), repeat=2))

    def area(chain):
        fits = (sizes[:, None] <= np.asarray(chain)).all(axis=-1)
        return np.prod(chain, axis=-1)[fits.argmax(axis=1)].sum()

    chains = [(*chain, (128, 128)) for chain in itertools.combinations(cells, count)]
    least = min(area(chain) for chain in chains if (np.diff(chain, axis=0) >= 0).all())
    found = choose_nested_canvases(sizes, (128, 128), count + 1)
    assert (np.diff(found, axis=0) >= 0).all()
    assert area(found) == least


def test_both_sides_of_a_scale_are_drawn_evenly_and_independently():
    sizes = make([(60, 80)] * 9000, ((4, 10), (6, 12)))
    scales = sizes.draw(rng()).scales
    pairs, counts = np.unique(scales, axis=0, return_counts=True)
    expected = list(itertools.product((4, 5, 6), (10, 11, 12)))
    assert pairs.tolist() == [list(pair) for pair in expected]
    # 1000 each, five standard deviations are 149.
    assert counts.min() > 850 and counts.max() < 1150


def test_a_short_side_drawn_larger_than_the_long_one_changes_places():
    draws = make([(60, 80)] * 4000, ((10, 12), (30, 20))).draw(rng())
    short, long = draws.scales.T
    assert (short <= long).all()
    assert long.max() == 30 and short.max() == 20
    np.testing.assert_array_equal(
        draws.sizes, keep_ratio_sizes([(60, 80)] * 4000, short, long)
    )


def test_a_crop_has_three_quarters_to_all_of_each_side_and_lies_anywhere():
    draws = make([(20, 40)] * 6000, ((20, 40), (20, 40)), crop=1.0).draw(rng())
    top, left, height, width = draws.crops.T
    # int(15 + .5) to int(20 - .0 + .5).
    assert set(height) == set(range(15, 21)) and set(width) == set(range(30, 41))
    assert (top >= 0).all() and (top + height <= 20).all()
    assert (left >= 0).all() and (left + width <= 40).all()
    for corner, room in ((top, 20 - height), (left, 40 - width)):
        ratio = corner[room > 0] / room[room > 0]
        assert ratio.min() == 0 and ratio.max() == 1
        assert abs(ratio.mean() - 0.5) < 0.03
    assert abs(np.corrcoef(height, width)[0, 1]) < 0.06
    # Ends of the range round from half a pixel only.
    assert 400 < (height == 15).sum() < 800 < (height == 16).sum() < 1600


@pytest.mark.parametrize("probability", [0.0, 0.5])
def test_crops_keep_to_their_probability(probability):
    sizes = make([(200, 400)] * 2000, ((20, 40), (20, 40)), crop=probability)
    is_whole = (sizes.draw(rng()).crops == [0, 0, 200, 400]).all(axis=1)
    assert abs(is_whole.mean() - (1 - probability)) < 0.06


def test_the_crop_is_what_is_scaled():
    draws = make([(20, 40)] * 50, ((30, 50), (60, 90)), crop=1.0).draw(rng())
    expected = keep_ratio_sizes(draws.crops[:, 2:], *draws.scales.T)
    np.testing.assert_array_equal(draws.sizes, expected)


def test_an_image_that_would_lose_all_boxes_is_replaced_by_one_of_its_orientation():
    # Half of the landscapes have a box of one pixel in the corner, lost by most crops.
    corner = np.array([[0, 0, 1, 1]])
    sizes = [(100, 200), (100, 200), (200, 100)] * 400
    boxes = [corner, WHOLE, WHOLE] * 400
    sizes = make(sizes, ((20, 40), (20, 40)), crop=1.0, boxes=boxes)
    draws = sizes.draw(rng())
    places = np.arange(1200)
    is_corner = places % 3 == 0
    np.testing.assert_array_equal(draws.records[~is_corner], places[~is_corner])
    # What stands there now is landscape, and a corner only where the crop keeps it.
    kinds = draws.records[is_corner] % 3
    assert (kinds < 2).all() and (kinds == 1).sum() > 300
    is_kept = (draws.crops[:, :2] == 0).all(axis=1)
    assert is_kept[draws.records % 3 == 0].all()
    assert len(set(draws.records[is_corner])) > 100


def test_images_whose_crops_all_lose_their_boxes_are_taken_whole():
    sizes = [(1000, 2000)] * 30
    boxes = [np.array([[0, 0, 0.5, 0.5]])] * 30
    draws = make(sizes, ((20, 40), (20, 40)), crop=1.0, boxes=boxes).draw(rng())
    assert (draws.crops[:, :2] == 0).all()
    assert (draws.crops == [0, 0, 1000, 2000]).all(axis=1).any()


def test_images_without_boxes_are_cropped_as_they_are():
    boxes = [np.zeros((0, 4)), WHOLE] * 50
    sizes = make([(100, 200)] * 100, ((20, 40), (20, 40)), crop=1.0, boxes=boxes)
    draws = sizes.draw(rng())
    np.testing.assert_array_equal(draws.records, np.arange(100))
    assert (draws.crops[:, 2:] < [100, 200]).any()


def test_bounds_by_hand():
    # Of 60 x 80 the least are 45 and 60: 60 x 60 becomes 100 high. 45 x 80, scaled by
    # 100 / 45 and not by 200 / 80, is 177.8 wide.
    sizes = make([(60, 80)], ((10, 20), (100, 200)), crop=0.1)
    np.testing.assert_array_equal(sizes.bounds(), [[100, 178]])
    sizes = make([(60, 80)], ((10, 20), (100, 200)))
    np.testing.assert_array_equal(sizes.bounds(), [[100, 133]])
    sizes = make([(60, 80)], ((50, 70), (50, 70)), crop=1.0, keep_ratio=False)
    np.testing.assert_array_equal(sizes.bounds(), [[50, 70]])


def test_no_image_exceeds_its_bounds_or_its_last_canvas():
    generator = rng()
    sizes = generator.integers(33, 300, (300, 2))
    sizes = make(sizes, ((50, 75), (140, 210)), crop=0.5)
    canvases = sizes.choose_canvases(6)
    assert sum(len(rows) for rows in canvases.values()) <= 6
    for _ in range(20):
        draws = sizes.draw(generator)
        for side, rows in canvases.items():
            assert (draws.sizes[sizes.landscape == side] <= rows[-1]).all()
        same = draws.records == np.arange(300)
        assert (draws.sizes[same] <= sizes.bounds()[same]).all()


def test_the_last_canvas_holds_what_no_sample_may_have_shown():
    # 60 x 80 fits 100000 high, 60 x 300 fits 200000 wide.
    sizes = make([(60, 80), (60, 300)], ((10, 20), (100_000, 200_000)))
    canvases = sizes.choose_canvases(1)
    assert canvases[True].tolist() == [[100_000, 200_000]]


def test_one_canvas_is_shared_by_both_orientations():
    sizes = make([(60, 80), (80, 60)], ((40, 60), (60, 90)))
    canvases = sizes.choose_canvases(1)
    assert canvases[True].tolist() == canvases[False].tolist() == [[96, 96]]
    # What cannot be shared equally goes to the commoner orientation.
    sizes = make([(60, 80), (80, 60), (80, 60)], ((40, 60), (90, 120)))
    canvases = sizes.choose_canvases(3)
    assert len(canvases[True]) == 1 and len(canvases[False]) == 2
