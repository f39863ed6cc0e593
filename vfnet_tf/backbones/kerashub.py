"""Backbones of KerasHub by the name or the directory of a preset (extra `kerashub`)."""

import json
import os

import keras

from vfnet_tf.data.normalization import TORCHVISION, Normalization
from vfnet_tf.offline import is_offline

#: For presets without an image converter.
DEFAULT_NORMALIZATION = TORCHVISION


def load_preset(preset, load_weights=True):
    """A backbone of KerasHub.

    Args:
        preset: directory written by `backbone.save_to_preset`, or a name or handle that
            KerasHub downloads.
        load_weights: bool, whether to load the preset's weights, too.

    Returns:
        A functional `keras.Model` that takes images of any size if it can.

    Raises:
        ImportError: if KerasHub is not installed.
        ValueError: if there is no such preset, it cannot be had now, or it is not of a
            backbone.
    """
    load = _import_keras_hub().models.Backbone.from_preset
    _check_may_load(preset)
    # The global policy, not the one that the preset was saved with.
    settings = {"load_weights": load_weights, "dtype": keras.config.dtype_policy()}
    try:
        model = load(preset, **settings)
    except Exception as error:  # KerasHub raises others by preset and version
        raise ValueError(
            "A preset must be the directory of a backbone, or a name that KerasHub can "
            f"download now. Received: kerashub:{preset}: {type(error).__name__}: {error}"
        ) from error
    if None in model.inputs[0].shape[1:3]:
        return model
    try:
        # Convolutions take any size; transformers fail here.
        return load(preset, **settings, image_shape=(None, None, 3))
    except Exception:  # `KerasBackbone` tells whether the fixed size can be used
        return model


def architecture_of(backbone):
    """The architecture of a `KerasBackbone` of KerasHub as a JSON string, for a run.

    It has no dtype, since a run is rebuilt with the global policy.
    """
    model = backbone.get_config()["model"]
    config = {k: value for k, value in model["config"].items() if k != "dtype"}
    return json.dumps({**model, "config": config}, sort_keys=True)


def load_architecture(architecture):
    """A backbone with initial weights from a string by `architecture_of`."""
    _import_keras_hub()  # registers its classes
    return keras.saving.deserialize_keras_object(json.loads(architecture))


def preset_normalization(preset):
    """The `Normalization` that a preset's image converter stands for.

    Args:
        preset: see `load_preset`.

    Returns:
        `Normalization`; `DEFAULT_NORMALIZATION` if the preset has no converter, as a
        directory by `backbone.save_to_preset` alone.

    Raises:
        ImportError: if KerasHub is not installed.
        ValueError: for a name if downloads are forbidden.
    """
    make_converter = _import_keras_hub().layers.ImageConverter.from_preset
    _check_may_load(preset)
    try:
        converter = make_converter(preset)
    except (ValueError, FileNotFoundError):
        return DEFAULT_NORMALIZATION
    scale, offset = (
        [default if value is None else value] * 3
        if not isinstance(value, (list, tuple))
        else value
        for value, default in ((converter.scale, 1.0), (converter.offset, 0.0))
    )
    # pixel * scale + offset = (pixel - mean) / std
    return Normalization(
        mean=tuple(-o / s for s, o in zip(scale, offset, strict=True)),
        std=tuple(1 / s for s in scale),
    )


def describe_normalization(normalization):
    """A line that says what happens to pixels, and whether that is a mere default."""
    is_default = normalization is DEFAULT_NORMALIZATION
    return (
        f"minus {_short(normalization.mean)}, divided by {_short(normalization.std)}: "
        + (
            "a default, as the preset has no image converter"
            if is_default
            else "the preset's image converter"
        )
    )


def _short(values):
    return "/".join(f"{value:.4g}" for value in values)


def _check_may_load(preset):
    # KerasHub asks its servers for a name even if it has the files.
    if is_offline() and not os.path.exists(preset):
        raise ValueError(
            "VFNET_OFFLINE forbids to ask for a preset by name: give the directory of "
            f"one, or unset VFNET_OFFLINE. Received: kerashub:{preset}"
        )


def _import_keras_hub():
    try:
        import keras_hub
    except ImportError as error:
        raise ImportError(
            "Backbones of KerasHub need the package keras-hub: "
            f"pip install 'vfnet_tf[kerashub]' ({error})"
        ) from error
    return keras_hub
