import dataclasses
import json
import pathlib

import pytest

from vfnet_tf.config import (
    BackboneConfig,
    Config,
    DataConfig,
    ModelConfig,
    TrainingConfig,
    did_you_mean,
    from_dict,
    list_configs,
    load_config,
    override,
    save_config,
    to_dict,
)
from vfnet_tf.data.normalization import Normalization

#: Values of fields whose default does not show their type.
TYPED = {
    "ema_momentum": 0.5,
    "clip_norm": 35.0,
    "class_names": ("cat", "dog"),
    "deformable": ("C3", "C5"),
    "architecture": '{"class_name": "ResNetBackbone"}',
    "scales": ((320, 640), (480, 960)),
    "scale_range": ((480, 1333), (960, 1333)),
}


def off_default(kind):
    """A value of every field that is not its default."""
    values = {}
    for field in dataclasses.fields(kind):
        default = field.default
        if field.name in TYPED:
            values[field.name] = TYPED[field.name]
        elif isinstance(default, Normalization):
            values[field.name] = Normalization((1, 2, 3), (4, 5, 6), "bgr")
        elif dataclasses.is_dataclass(default):
            values[field.name] = off_default(type(default))
        elif isinstance(default, bool):
            values[field.name] = not default
        elif isinstance(default, int | float):
            values[field.name] = default + 1
        elif isinstance(default, str) or default is None:
            values[field.name] = "other"
        else:
            values[field.name] = tuple(item + 1 for item in default) or (3, 9)
    return kind(**values)


def test_the_defaults_are_the_papers():
    config = Config()
    assert config.model.backbone == BackboneConfig("resnet50", "frozen_batch_norm", 1)
    assert (config.model.num_classes, config.model.class_loss) == (80, "varifocal")
    assert (config.model.loss_alpha, config.model.loss_gamma) == (0.75, 2.0)
    weights = config.model.box_loss_weight, config.model.refined_box_loss_weight
    assert weights == (1.5, 2.0)
    assert config.model.score_threshold == 0.05
    assert (config.model.nms, config.model.nms_iou_threshold) == ("hard", 0.6)
    assert config.data.image_size == (800, 1333)
    assert config.training.base_learning_rate == 0.01
    assert config.training.base_batch_size == 16
    assert config.training.drop_epochs == (8, 11)


@pytest.mark.parametrize("kind", [BackboneConfig, ModelConfig, DataConfig, Config])
def test_json_keeps_every_field_off_its_default(kind):
    config = off_default(kind)
    for field in dataclasses.fields(kind):
        assert getattr(config, field.name) != getattr(kind(), field.name)
    text = json.dumps(to_dict(config))
    copy = from_dict(json.loads(text), kind)
    assert copy == config
    assert hash(copy) == hash(config)  # tuples came back as tuples


def test_a_config_is_saved_and_found_by_its_path_or_directory(tmp_path):
    config = off_default(Config)
    save_config(config, tmp_path / "config.json")
    assert load_config(tmp_path / "config.json") == config
    # A run holds its weights: those of the backbone are not fetched to read it.
    run = override(config, model__backbone__weights=None)
    assert config.model.backbone.weights is not None
    assert load_config(str(tmp_path)) == run
    assert load_config(config) is config


def test_the_shipped_configs_load_and_have_the_names_of_their_files():
    names = list_configs()
    assert "vfnet_r50_fpn_1x_coco" in names and "__init__" not in names
    for name in names:
        assert load_config(name).name == name


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "3",
        '{"model": []}',
        '{"model": {"head_convs": null}}',
        "[" * 10**5,
    ],
)
def test_a_damaged_file_is_named(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_text(text)
    for given in (path, tmp_path):
        with pytest.raises(ValueError, match=r"Received: .*config\.json: "):
            load_config(given)


def test_a_python_file_that_defines_config_is_read(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from vfnet_tf.config import Config, ModelConfig\n"
        "config = Config('mine', ModelConfig(num_classes=4))\n"
    )
    assert load_config(path).model.num_classes == 4
    path.write_text("config = {'name': 'mine'}\n")
    with pytest.raises(ValueError, match="must define `config`"):
        load_config(path)


def test_an_unknown_config_lists_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match=r"vfnet_r51.*vfnet_r50_fpn_1x_coco"):
        load_config("vfnet_r51")
    with pytest.raises(ValueError, match="config.json"):
        load_config(tmp_path)


