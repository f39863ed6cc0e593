import json
import pathlib

import pytest

from vfnet_tf.checkpoints.names import is_ignorable, official_variables, resnet_names

STATE = pathlib.Path(__file__).parents[1] / "golden" / "vfnet_r50_state.json"


@pytest.mark.parametrize(
    ("ours", "conv", "norm"),
    [
        ("conv1", "conv1", "bn1"),
        ("layer2_0_conv1", "layer2.0.conv1", "layer2.0.bn1"),
        ("layer4_2_conv3", "layer4.2.conv3", "layer4.2.bn3"),
        ("layer3_22_conv2", "layer3.22.conv2", "layer3.22.bn2"),
        (
            "layer1_0_downsample",
            "layer1.0.downsample.0",
            "layer1.0.downsample.1",
        ),
    ],
)
def test_layers_of_a_resnet_have_torchvisions_names(ours, conv, norm):
    assert resnet_names(ours) == (conv, norm)


def test_unknown_layers_have_no_name():
    with pytest.raises(ValueError, match="layer name=block_3"):
        resnet_names("block_3")


def test_every_tensor_of_the_official_model_has_one_variable(golden_detector):
    state = json.loads(STATE.read_text(encoding="utf-8"))
    variables = official_variables(golden_detector)
    needed = {name: shape for name, shape, _ in state if not is_ignorable(name)}
    assert set(variables) == set(needed)
    assert len({id(variable) for variable in variables.values()}) == len(variables)
    assert len(variables) == len(golden_detector.variables)
    for name, shape in needed.items():
        ours = tuple(variables[name].shape)
        if len(shape) == 4:
            out, inner, height, width = shape
            shape = (height, width, inner, out)
        assert ours == tuple(shape)


def test_only_the_batch_counters_are_left_out():
    assert is_ignorable("backbone.bn1.num_batches_tracked")
    assert not is_ignorable("backbone.bn1.running_mean")
