import pytest

from vfnet_tf.cli.augment_settings import augment_changes
from vfnet_tf.cli.training_options import TrainingOptions, resolve
from vfnet_tf.data import augmentation
from vfnet_tf.data.augmentation import (
    CopyPaste,
    JpegQuality,
    LargeScaleJitter,
    MixUp,
    Mosaic,
    PhotometricDistortion,
    QuarterTurn,
    VerticalFlip,
)
from vfnet_tf.data.augmentation.presets import PRESETS
from vfnet_tf.data.settings import DataConfig

JITTER, COLOURS = PRESETS["light"]


def augment_of(augment, *settings):
    return augment_changes(DataConfig(augment=augment), (), settings)["augment"]


def test_settings_change_a_preset_or_a_tuple():
    settings = ["LargeScaleJitter.scale=0.5,2", "LargeScaleJitter.min_visible=1"]
    jitter, photometric = augment_of("light", *settings)
    assert jitter == LargeScaleJitter(scale=(0.5, 2.0), min_visible=1.0)
    assert photometric == PRESETS["light"][1]
    jitter, photometric = augment_of(
        (jitter, photometric), "PhotometricDistortion.hue=3"
    )
    assert jitter.scale == (0.5, 2.0)
    assert photometric.hue == 3.0 and photometric.brightness == 16.0


@pytest.mark.parametrize(
    "words, settings, changes",
    [
        ((), (), {}),
        (("light",), (), {"augment": "light"}),
        ((), ("Mosaic.probability=0.5",), {"augment": (Mosaic(probability=0.5),)}),
        (
            ("QuarterTurn", "light", "VerticalFlip"),
            ("JpegQuality.quality=50,60",),
            {
                "augment": (
                    JITTER,
                    VerticalFlip(),
                    QuarterTurn(),
                    COLOURS,
                    JpegQuality(quality=(50, 60)),
                )
            },
        ),
        (
            ("strong", "MixUp", "LargeScaleJitter"),
            (),
            {"augment": (*PRESETS["strong"][:2], MixUp(), *PRESETS["strong"][3:])},
        ),
        (
            ("strong",),
            ("partners_off=0.2", "flip=0"),
            {"augment": "strong", "partners_off": 0.2, "flip": 0.0},
        ),
        (
            ("none", "VerticalFlip"),
            ("cut_out=0.5",),
            {
                "augment": (VerticalFlip(),),
                "flip": 0.0,
                "random_crop": 0.0,
                "cut_out": 0.5,
            },
        ),
    ],
)
def test_what_is_named_is_added_in_the_order_of_the_presets(words, settings, changes):
    assert augment_changes(DataConfig(), words, settings) == changes


def test_every_augmentation_is_added_by_one_setting():
    for name in set(augmentation.__all__) - {"Augmentation"}:
        (added,) = augment_of("flip", f"{name}.probability=0.125")
        assert added == getattr(augmentation, name)(probability=0.125)


@pytest.mark.parametrize(
    "text, added",
    [
        ("CopyPaste.from_partner=True", CopyPaste(from_partner=True)),
        ("CopyPaste.from_partner=true", CopyPaste(from_partner=True)),
        ("LargeScaleJitter.probability=.5", LargeScaleJitter(probability=0.5)),
        ("LargeScaleJitter.scale=(.5,2)", LargeScaleJitter(scale=(0.5, 2.0))),
        ("LargeScaleJitter.scale=[0.5, 2]", LargeScaleJitter(scale=(0.5, 2.0))),
        (" LargeScaleJitter.scale = 0.5, 2", LargeScaleJitter(scale=(0.5, 2.0))),
        ("PhotometricDistortion.hue=1e1", PhotometricDistortion(hue=10.0)),
    ],
)
def test_values_are_written_as_in_python_or_json(text, added):
    assert augment_of("flip", text) == (added,)


def test_the_options_reach_the_config():
    options = TrainingOptions(
        augment=("strong",), augment_set=("MixUp.probability=0.25", "flip=0")
    )
    data = resolve(options).data
    assert MixUp(probability=0.25) in data.augment and data.flip == 0
    assert resolve(TrainingOptions(augment=("light",))).data.augment == "light"
    assert resolve(TrainingOptions()).data.augment == "flip"


@pytest.mark.parametrize(
    "text, message",
    [
        ("LargeScaleJitter.scale", "must be NAME.SETTING=VALUE.*'LargeScaleJitter.sc"),
        ("scale=2", "must be NAME.SETTING=VALUE.*partners_off=VALUE.*'scale=2'"),
        ("partner_off=0.2", r"'partner_off=0.2'\. Did you mean partners_off"),
        ("partners_off=2", "from 0 to 1 for partners_off.*'partners_off=2'"),
        ("flip=True", "from 0 to 1 for flip"),
        ("LargeScaleJitter.scale=big", "finite number.*'LargeScaleJitter.scale=big'"),
        ("PhotometricDistortion.hue=nan", "finite number.*hue=nan'"),
        ("PhotometricDistortion.hue=NaN", "finite number.*hue=NaN'"),
        ("LargeScaleJitter.scale=0.5,1e999", "finite number.*1e999'"),
        ("photometricdistortion.hue=1", r"'photome.*mean PhotometricDistortion\?"),
        ("Photometric.hue=1", r"mean PhotometricDistortion\?"),
        ("Blur.sigma=1,2", r"is one of CopyPaste, .*mean GaussianBlur\?"),
        ("LargeScaleJitter.size=1", "has the fields .*Received: size"),
        ("LargeScaleJitter.prob=1", r"Received: prob\. Did you mean probability\?"),
        ("LargeScaleJitter.scale=1", "must be of type tuple"),
        ("LargeScaleJitter.scale=2,1", "ascending order"),
    ],
)
def test_a_setting_that_cannot_be_is_named(text, message):
    with pytest.raises(ValueError, match=message):
        augment_of("light", text)


@pytest.mark.parametrize(
    "words, message",
    [
        (["heavy"], "one of none, flip, light, strong, and .*CopyPaste.*'heavy'"),
        (["light", "verticalflip"], r"mean VerticalFlip"),
        (["Strong"], r"Received: 'Strong'\. Did you mean strong\?"),
        (["light", "strong"], "one of none.*Received: light strong"),
    ],
)
def test_a_word_that_names_nothing_is_refused(words, message):
    with pytest.raises(ValueError, match=message):
        augment_changes(DataConfig(), words, ())
