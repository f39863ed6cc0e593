import keras
import pytest

from tests.contracts import with_policy
from vfnet_tf.backbones import ResNet


@pytest.mark.backend
@pytest.mark.parametrize("level", ["C2", "C3", "C4", "C5"])
def test_maps_are_those_of_the_official_resnet50(check_golden_map, level):
    check_golden_map("backbone", level, "")


def test_pyramid_outputs_follow_kerashubs_convention():
    resnet18 = ResNet(18)
    assert list(resnet18.pyramid_outputs) == ["P2", "P3", "P4", "P5"]
    assert resnet18.pyramid_outputs["P4"] is resnet18.output["C4"]


def test_widths_of_resnext_follow_groups_and_width_per_group():
    model = ResNet(50, groups=32, width_per_group=4, deformable=("C4",))
    for name, shape in (
        ("layer1_0_conv1", (1, 1, 64, 128)),
        ("layer1_0_conv2", (3, 3, 4, 128)),
        ("layer4_2_conv2", (3, 3, 32, 1024)),
        ("layer4_2_conv3", (1, 1, 1024, 2048)),
    ):
        assert tuple(model.get_layer(name).conv.kernel.shape) == shape
    deformable = [
        layer.name for layer in model.layers if getattr(layer, "deformable", False)
    ]
    assert deformable == [f"layer3_{block}_conv2" for block in range(6)]


def test_its_dtype_policy_stays_in_configs_and_files(tmp_path):
    backbone = with_policy("mixed_bfloat16", lambda: ResNet(18))
    backbone.save(tmp_path / "backbone.keras")
    found = {
        "argument": ResNet(18, dtype="mixed_bfloat16"),
        "config": ResNet.from_config(backbone.get_config()),
        "file": keras.saving.load_model(tmp_path / "backbone.keras"),
    }
    for name, copy in found.items():
        assert copy.dtype_policy.name == "mixed_bfloat16", name
        policies = {layer.dtype_policy.name for layer in copy._flatten_layers()}
        assert policies - {"float32"} == {"mixed_bfloat16"}, name
    assert keras.config.dtype_policy().name == "float32"
