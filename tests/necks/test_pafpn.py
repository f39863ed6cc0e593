import keras
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


@pytest.mark.backend
def test_shapes_are_those_of_the_inputs_then_halves():
    neck = filled()
    sizes = {level: tuple(value.shape) for level, value in neck(features()).items()}
    assert sizes["P3"] == (2, 9, 7, 32) and sizes["P7"] == (2, 1, 1, 32)
    shapes = {level: value.shape for level, value in features().items()}
    assert neck.compute_output_shape(shapes) == sizes


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


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="out_levels"):
        PAFPN(out_levels=("P3",))
    with pytest.raises(ValueError, match=r"Received: \['C4'\]"):
        PAFPN().build({"C4": (None, None, None, 4)})


def test_its_config_is_complete():
    contracts.check_config(
        PAFPN,
        {
            "filters": 8,
            "in_levels": ("C4", "C5"),
            "out_levels": ("P4", "P5", "P6"),
            "norm": None,
            "deformable": False,
        },
        base={"name": "other", "dtype": "mixed_bfloat16"},
    )


def test_a_saved_model_gives_the_same_bits(tmp_path):
    inputs = {
        level: keras.Input((None, None, value.shape[-1]), name=level)
        for level, value in features().items()
    }
    model = keras.Model(inputs, PAFPN(32)(inputs))
    contracts.randomise(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for level, value in contracts.to_numpy(model(features())).items():
        found = contracts.to_numpy(loaded(features()))[level]
        np.testing.assert_array_equal(found, value)
