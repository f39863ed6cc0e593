import numpy as np
import pytest

from tests import contracts
from tests.heads.small_heads import LEVELS, features, small_head
from vfnet_tf.heads import VFNetHead


@pytest.mark.backend
@pytest.mark.parametrize("level", ["P3", "P4", "P5", "P6", "P7"])
@pytest.mark.parametrize(
    ("output", "recorded_as"),
    [
        ("class_logits", "cls_score"),
        ("distances", "bbox_pred"),
        ("refined_distances", "bbox_pred_refine"),
    ],
)
def test_outputs_are_those_of_the_official_head(
    check_golden_map, output, recorded_as, level
):
    check_golden_map(output, level, recorded_as)


@pytest.mark.backend
def test_scales_stand_inside_the_exponent():
    head = small_head(VFNetHead)
    plain = contracts.to_numpy(head(features()))
    head.scales[0].scale.assign(2.0)
    head.refine_scales[1].scale.assign(0.5)
    scaled = contracts.to_numpy(head(features()))
    np.testing.assert_allclose(
        scaled["distances"]["P3"], 64 * (plain["distances"]["P3"] / 64) ** 2, rtol=1e-4
    )
    np.testing.assert_array_equal(scaled["distances"]["P4"], plain["distances"]["P4"])
    factor = plain["refined_distances"]["P4"] / plain["distances"]["P4"]
    np.testing.assert_allclose(
        scaled["refined_distances"]["P4"],
        np.sqrt(factor) * plain["distances"]["P4"],
        rtol=1e-4,
    )


def predictor_gradient(head, output):
    """Gradient of one output's sum at the kernel of the initial prediction."""
    import tensorflow as tf

    with tf.GradientTape() as tape:
        total = sum(tf.reduce_sum(value) for value in head(features())[output].values())
    kernel = head.box_predictor.conv.kernel.value
    gradient = tape.gradient(total, kernel, unconnected_gradients="zero")
    return contracts.to_numpy(gradient)


@contracts.on_tensorflow
@pytest.mark.parametrize("output", ["class_logits", "refined_distances"])
def test_a_tenth_of_the_stars_gradient_reaches_the_distances(output):
    whole = predictor_gradient(small_head(VFNetHead, star_gradient=1.0), output)
    tenth = predictor_gradient(small_head(VFNetHead), output)
    none = predictor_gradient(small_head(VFNetHead, star_gradient=0.0), output)
    assert np.abs(whole).max() > 0
    contracts.assert_close_to_max(tenth, 0.1 * whole, 1e-3)
    np.testing.assert_array_equal(none, 0)


@pytest.mark.backend
def test_the_head_without_refinement_predicts_the_same_but_that():
    whole, head = small_head(VFNetHead), small_head(VFNetHead, refine=False)
    theirs = {v.path.split("/", 1)[1]: v for v in whole.variables}
    for variable in head.variables:
        variable.assign(theirs[variable.path.split("/", 1)[1]])
    found = contracts.to_numpy(head(features()))
    assert set(found) == {"class_logits", "distances"}
    expected = contracts.to_numpy(whole(features()))
    for name, levels in found.items():
        for level, value in levels.items():
            np.testing.assert_allclose(value, expected[name][level], rtol=1e-4)


@pytest.mark.backend
def test_the_raw_heads_scores_do_not_depend_on_its_distances():
    head = small_head(VFNetHead, star=False, refine=False)
    names = {v.path for v in head.variables}
    assert not any("star" in name or "refine" in name for name in names)
    assert sum("/class_conv/" in name for name in names) == 3  # kernel, gamma, beta
    before = contracts.to_numpy(head(features()))
    assert set(before) == {"class_logits", "distances"}
    head.scales[0].scale.assign(3.0)
    after = contracts.to_numpy(head(features()))
    assert np.any(after["distances"]["P3"] != before["distances"]["P3"])
    for level in LEVELS:
        np.testing.assert_array_equal(
            after["class_logits"][level], before["class_logits"][level]
        )
