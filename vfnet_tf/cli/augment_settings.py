"""The option `--augment-set`: single settings of the augmentations."""

import json

from vfnet_tf import config as configs


def augment_of(augment, settings):
    """`DataConfig.augment` with single settings changed.

    Args:
        augment: name of a preset, or a tuple of augmentations.
        settings: strings `NAME.SETTING=VALUE`, such as `Mosaic.probability=0.3` or
            `LargeScaleJitter.scale=0.5,2`.

    Returns:
        Tuple of `Augmentation`.

    Raises:
        ValueError: a string of another form, or a name, setting or value that does not
            exist there.
    """
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