def test_names_are_filtered_by_part_or_pattern():
    assert "vfnet_r101_fpn_2x_coco" in list_configs("r101")
    assert list_configs("vfnet_r*_1x_coco") == [
        "vfnet_r101_fpn_1x_coco",
        "vfnet_r50_fpn_1x_coco",
        "vfnet_raw_r50_fpn_1x_coco",
        "vfnet_raw_vfl_r50_fpn_1x_coco",
    ]
    assert list_configs("yolo") == []


def test_the_error_for_a_misspelt_config_names_similar_ones():
    with pytest.raises(ValueError, match=r"Did you mean vfnet_r50_fpn_1x_coco or "):
        load_config("vfnet_r50_1x_coco")
    assert did_you_mean("resnet51", ["resnet50", "fpn"]) == " Did you mean resnet50?"
    assert did_you_mean("zzz", ["resnet50"]) == ""


def test_overrides_reach_nested_fields_and_leave_the_original():
    config = Config()
    changed = override(
        config, name="mine", model__num_classes=3, model__backbone__norm="batch_norm"
    )
    assert (changed.name, changed.model.num_classes) == ("mine", 3)
    assert changed.model.backbone == BackboneConfig(norm="batch_norm")
    assert changed.data is config.data
    assert (config.model.num_classes, config.name) == (80, "vfnet_r50_fpn_1x_coco")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__num_clases": 3}, "num_clases"),
        ({"modle__num_classes": 3}, "modle"),
        ({"model__num_classes": "3"}, "ModelConfig.num_classes='3'"),
        ({"model__num_classes": True}, "num_classes=True"),
        ({"model__num_classes": 3.5}, "num_classes=3.5"),
        ({"training__clip_norm": True}, "clip_norm=True"),
        ({"model__iou_weighted": 1}, "iou_weighted=1"),
        ({"model__nms": None}, "nms=None"),
        ({"model__soft_nms_sigma": "0.5"}, "soft_nms_sigma='0.5'"),
        ({"data__image_size": (1, 2, 3)}, "image_size"),
        ({"data__image_size": 640}, "image_size=640"),
        ({"class_names": ("cat", 3)}, "class_names=3"),
        ({"model__backbone__weights": 3}, "weights=3"),
        ({"model": "vfnet"}, "Config.model='vfnet'"),
    ],
)
def test_wrong_fields_and_types_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        override(Config(), **changes)


def test_whole_numbers_serve_as_floats_and_lists_as_tuples():
    changed = override(Config(), data__image_size=[480, 640], class_names=["a"])
    training = override(changed, training__momentum=0, training__clip_norm=35).training
    assert isinstance(training.momentum, float)
    assert isinstance(training.clip_norm, float)  # an optional one
    assert changed.data.image_size == (480, 640)
    assert changed.class_names == ("a",)
    assert override(TrainingConfig(), drop_epochs=[7.5, 8]).drop_epochs == (7.5, 8.0)


def test_unknown_keys_of_a_file_are_refused():
    values = to_dict(Config())
    values["model"]["anchors"] = 9
    with pytest.raises(ValueError, match="ModelConfig.*anchors"):
        from_dict(values)


def test_configs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().name = "other"


@pytest.mark.parametrize(
    ("stem", "classifier"),
    [
        ("vfnet_r50_fpn_1x_coco", "vfnet_cls"),
        ("vfl_retinanet_r50_fpn_4x4_1x_coco", "retina_cls"),
    ],
)
def test_biases_are_trained_as_in_the_official_config(stem, classifier):
    path = pathlib.Path(__file__).parent / "golden" / "bias_multipliers.json"
    biases = json.loads(path.read_text(encoding="utf-8"))[stem]["biases"]
    training = load_config(stem).training
    found = [training.bias_lr_multiplier, training.bias_decay_multiplier]
    assert found == biases[f"bbox_head.{classifier}.bias"]


def test_multi_scale_configs_draw_from_the_official_ranges():
    stems = [name for name in list_configs() if "mstrain_2x" in name]
    assert len(stems) == 10
    for stem in stems:
        data = load_config(stem).data
        assert data.scale_range == ((480, 1333), (960, 1333))
        assert (data.scales, data.random_crop, data.cut_out) == ((), 0.0, 0.0)
    data = load_config("vfnetx_r2_101_fpn_mdconv_c3-c5_mstrain_59e_coco").data
    assert data.scale_range == ((500, 750), (1400, 2100))
    assert (data.random_crop, data.cut_out, data.flip) == (0.5, 0.5, 0.5)
    assert (data.scales, data.image_size) == ((), (800, 1333))
