import keras
import numpy as np
import pytest

from tests import contracts
from tests.heads.test_vfnet import LEVELS, features
from vfnet_tf.heads import DenseHead

#: The heads of FCOS and ATSS, of RetinaNet, and one with everything.
KINDS = {
    "fcos": {"centerness": "box", "level_scales": True},
    "retinanet": {"norm": None, "anchors_per_cell": 9},
    "all": {"centerness": "class", "level_scales": True, "anchors_per_cell": 2},
}


def small_head(kind="fcos", **settings):
    """Two levels, three classes, initial weights that move every output."""
    keras.utils.set_random_seed(3)
    settings = {"levels": LEVELS, "strides": (8, 16), **KINDS[kind], **settings}
    head = DenseHead(3, 32, 1, **settings)
    head.build({level: value.shape for level, value in features().items()})
    for variable in head.variables:
        if variable.name == "kernel":
            variable.assign(5.0 * variable)
    return head


@pytest.mark.backend
@pytest.mark.parametrize("kind", KINDS)
def test_each_anchor_of_a_cell_has_its_predictions(kind):
    anchors = KINDS[kind].get("anchors_per_cell", 1)
    sizes = {"class_logits": 3 * anchors, "box_predictions": 4 * anchors}
    if "centerness" in KINDS[kind]:
        sizes["centerness_logits"] = anchors
    head = small_head(kind)
    found = head(features())
    spec = head({k: keras.KerasTensor(v.shape) for k, v in features().items()})
    assert list(found) == list(spec) == list(sizes)
    for name, size in sizes.items():
        for level, value in features().items():
            expected = (*value.shape[:-1], size)
            assert tuple(found[name][level].shape) == expected
            assert tuple(spec[name][level].shape) == expected


@pytest.mark.backend
def test_a_head_of_zeros_gives_zeros_and_the_prior():
    head = small_head("all", prior_probability=0.02)
    for variable in head.variables:
        if variable.name == "kernel":
            variable.assign(np.zeros(variable.shape))
    found = contracts.to_numpy(head(features()))
    for level in LEVELS:
        np.testing.assert_array_equal(found["box_predictions"][level], 0)
        np.testing.assert_array_equal(found["centerness_logits"][level], 0)
        scores = 1 / (1 + np.exp(-found["class_logits"][level]))
        np.testing.assert_allclose(scores, 0.02, rtol=1e-5)


@pytest.mark.backend
def test_the_scale_of_a_level_multiplies_its_boxes_alone():
    head = small_head()
    plain = contracts.to_numpy(head(features()))
    head.scales[1].scale.assign(-2.0)
    scaled = contracts.to_numpy(head(features()))
    expected = {**plain["box_predictions"]}
    expected["P4"] = -2 * expected["P4"]
    for level in LEVELS:
        np.testing.assert_allclose(scaled["box_predictions"][level], expected[level])
        for name in ("class_logits", "centerness_logits"):
            np.testing.assert_array_equal(scaled[name][level], plain[name][level])
    assert small_head("retinanet").scales == []


@pytest.mark.backend
@pytest.mark.parametrize("tower", ["box", "class"])
def test_centerness_comes_from_the_tower_that_is_named(tower):
    head = small_head(centerness=tower)
    before = contracts.to_numpy(head(features()))
    for variable in head.box_tower.variables:
        variable.assign(np.zeros(variable.shape))
    after = contracts.to_numpy(head(features()))
    for level in LEVELS:
        differs = np.any(
            after["centerness_logits"][level] != before["centerness_logits"][level]
        )
        assert differs == (tower == "box")
        np.testing.assert_array_equal(
            after["class_logits"][level], before["class_logits"][level]
        )


def test_towers_without_a_norm_have_biases():
    names = [
        variable.path for variable in small_head("retinanet").class_tower.variables
    ]
    assert [name.split("/")[-1] for name in names] == ["kernel", "bias"]
    names = [variable.path for variable in small_head().class_tower.variables]
    assert [name.split("/")[-1] for name in names] == ["kernel", "gamma", "beta"]
