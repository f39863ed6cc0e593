import numpy as np
import pytest

from tests import contracts
from tests.heads.small_heads import LEVELS, features, small_head
from vfnet_tf.heads import DenseHead


@pytest.mark.backend
def test_the_scale_of_a_level_multiplies_its_boxes_alone():
    head = small_head(DenseHead, centerness="box", level_scales=True)
    plain = contracts.to_numpy(head(features()))
    head.scales[1].scale.assign(-2.0)
    scaled = contracts.to_numpy(head(features()))
    expected = {**plain["box_predictions"]}
    expected["P4"] = -2 * expected["P4"]
    for level in LEVELS:
        np.testing.assert_allclose(scaled["box_predictions"][level], expected[level])
        for name in ("class_logits", "centerness_logits"):
            np.testing.assert_array_equal(scaled[name][level], plain[name][level])
    assert small_head(DenseHead).scales == []


@pytest.mark.backend
@pytest.mark.parametrize("tower", ["box", "class"])
def test_centerness_comes_from_the_tower_that_is_named(tower):
    head = small_head(DenseHead, centerness=tower)
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
