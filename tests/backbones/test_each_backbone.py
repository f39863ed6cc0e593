"""Every backbone: shapes, what trains, config and files."""

import keras
import numpy as np
import pytest

from tests.conftest import tiny_model
from tests.contracts import assert_same_bits, to_numpy
from vfnet_tf.backbones import KerasBackbone, Res2Net, ResNet

IMAGE = np.random.default_rng(0).normal(size=(1, 64, 64, 3)).astype("float32")
LAYERS = ("c3", "c4_bn", "c5")
BUILDS = {
    "resnet": lambda: ResNet(18),
    "res2net": lambda: Res2Net(50),
    "keras": lambda: KerasBackbone(tiny_model(), LAYERS),
}


@pytest.fixture(scope="module", params=BUILDS)
def backbone(request):
    return BUILDS[request.param]()


@pytest.mark.parametrize(
    ("cls", "depth", "channels"),
    [(ResNet, 18, 64), (ResNet, 34, 64), (ResNet, 50, 256), (Res2Net, 50, 256)],
)
def test_shapes_round_up_at_every_stride(cls, depth, channels):
    spec = cls(depth)(keras.KerasTensor((2, 70, 101, 3)))
    sizes = [(18, 26), (9, 13), (5, 7), (3, 4)]
    for number, (height, width) in enumerate(sizes):
        shape = (2, height, width, channels * 2**number)
        assert spec[f"C{number + 2}"].shape == shape


def test_symbolic_shapes_are_the_real_ones(backbone):
    images = np.zeros((1, 70, 101, 3), "float32")
    symbolic = backbone(keras.KerasTensor(images.shape))
    for level, value in backbone(images).items():
        assert tuple(value.shape) == tuple(symbolic[level].shape)


def test_a_saved_model_gives_the_same_bits(tmp_path, backbone):
    backbone.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert_same_bits(loaded(IMAGE), to_numpy(backbone(IMAGE)))


def test_frozen_statistics_stay_as_they_are_in_training(backbone):
    before = to_numpy(backbone.non_trainable_variables)
    in_training = to_numpy(backbone(IMAGE, training=True))
    assert_same_bits(backbone.non_trainable_variables, before)
    assert_same_bits(backbone(IMAGE, training=False), in_training)


@pytest.mark.parametrize(
    ("cls", "depth", "frozen_stages", "first_trained"),
    [
        (ResNet, 18, -1, "conv1"),
        (ResNet, 18, 0, "layer1_0"),
        (ResNet, 18, 1, "layer2_0"),
        (ResNet, 18, 3, "layer4_0"),
        (ResNet, 18, 4, None),
        (Res2Net, 50, -1, "stem0"),
        (Res2Net, 50, 0, "layer1_0"),
        (Res2Net, 50, 1, "layer2_0"),
    ],
)
def test_frozen_stages_have_no_trained_weights(
    cls, depth, frozen_stages, first_trained
):
    trained = cls(depth, frozen_stages=frozen_stages).trainable_variables
    if first_trained is None:
        assert trained == []
    else:
        assert trained[0].path.split("/")[-3].startswith(first_trained)


@pytest.mark.parametrize(("cls", "depth"), [(ResNet, 18), (Res2Net, 50)])
def test_trained_statistics_follow_the_batch_beyond_the_frozen_stages(cls, depth):
    model = cls(depth, norm="batch_norm", frozen_stages=1)
    model(IMAGE, training=True)
    moved = {
        layer.name: bool(np.any(to_numpy(layer.norm_layer.moving_mean)))
        for layer in model.layers
        if hasattr(layer, "norm_layer")
    }
    assert len(moved) > 15
    for name, has_moved in moved.items():
        is_frozen = name.startswith(("conv1", "stem", "layer1"))
        assert has_moved == (not is_frozen), name


COMMON = {"name": "other", "input_shape": (64, 96, 3), "dtype": "mixed_bfloat16"}
#: Classes and arguments off their defaults.
CONFIGS = [
    (ResNet, {"depth": 34, "norm": "batch_norm", "frozen_stages": 2}),
    (
        ResNet,
        {"depth": 50, "groups": 8, "width_per_group": 2, "deformable": ("C5",)},
    ),
    (
        Res2Net,
        {
            "depth": 50,
            "base_width": 8,
            "scales": 3,
            "deformable": ("C5",),
            "norm": "batch_norm",
            "frozen_stages": 2,
        },
    ),
]


@pytest.mark.parametrize(("cls", "arguments"), CONFIGS)
def test_its_config_keeps_every_argument(cls, arguments):
    model = cls(**arguments, **COMMON)
    copy = cls.from_config(model.get_config())
    assert {name: getattr(copy, name) for name in arguments} == arguments
    assert copy.name == "other" and copy.input_shape == (None, 64, 96, 3)
    assert copy.layers[1].dtype_policy.name == "mixed_bfloat16"
    assert len(copy.trainable_variables) == len(model.trainable_variables)
    assert len(copy.variables) == len(model.variables)


@pytest.mark.parametrize(
    ("cls", "arguments", "message"),
    [
        (ResNet, {"depth": 19}, "depth=19"),
        (ResNet, {"frozen_stages": 5}, "frozen_stages=5"),
        (ResNet, {"norm": "instance_norm"}, "norm=instance_norm"),
        (ResNet, {"depth": 18, "groups": 32}, "depth=18, groups=32"),
        (ResNet, {"deformable": ("C6",)}, r"deformable=\('C6',\)"),
        (Res2Net, {"depth": 18}, "depth=18"),
        (Res2Net, {"scales": 1}, "scales=1"),
        (Res2Net, {"frozen_stages": 5}, "frozen_stages=5"),
        (Res2Net, {"deformable": ("P3",)}, r"deformable=\('P3',\)"),
    ],
)
def test_wrong_arguments_are_refused_by_name(cls, arguments, message):
    with pytest.raises(ValueError, match=message):
        cls(**arguments)
