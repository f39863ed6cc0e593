import keras
import numpy as np
import pytest

from tests import contracts
from vfnet_tf.heads import VFNetHead

LEVELS = ("P3", "P4")


def features(channels=32):
    rng = np.random.default_rng(0)
    return {
        "P3": rng.normal(size=(2, 6, 5, channels)).astype("float32"),
        "P4": rng.normal(size=(2, 3, 3, channels)).astype("float32"),
    }


def small_head(**settings):
    """Two levels, three classes, initial weights that move every output."""
    keras.utils.set_random_seed(3)
    head = VFNetHead(
        3,
        32,
        1,
        levels=LEVELS,
        strides=(8, 16),
        distance_units=(64.0, 128.0),
        **settings,
    )
    head.build({level: value.shape for level, value in features().items()})
    for variable in head.variables:
        if variable.name == "kernel":
            variable.assign(5.0 * variable)
    return head


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
def test_a_head_of_zeros_gives_units_and_the_prior():
    head = small_head(prior_probability=0.02)
    for variable in head.variables:
        if variable.name == "kernel":
            variable.assign(np.zeros(variable.shape))
    found = contracts.to_numpy(head(features()))
    for level, unit in zip(LEVELS, (64, 128), strict=True):
        np.testing.assert_allclose(found["distances"][level], unit)
        np.testing.assert_allclose(found["refined_distances"][level], unit)
        scores = 1 / (1 + np.exp(-found["class_logits"][level]))
        np.testing.assert_allclose(scores, 0.02, rtol=1e-5)


@pytest.mark.backend
def test_scales_stand_inside_the_exponent():
    head = small_head()
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


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="tf.GradientTape")
@pytest.mark.parametrize("output", ["class_logits", "refined_distances"])
def test_a_tenth_of_the_stars_gradient_reaches_the_distances(output):
    whole = predictor_gradient(small_head(star_gradient=1.0), output)
    tenth = predictor_gradient(small_head(), output)
    none = predictor_gradient(small_head(star_gradient=0.0), output)
    assert np.abs(whole).max() > 0
    contracts.assert_close_to_max(tenth, 0.1 * whole, 1e-3)
    np.testing.assert_array_equal(none, 0)


@pytest.mark.backend
def test_the_head_without_refinement_predicts_the_same_but_that():
    whole, head = small_head(), small_head(refine=False)
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
    head = small_head(star=False, refine=False)
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
