"""The options `--augment` and `--augment-set`: what is drawn for a training image."""

import ast
import json
import math

from vfnet_tf import config as configs

#: Fields of `DataConfig` that `--augment-set` takes besides those of augmentations.
FIELDS = ("flip", "random_crop", "cut_out", "partners_off")


def augment_changes(data, words, settings):
    """The fields of a `DataConfig` that the two options change.

    Args:
        data: `DataConfig` of the config.
        words: strings of `--augment`: the name of a preset at most, and names of
            augmentations that are added.
        settings: strings of `--augment-set`: `NAME.SETTING=VALUE`, such as
            `Mosaic.probability=0.3` or `LargeScaleJitter.scale=0.5,2`, where NAME is
            added if it is not there; or `FIELD=VALUE` with one of `FIELDS`.

    Returns:
        dict of field -> value, empty without words and settings.

    Raises:
        ValueError: a string of another form, or a name, setting or value that does not
            exist there.
    """
    from vfnet_tf.data.augmentation import presets

    if not (words or settings):
        return {}
    augment, names = _preset_and_names(words)
    augment = augment or data.augment
    is_on = {
        type(each).__name__
        for each in presets.augmentations(augment)
        if not each.is_idle
    }
    # What is named runs, also where the preset has it with probability 0.
    parts = {
        name: {} if name in is_on else _probability(presets.augmentation_class(name))
        for name in names
    }
    fields = {}
    for text in settings:
        name, setting, value = _parse(text)
        if name is None:
            fields[setting] = _share(setting, value, text)
            continue
        example = presets.augmentation_class(name)()
        # It checks that the setting exists, and its type.
        changed = configs.override(example, **{setting: value})
        parts.setdefault(name, {})[setting] = getattr(changed, setting)
    if augment == "none" and (parts or fields):
        # Something besides nothing: still without the flip, unless it is asked for.
        fields = {"flip": 0.0, "random_crop": 0.0, "cut_out": 0.0, **fields}
        return {"augment": presets.with_settings((), parts), **fields}
    return {
        "augment": presets.with_settings(augment, parts) if parts else augment,
        **fields,
    }


def _probability(kind):
    return {"probability": kind().probability}


def _preset_and_names(words):
    """The preset, or None, and the augmentations that `--augment` names."""
    from vfnet_tf.data.augmentation import presets

    found = [word for word in words if word in presets.PRESETS]
    names = [word for word in words if word not in presets.PRESETS]
    known = presets.augmentation_names()
    for name in names:
        if name not in known:
            every = [*presets.PRESETS, *known]
            raise ValueError(
                f"--augment takes one of {', '.join(presets.PRESETS)}, and augmentations "
                f"to add: {', '.join(known)}. Received: {name!r}."
                + configs.did_you_mean(name, every)
            )
    if len(found) > 1:
        raise ValueError(
            f"--augment takes one of {', '.join(presets.PRESETS)}. Received: "
            f"{' '.join(found)}"
        )
    return (found or [None])[0], names


def _parse(text):
    """(name, setting, value) of `NAME.SETTING=VALUE`, (None, field, value) of a field."""
    key, is_given, value = text.partition("=")
    name, has_setting, setting = key.strip().partition(".")
    if not has_setting:
        name, setting = None, name
    if not is_given or not (has_setting or setting in FIELDS):
        hint = configs.did_you_mean(setting, FIELDS) if is_given else ""
        raise ValueError(
            "--augment-set must be NAME.SETTING=VALUE, such as Mosaic.probability=0.3 or "
            f"LargeScaleJitter.scale=0.5,2, or a field of the data: "
            f"{', '.join(f'{field}=VALUE' for field in FIELDS)}. Received: {text!r}.{hint}"
        )
    return name, setting, _value(value.strip(), text)


def _value(value, text):
    """What is written as in JSON or Python; several numbers need no brackets."""
    for read in (json.loads, ast.literal_eval, float):
        try:
            found = read(value)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
        parts = found if isinstance(found, list | tuple) else [found]
        if all(math.isfinite(part) for part in parts if isinstance(part, float)):
            return found
        break
    raise ValueError(
        "--augment-set takes a finite number, True or False, or numbers with commas "
        f"between them as the value. Received: {text!r}"
    )


def _share(field, value, text):
    """The value of one of `FIELDS`, which is a probability or a share."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= 1:
        raise ValueError(
            f"--augment-set takes a number from 0 to 1 for {field}. Received: {text!r}"
        )
    return float(value)
