import numpy as np
import pytest

from tests import contracts
from tests.necks.test_fpn import features
from vfnet_tf.necks import PAFPN


def filled(filters=32, **settings):
    neck = PAFPN(filters, **settings)
    neck.build({level: value.shape for level, value in features().items()})
    return contracts.randomise(neck)


def changed_levels(neck, level):
    """Outputs that differ when one input does."""
    before = contracts.to_numpy(neck(features()))
    inputs = features()
    inputs[level] = inputs[level] + 1.0
    after = contracts.to_numpy(neck(inputs))
    return [name for name in before if np.any(after[name] != before[name])]


@pytest.mark.parametrize("level", ["C3", "C4", "C5"])
def test_every_level_reaches_every_other(level):
    # Two channels a group: of one, in the single cell of P7, a norm leaves nothing.
    assert changed_levels(filled(64), level) == ["P3", "P4", "P5", "P6", "P7"]


def test_offset_kernels_do_not_start_at_zero():
    neck = PAFPN(32)
    neck.build({level: value.shape for level, value in features().items()})
    for layer in neck.final_outputs:
        assert np.any(contracts.to_numpy(layer.conv.conv_offset.kernel))
        assert not np.any(contracts.to_numpy(layer.conv.conv_offset.bias))


def test_plain_convolutions_have_no_offsets():
    names = {v.path.split("/")[-2] for v in filled(deformable=False).variables}
    assert "conv_offset" not in names
    assert "conv_offset" in {v.path.split("/")[-2] for v in filled().variables}
