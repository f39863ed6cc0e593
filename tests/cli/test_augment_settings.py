import pytest

from vfnet_tf.cli.augment_settings import augment_of
from vfnet_tf.cli.training_options import TrainingOptions, resolve
from vfnet_tf.data.augmentation import LargeScaleJitter, MixUp
from vfnet_tf.data.augmentation.presets import PRESETS


def test_settings_change_a_preset_or_a_tuple():
    settings = ["LargeScaleJitter.scale=0.5,2", "LargeScaleJitter.min_visible=1"]
    jitter, photometric = augment_of("light", settings)
    assert jitter == LargeScaleJitter(scale=(0.5, 2.0), min_visible=1.0)
    assert photometric == PRESETS["light"][1]
    jitter, photometric = augment_of(
        (jitter, photometric), ["PhotometricDistortion.hue=3"]
    )
    assert jitter.scale == (0.5, 2.0)
    assert photometric.hue == 3.0 and photometric.brightness == 16.0


def test_the_options_reach_the_config():
    options = TrainingOptions(augment="strong", augment_set=("MixUp.probability=0.25",))
    assert MixUp(probability=0.25) in resolve(options).data.augment
    assert resolve(TrainingOptions(augment="light")).data.augment == "light"
    assert resolve(TrainingOptions()).data.augment == "flip"


@pytest.mark.parametrize(
    "text, message",
    [
        ("LargeScaleJitter.scale", "must be NAME.SETTING=VALUE.*'LargeScaleJitter.sc"),
        ("scale=2", "must be NAME.SETTING=VALUE"),
        ("LargeScaleJitter.scale=big", "must be NAME.SETTING=VALUE"),
        ("Jitter.scale=1,2", "is one of CopyPaste, .*Received: 'Jitter'"),
        ("LargeScaleJitter.size=1", "has the fields .*Received: size"),
        ("LargeScaleJitter.scale=1", "must be of type tuple"),
        ("LargeScaleJitter.scale=2,1", "ascending order"),
        ("Mosaic.probability=1", "'light' has LargeScaleJitter, Phot.*: Mosaic"),
    ],
)
def test_a_setting_that_cannot_be_is_named(text, message):
    with pytest.raises(ValueError, match=message):
        augment_of("light", [text])


def test_settings_without_a_preset_say_that_there_is_nothing_to_set():
    with pytest.raises(ValueError, match="augment='flip' has no settings"):
        resolve(TrainingOptions(augment_set=("Mosaic.probability=1",)))
