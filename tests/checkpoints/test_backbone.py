import re

import numpy as np
import pytest

from tests.contracts import to_numpy
from vfnet_tf.backbones import Res2Net, ResNet
from vfnet_tf.checkpoints.backbone import load_backbone_weights
from vfnet_tf.checkpoints.names import backbone_variables
from vfnet_tf.checkpoints.tensors import pytorch_shape, to_keras_layout


@pytest.fixture(scope="module")
def torchvision(golden_weights):
    """ResNet-50 by torchvision's names: the official names are these with a prefix."""
    tensors = {
        name.removeprefix("backbone."): tensor
        for name, tensor in golden_weights.items()
        if name.startswith("backbone.")
    }
    # 53 convolutions, 53 norms of 5 tensors, the classifier.
    tensors["fc.weight"] = np.zeros((1000, 2048), "float32")
    tensors["fc.bias"] = np.zeros(1000, "float32")
    assert len(tensors) == 53 * 6 + 2
    return tensors


@pytest.fixture(scope="module")
def resnet():
    return ResNet(50)


def assert_loaded(backbone, tensors):
    for name, variable in backbone_variables(backbone).items():
        if ".conv_offset." not in name:
            np.testing.assert_array_equal(
                to_numpy(variable), to_keras_layout(tensors[name])
            )


def reset(backbone):
    for variable in backbone.weights:
        variable.assign(np.zeros(variable.shape, "float32"))


def random_tensors(backbone):
    rng = np.random.default_rng(0)
    return {
        name: rng.standard_normal(pytorch_shape(variable), "float32")
        for name, variable in backbone_variables(backbone).items()
    }


@pytest.mark.parametrize("kind", ["mapping", "pth", "safetensors", "parallel"])
def test_torchvisions_weights_are_loaded(tmp_path, resnet, torchvision, kind):
    reset(resnet)
    weights = torchvision
    if kind == "pth":
        torch = pytest.importorskip("torch")
        weights = tmp_path / "resnet50.pth"
        torch.save({n: torch.tensor(t) for n, t in torchvision.items()}, weights)
    if kind == "safetensors":
        weights = tmp_path / "resnet50.safetensors"
        pytest.importorskip("safetensors.numpy").save_file(torchvision, weights)
    if kind == "parallel":
        weights = {
            "state_dict": {f"module.{name}": t for name, t in torchvision.items()}
        }
    assert load_backbone_weights(resnet, weights) is resnet
    assert_loaded(resnet, torchvision)


def test_offsets_may_be_missing_and_stay_as_they_are(torchvision):
    backbone = ResNet(50, deformable=("C5",))
    offsets = {
        name: variable
        for name, variable in backbone_variables(backbone).items()
        if ".conv_offset." in name
    }
    assert len(offsets) == 6  # kernel and bias in each of three blocks
    for variable in offsets.values():
        variable.assign(np.full(variable.shape, 0.25))
    load_backbone_weights(backbone, torchvision)
    assert_loaded(backbone, torchvision)
    for variable in offsets.values():
        np.testing.assert_array_equal(to_numpy(variable), 0.25)


def test_a_grouped_convolution_is_loaded():
    backbone = ResNet(50, groups=32, width_per_group=4)
    tensors = random_tensors(backbone)
    # ResNeXt-50 32x4d: 128 channels in groups of 4.
    assert tensors["layer1.0.conv2.weight"].shape == (128, 4, 3, 3)
    load_backbone_weights(backbone, tensors)
    assert_loaded(backbone, tensors)


@pytest.mark.parametrize("names", ["official", "timm"])
def test_res2net_is_loaded_by_official_and_by_timms_names(names):
    backbone = Res2Net(50)
    tensors = random_tensors(backbone)
    # timm: three convolutions with two norms in a sequence, the third norm outside.
    stem = {0: "conv1.0", 1: "conv1.1", 3: "conv1.3", 4: "conv1.4", 6: "conv1.6"}
    stem[7] = "bn1"
    given = dict(tensors, **{"fc.weight": np.zeros((1000, 2048), "float32")})
    if names == "timm":
        given = {
            re.sub(r"^stem\.(\d)", lambda m: stem[int(m.group(1))], name): tensor
            for name, tensor in given.items()
        }
        assert {"conv1.6.weight", "bn1.running_var", "conv1.4.bias"} <= set(given)
        assert not any(name.startswith("stem.") for name in given)
    reset(backbone)
    load_backbone_weights(backbone, given)
    assert_loaded(backbone, tensors)


def test_wrong_tensors_are_listed_and_nothing_is_loaded(resnet, torchvision):
    reset(resnet)
    tensors = {
        **torchvision,
        "layer3.6.conv1.weight": np.zeros((256, 1024, 1, 1), "float32"),
        "layer2.0.conv2.weight": np.zeros((128, 4, 3, 3), "float32"),
        "bn1.weight": np.zeros(64, "int32"),
    }
    del tensors["layer3.5.bn2.running_var"]
    with pytest.raises(ValueError) as error:
        load_backbone_weights(resnet, tensors)
    for problem in (
        "4 problems",
        "missing: layer3.5.bn2.running_var",
        "not in the model: layer3.6.conv1.weight",
        "shape: layer2.0.conv2.weight is (3, 3, 4, 128)",
        "dtype: bn1.weight is int32",
    ):
        assert problem in str(error.value)
    assert all(not to_numpy(variable).any() for variable in resnet.weights)


def test_the_weights_of_a_whole_detector_are_refused(resnet, golden_weights):
    with pytest.raises(ValueError, match="load_pytorch_checkpoint"):
        load_backbone_weights(resnet, golden_weights)


def test_a_keras_model_has_no_such_names(small_detector, torchvision):
    with pytest.raises(ValueError, match="must be a ResNet or Res2Net"):
        load_backbone_weights(small_detector().backbone, torchvision)
