"""Builds a detector from a run directory, a weights file or an official checkpoint."""

import os
import pathlib

from vfnet_tf.checkpoints.published import cache_home, closest_published
from vfnet_tf.config import load_config

#: Not `runs/NAME`, which is where `vfnet train` writes the run of that config.
PUBLISHED_RUNS = pathlib.Path("runs", "published")


def find_checkpoint(checkpoint, config=None):
    """Finds the weights and the config of a training run.

    Args:
        checkpoint: a run directory, a `.weights.h5` file, or a preset, see
            `presets.preset_directory`.
        config: `Config`, name or path; None takes the `config.json` beside the weights.

    Returns:
        (`Config`, path of the weights).

    Raises:
        ValueError: if one of them does not exist; the message names it.
    """
    # Here, since a predictor of an exported file works without Keras.
    from vfnet_tf.presets import find_weights, is_preset_name, preset_directory

    path = pathlib.Path(checkpoint).expanduser()
    if not path.exists() and is_preset_name(checkpoint):
        path = preset_directory(checkpoint)
    run_dir = path
    if path.is_dir():
        weights = find_weights(path)
    elif path.is_file() and path.name.endswith(".weights.h5"):
        weights, run_dir = path, path.parent
    else:
        problem = "another file" if path.is_file() else "which does not exist"
        raise ValueError(
            "`checkpoint` must be a run directory, a .weights.h5 file or the name of a "
            "published model (`vfnet configs` lists them). "
            f"Received: checkpoint={path}, {problem}." + closest_published(checkpoint)
        )
    if config is None:
        config = run_dir
        if not (run_dir / "config.json").is_file():
            raise ValueError(
                "Weights need their config: a config.json beside them, or `config`. "
                f"Received: checkpoint={path} without {run_dir / 'config.json'}"
            )
    return load_config(config), weights


def output_folder(checkpoint):
    """The folder for what is written about a checkpoint.

    Args:
        checkpoint: see `find_checkpoint`.

    Returns:
        `pathlib.Path`: the run directory itself; `runs/published/NAME` for a published
        model and for a repository of the hub, whose files are in a cache; None for a
        single file and for what does not exist.
    """
    path = pathlib.Path(checkpoint).expanduser()
    if path.is_dir():
        if path.is_relative_to(cache_home()):
            return PUBLISHED_RUNS / path.name
        return path
    if path.exists():
        return None
    from vfnet_tf.presets import is_preset_name

    if not is_preset_name(checkpoint):
        return None
    name = os.fspath(checkpoint).removeprefix("hf:").lstrip("/")
    return PUBLISHED_RUNS / name


def load_detector(config, weights):
    """Builds a detector and loads weights, naming the file if that fails.

    Args:
        config: a `Config`.
        weights: path of a `.weights.h5` file.

    Raises:
        ValueError: if the file is damaged or is of another detector.
    """
    from vfnet_tf.builder import build_detector

    detector = build_detector(config)
    try:
        detector.load_weights(weights)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            "The weights must be of the detector that the config describes. Received: "
            f"{weights} for the config {config.name!r}: {error}"
        ) from error
    return detector


def load_checkpoint(checkpoint, config=None):
    """Builds and loads the detector of a run, or of an official file.

    Args:
        checkpoint: a run directory, a `.weights.h5`, a preset, or a `.pth` or
            `.safetensors` file with official names.
        config: name or path; None takes the `config.json` beside the weights. An
            official file has none, so it needs one.

    Returns:
        (detector, `Config`, `pathlib.Path` of the weights).

    Raises:
        ValueError: if something is missing or does not fit; the message names it.
    """
    from vfnet_tf.presets import OFFICIAL_SUFFIXES, load_official

    path = pathlib.Path(checkpoint).expanduser()
    if path.suffix in OFFICIAL_SUFFIXES and path.is_file():
        if config is None:
            raise ValueError(
                f"A {path.suffix} file needs --config, the config it was trained with, "
                f"e.g. vfnet_r50_fpn_1x_coco. Received: {path}"
            )
        return (*load_official(path, config), path)
    config, weights = find_checkpoint(path, config)
    return load_detector(config, weights), config, weights
