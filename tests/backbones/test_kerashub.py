import json
import sys

import keras
import numpy as np
import pytest

from tests.contracts import assert_close_to_max, to_numpy
from vfnet_tf.backbones import kerashub
from vfnet_tf.builder import build_backbone, normalization_for
from vfnet_tf.config import BackboneConfig, Config, from_dict, override, to_dict
from vfnet_tf.data.normalization import TORCHVISION
from vfnet_tf.training.trainer import without_weight_file

IMAGE = np.random.default_rng(0).normal(size=(1, 64, 96, 3)).astype("float32")


@pytest.fixture(scope="module")
def keras_hub():
    return pytest.importorskip("keras_hub", reason="keras-hub is not installed")


@pytest.fixture(scope="module")
def source(keras_hub):
    return keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[3],
        stackwise_num_filters=[64, 8, 16, 24],
        stackwise_num_blocks=[1, 1, 1, 1],
        stackwise_num_strides=[1, 2, 2, 2],
        block_type="basic_block",
    )


@pytest.fixture(scope="module")
def preset(source, tmp_path_factory):
    directory = tmp_path_factory.mktemp("kerashub") / "resnet"
    source.save_to_preset(str(directory))
    return directory


def test_a_preset_is_a_backbone_with_its_weights(source, preset):
    backbone = build_backbone(
        BackboneConfig(f"kerashub:{preset}", weights="pretrained")
    )
    maps = to_numpy(backbone(IMAGE, training=True))
    levels = [source.pyramid_outputs[level] for level in ("P3", "P4", "P5")]
    expected = keras.Model(source.inputs, levels)([IMAGE], training=False)
    assert {k: v.shape for k, v in maps.items()} == {
        "C3": (1, 8, 12, 8),
        "C4": (1, 4, 6, 16),
        "C5": (1, 2, 3, 24),
    }
    for found, value in zip(maps.values(), expected, strict=True):
        assert_close_to_max(found, to_numpy(value), 1e-5)
    trained = {v.path.split("/")[0] for v in backbone.trainable_variables}
    assert not any(name.startswith(("conv1", "stack0")) for name in trained)
    assert any(name.startswith("stack1") for name in trained)


def test_a_run_is_rebuilt_where_the_preset_is_gone(preset):
    config = override(
        Config(),
        model__backbone__name=f"kerashub:{preset}",
        model__backbone__weights="pretrained",
    )
    backbone = build_backbone(config.model.backbone)
    kept = without_weight_file(config, backbone)
    kept = override(kept, model__backbone__name="kerashub:/nowhere/any/more")
    read = from_dict(json.loads(json.dumps(to_dict(kept))))
    assert read.model.backbone.weights is None
    stored = json.loads(read.model.backbone.architecture)
    assert stored["config"] and "dtype" not in stored["config"]
    rebuilt = build_backbone(read.model.backbone)
    rebuilt.set_weights(backbone.get_weights())
    for found, expected in zip(
        to_numpy(rebuilt(IMAGE)).values(),
        to_numpy(backbone(IMAGE)).values(),
        strict=True,
    ):
        np.testing.assert_array_equal(found, expected)
    # What is kept stays the same, or a run could not be resumed.
    assert kerashub.architecture_of(rebuilt) == read.model.backbone.architecture


def test_pixels_become_inputs_as_the_presets_converter_says(
    keras_hub, preset, tmp_path
):
    name = f"kerashub:{preset}"
    assert normalization_for(name) == TORCHVISION
    said = kerashub.describe_normalization(normalization_for(name))
    assert "a default, as the preset has no image converter" in said
    for path in preset.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 3)).astype("float32")
    for scale, offset in (([0.01, 0.02, 0.03], [-1.0, 2.0, 0.5]), (1 / 255, None)):
        converter = keras_hub.layers.ResNetImageConverter(scale=scale, offset=offset)
        converter.save_to_preset(str(tmp_path))
        found = normalization_for(f"kerashub:{tmp_path}")
        np.testing.assert_allclose(
            found(pixels), to_numpy(converter(pixels)), rtol=1e-5, atol=1e-5
        )
        assert "the preset's image converter" in kerashub.describe_normalization(found)


def test_a_preset_of_one_size_is_made_for_any_or_refused(keras_hub, tmp_path):
    settings = {"stackwise_num_repeats": [1] * 5, "stackwise_num_filters": [4] * 5}
    fixed = keras_hub.models.VGGBackbone(**settings, image_shape=(64, 64, 3))
    fixed.save_to_preset(str(tmp_path / "vgg"))
    backbone = build_backbone(BackboneConfig(f"kerashub:{tmp_path / 'vgg'}"))
    assert to_numpy(backbone(IMAGE))["C5"].shape == (1, 2, 3, 4)
    transformer = keras_hub.models.ViTBackbone(
        image_shape=(64, 64, 3),
        patch_size=16,
        num_layers=1,
        num_heads=1,
        hidden_dim=4,
        mlp_dim=4,
    )
    transformer.save_to_preset(str(tmp_path / "vit"))
    with pytest.raises(ValueError, match="maps of the strides 8, 16 and 32"):
        build_backbone(BackboneConfig(f"kerashub:{tmp_path / 'vit'}"))


def test_a_preset_that_is_not_there_is_named(keras_hub):
    with pytest.raises(ValueError, match="Received: kerashub:/nowhere"):
        kerashub.load_preset("/nowhere")


def test_without_keras_hub_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "keras_hub", None)
    with pytest.raises(ImportError, match=r"vfnet_tf\[kerashub\]"):
        build_backbone(BackboneConfig("kerashub:resnet_50_imagenet"))
    with pytest.raises(ImportError, match=r"vfnet_tf\[kerashub\]"):
        normalization_for("kerashub:resnet_50_imagenet")
