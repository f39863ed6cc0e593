import keras
import numpy as np
import pytest

from tests.contracts import to_numpy, with_policy
from vfnet_tf.backbones import ResNet


@pytest.mark.backend
@pytest.mark.parametrize("level", ["C2", "C3", "C4", "C5"])
def test_maps_are_those_of_the_official_resnet50(check_golden_map, level):
    check_golden_map("backbone", level, "")


@pytest.fixture(scope="module")
def resnet18():
    return ResNet(18)


@pytest.mark.parametrize(("depth", "channels"), [(18, 64), (34, 64), (50, 256)])
def test_shapes_round_up_at_every_stride(depth, channels):
    spec = ResNet(depth)(keras.KerasTensor((2, 70, 101, 3)))
    sizes = [(18, 26), (9, 13), (5, 7), (3, 4)]
    for number, (height, width) in enumerate(sizes):
        shape = (2, height, width, channels * 2**number)
        assert spec[f"C{number + 2}"].shape == shape


def test_symbolic_shapes_are_the_real_ones(resnet18):
    images = np.zeros((1, 70, 101, 3), "float32")
    symbolic = resnet18(keras.KerasTensor(images.shape))
    for level, value in resnet18(images).items():
        assert tuple(value.shape) == tuple(symbolic[level].shape)


@pytest.mark.parametrize(
    ("frozen_stages", "first_trained"),
    [(-1, "conv1"), (0, "layer1_0"), (1, "layer2_0"), (3, "layer4_0"), (4, None)],
)
def test_frozen_stages_have_no_trained_weights(frozen_stages, first_trained):
    trained = ResNet(18, frozen_stages=frozen_stages).trainable_variables
    if first_trained is None:
        assert trained == []
    else:
        assert trained[0].path.split("/")[-3].startswith(first_trained)


def test_frozen_statistics_stay_as_they_are_in_training(resnet18):
    image = np.random.default_rng(0).normal(size=(1, 64, 64, 3)).astype("float32")
    before = to_numpy(resnet18.non_trainable_variables)
    in_training = to_numpy(resnet18(image, training=True))
    for old, new in zip(before, resnet18.non_trainable_variables, strict=True):
        np.testing.assert_array_equal(old, to_numpy(new))
    for level, value in to_numpy(resnet18(image, training=False)).items():
        np.testing.assert_array_equal(value, in_training[level])


def test_trained_statistics_follow_the_batch_beyond_the_frozen_stages():
    model = ResNet(18, norm="batch_norm", frozen_stages=1)
    image = np.random.default_rng(0).normal(size=(1, 64, 64, 3)).astype("float32")
    model(image, training=True)
    moved = {
        layer.name: bool(np.any(to_numpy(layer.norm_layer.moving_mean)))
        for layer in model.layers
        if hasattr(layer, "norm_layer")
    }
    assert not moved["conv1"] and not moved["layer1_1_conv2"]
    assert moved["layer2_0_conv1"] and moved["layer4_1_conv2"]


def test_pyramid_outputs_follow_kerashubs_convention(resnet18):
    assert list(resnet18.pyramid_outputs) == ["P2", "P3", "P4", "P5"]
    assert resnet18.pyramid_outputs["P4"] is resnet18.output["C4"]


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="depth=19"):
        ResNet(19)
    with pytest.raises(ValueError, match="frozen_stages=5"):
        ResNet(18, frozen_stages=5)
    with pytest.raises(ValueError, match="norm=instance_norm"):
        ResNet(18, norm="instance_norm")


def test_its_config_is_complete():
    model = ResNet(
        34, "batch_norm", frozen_stages=2, input_shape=(64, 96, 3), name="other"
    )
    copy = ResNet.from_config(model.get_config())
    assert (copy.depth, copy.norm, copy.frozen_stages) == (34, "batch_norm", 2)
    assert copy.name == "other"
    assert copy.input_shape == (None, 64, 96, 3)
    assert len(copy.trainable_variables) == len(model.trainable_variables)
    assert len(copy.variables) == len(model.variables)


def test_the_config_of_a_resnext_is_complete():
    arguments = {"groups": 8, "width_per_group": 2, "deformable": ("C5",)}
    copy = ResNet.from_config(ResNet(50, **arguments).get_config())
    assert {name: getattr(copy, name) for name in arguments} == arguments


def test_a_saved_model_gives_the_same_bits(tmp_path, resnet18):
    image = np.random.default_rng(1).normal(size=(1, 64, 64, 3)).astype("float32")
    resnet18.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for level, value in to_numpy(resnet18(image)).items():
        np.testing.assert_array_equal(to_numpy(loaded(image))[level], value)


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 18, "groups": 32}, "need bottlenecks"),
        ({"depth": 50, "deformable": ("C6",)}, "deformable=\\('C6',\\)"),
    ],
)
def test_settings_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ResNet(**arguments)


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
