"""The options `--augment` and `--augment-set`: a preset, and single settings of it."""

import json

from vfnet_tf import config as configs


def augment_of(augment, settings, default):
    """`DataConfig.augment` by the options; None if neither is given.

    Args:
        augment: name of a preset, or None for `default`.
        settings: strings `NAME.SETTING=VALUE`, such as `Mosaic.probability=0.3` or
            `LargeScaleJitter.scale=0.5,2`.
        default: `augment` of the config.

    Raises:
        ValueError: a string of another form, or a name, setting or value that does not
            exist there.
    """
    augment = default if augment is None and settings else augment
    if not settings:
        return augment
    from vfnet_tf.data.augmentation import presets

    changes = {}
    for text in settings:
        name, setting, value = _parse(text)
        example = presets.augmentation_class(name)()
        # It checks that the setting exists, and its type.
        changed = configs.override(example, **{setting: value})
        changes.setdefault(name, {})[setting] = getattr(changed, setting)
    return presets.with_settings(augment, changes)


def _parse(text):
    """(name, setting, value) of `NAME.SETTING=VALUE`."""
    key, is_given, value = text.partition("=")
    name, has_setting, setting = key.partition(".")
    try:
        value = json.loads(f"[{value}]" if "," in value else value)
    except ValueError:
        is_given = ""
    if not (is_given and has_setting):
        raise ValueError(
            "`--augment-set` must be NAME.SETTING=VALUE, such as Mosaic.probability=0.3 "
            f"or LargeScaleJitter.scale=0.5,2. Received: {text!r}"
        )
    return name, setting, value
