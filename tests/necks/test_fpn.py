import numpy as np
import pytest

from tests import contracts
from vfnet_tf.necks import FPN
from vfnet_tf.necks.fpn import add_upsampled


def features(height=9, width=7):
    """C3-C5 of 2 images whose sides are halved and rounded up."""
    rng = np.random.default_rng(0)
    sizes = [(height, width)]
    for _ in range(2):
        sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
    return {
        f"C{number + 3}": rng.normal(size=(2, *size, 4 + number)).astype("float32")
        for number, size in enumerate(sizes)
    }


def filled(**settings):
    neck = FPN(6, **settings)
    neck.build({level: value.shape for level, value in features().items()})
    return contracts.randomise(neck)


@pytest.mark.backend
@pytest.mark.parametrize("level", ["P3", "P4", "P5", "P6", "P7"])
def test_maps_are_those_of_the_official_neck(check_golden_map, level):
    check_golden_map("neck", level, "")


@pytest.mark.backend
def test_upsampling_repeats_cells_and_is_cut_to_size():
    coarse = np.array([[1.0, 2.0], [3.0, 4.0]], "float32").reshape(1, 2, 2, 1)
    fine = np.full((1, 3, 4, 1), 10.0, "float32")
    found = contracts.evaluate(add_upsampled, fine, coarse)[0, ..., 0]
    np.testing.assert_array_equal(
        found, [[11, 11, 12, 12], [11, 11, 12, 12], [13, 13, 14, 14]]
    )


@pytest.mark.backend
def test_each_level_is_half_the_one_before_rounded_up():
    neck = filled()
    found = neck(features(9, 7))
    sizes = {level: tuple(value.shape) for level, value in found.items()}
    assert sizes == {
        "P3": (2, 9, 7, 6),
        "P4": (2, 5, 4, 6),
        "P5": (2, 3, 2, 6),
        "P6": (2, 2, 1, 6),
        "P7": (2, 1, 1, 6),
    }


def test_p6_sees_p5_itself_and_p7_the_positive_part_of_p6():
    with_relu = contracts.to_numpy(filled()(features()))
    without = contracts.to_numpy(filled(relu_before_extra=False)(features()))
    for level in ("P3", "P4", "P5", "P6"):
        np.testing.assert_array_equal(with_relu[level], without[level])
    assert np.any(with_relu["P6"] < 0) and np.any(with_relu["P7"] != without["P7"])


@pytest.mark.backend
def test_the_first_extra_level_may_come_from_the_last_input():
    neck = filled(extra_from="input", relu_before_extra=False)
    found = contracts.to_numpy(neck(features()))
    # C5 has 3 x 2 cells: P6 is the convolution of it with steps of 2, P7 that of P6.
    inputs = features()["C5"]
    for index, level in ((3, "P6"), (4, "P7")):
        layer = neck.outputs[index]
        np.testing.assert_array_equal(contracts.to_numpy(layer(inputs)), found[level])
        inputs = found[level]
    assert neck.outputs[3].conv.kernel.shape[2] == features()["C5"].shape[-1]
    relu = contracts.to_numpy(filled(extra_from="input")(features()))
    np.testing.assert_array_equal(relu["P6"], found["P6"])
    assert np.any(relu["P7"] != found["P7"])


@pytest.mark.backend
def test_every_convolution_may_have_a_norm_in_place_of_its_bias():
    plain, neck = FPN(32), FPN(32, norm="group_norm")
    shapes = {level: value.shape for level, value in features().items()}
    plain.build(shapes)
    neck.build(shapes)
    names = {v.path.split("/")[-1] for v in neck.trainable_variables}
    assert names == {"kernel", "gamma", "beta"}
    assert len(neck.trainable_variables) == len(plain.trainable_variables) * 3 // 2
    # Each of the 32 groups is a channel: its mean is 0 and its deviation 1.
    level = contracts.to_numpy(neck(features(18, 14)))["P3"]
    np.testing.assert_allclose(level.mean((1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(level.std((1, 2)), 1, atol=1e-2)


def test_coarse_levels_reach_the_fine_ones_and_not_the_other_way():
    neck, changed = filled(), features()
    before = contracts.to_numpy(neck(features()))
    changed["C5"] = changed["C5"] + 1.0
    after = contracts.to_numpy(neck(changed))
    assert all(np.any(after[level] != before[level]) for level in before)
    changed = features()
    changed["C3"] = changed["C3"] + 1.0
    after = contracts.to_numpy(neck(changed))
    assert [level for level in before if np.any(after[level] != before[level])] == [
        "P3"
    ]
