import json

import pytest

from vfnet_tf.config import (
    Config,
    from_dict,
    load_config,
    override,
    save_config,
    to_dict,
)
from vfnet_tf.data import augmentation
from vfnet_tf.data.augmentation import LargeScaleJitter, MixUp, Mosaic
from vfnet_tf.data.augmentation.presets import (
    PRESETS,
    augmentations,
    training_transforms,
    with_settings,
)
from vfnet_tf.data.settings import DataConfig


class Own(Mosaic):
    """An augmentation that no config can keep."""


def test_the_paper_is_the_default_and_flips_only():
    assert DataConfig().augment == "flip"
    assert augmentations("flip") == augmentations("none") == ()
    assert len(training_transforms(DataConfig())) == 2  # cut_out and flip
    assert training_transforms(DataConfig(augment="none")) == []


def test_augmentations_come_before_those_of_the_fields():
    added = (Mosaic(), MixUp())
    transforms = training_transforms(DataConfig(augment=added))
    assert tuple(transforms[:2]) == added and len(transforms) == 4
    assert (
        tuple(training_transforms(DataConfig(augment="light"))[:-2])
        == (PRESETS["light"])
    )


@pytest.mark.parametrize("fields", [{"cut_out": 0.5}, {"random_crop": 0.5}])
def test_none_and_what_it_leaves_out_exclude_each_other(fields):
    with pytest.raises(ValueError, match='"none"` leaves images as they are'):
        training_transforms(DataConfig(augment="none", **fields))


def test_json_keeps_presets_and_tuples(tmp_path):
    every = [getattr(augmentation, name)() for name in augmentation.__all__[1:]]
    own = (*every, LargeScaleJitter(scale=(0.5, 3.0), min_visible=0.125))
    for augment in ("strong", own, ()):
        config = override(Config(), data__augment=augment)
        copy = from_dict(json.loads(json.dumps(to_dict(config))))
        assert copy == config and hash(copy) == hash(config)
        assert from_dict(to_dict(config.data), DataConfig) == config.data
        save_config(config, tmp_path / "config.json")
        assert load_config(tmp_path / "config.json") == config


def test_settings_change_one_transform_each():
    strong = with_settings("strong", {"MixUp": {"probability": 0.25}})
    assert MixUp(probability=0.25) in strong and len(strong) == len(PRESETS["strong"])
    changed = [a != b for a, b in zip(strong, PRESETS["strong"], strict=True)]
    assert sum(changed) == 1


@pytest.mark.parametrize("each", [len, Own(), Mosaic])
def test_a_config_refuses_what_it_cannot_keep(each, tmp_path):
    config = override(Config(), data__augment=(each,))
    for act in (training_transforms, to_dict):
        with pytest.raises(
            ValueError, match="must hold .* of `Trainer` and `build_pip"
        ):
            act(config.data)
    with pytest.raises(ValueError, match="Received: "):
        save_config(config, tmp_path / "config.json")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "act, message",
    [
        (lambda: augmentations("heavy"), "one of none, flip, light, strong.*'heavy'"),
        (lambda: augmentations("ligth"), r"augment='ligth'\. Did you mean light\?"),
        (lambda: with_settings("flip", {"Mosiac": {}}), r"Did you mean Mosaic\?"),
        (
            lambda: from_dict({"augment": [{"name": "Mosiac"}]}, DataConfig),
            "is one of CopyPaste, .*Received: 'Mosiac'",
        ),
        (
            lambda: from_dict({"augment": ["Mosaic"]}, DataConfig),
            "must be a JSON object with its `name`.*Received: 'Mosaic'",
        ),
        (
            lambda: from_dict({"augment": [{"name": "Mosaic", "x": 1}]}, DataConfig),
            r"Mosaic has no such fields. Received: \['x'\]",
        ),
        (
            lambda: from_dict(
                {"augment": [{"name": "Mosaic", "limits": {}}]}, DataConfig
            ),
            r"Received: \['limits'\]",
        ),
    ],
)
def test_what_does_not_exist_is_named(act, message):
    with pytest.raises(ValueError, match=message):
        act()
