"""Builds a detector from a run directory, a weights file or an official checkpoint."""

import dataclasses
import pathlib

from vfnet_tf.config import load_config

_WEIGHTS = ("best.weights.h5", "last.weights.h5")


def find_checkpoint(checkpoint, config=None):
    """Finds the weights and the config of a training run.

    Args:
        checkpoint: a run directory, or a `.weights.h5` file.
        config: `Config`, name or path; None takes the `config.json` beside the weights.

    Returns:
        (`Config`, path of the weights).

    Raises:
        ValueError: if one of them is not there; what was looked for is said.
    """
    path = pathlib.Path(checkpoint).expanduser()
    run_dir = path
    if path.is_dir():
        found = [path / name for name in _WEIGHTS if (path / name).is_file()]
        if not found:
            raise ValueError(
                f"A run directory must hold {' or '.join(_WEIGHTS)}. "
                f"Received: checkpoint={path}"
            )
        weights = found[0]
    elif path.is_file() and path.name.endswith(".weights.h5"):
        weights, run_dir = path, path.parent
    else:
        problem = "another file" if path.is_file() else "which does not exist"
        raise ValueError(
            "`checkpoint` must be a run directory or a .weights.h5 file. "
            f"Received: checkpoint={path}, {problem}"
        )
    if config is None:
        config = run_dir / "config.json"
        if not config.is_file():
            raise ValueError(
                "Weights need their config: a config.json beside them, or `config`. "
                f"Received: checkpoint={path} without {config}"
            )
    return load_config(config), weights


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


#: Endings of the files that `load_official` reads.
OFFICIAL_SUFFIXES = (".pth", ".pt", ".safetensors")


def load_checkpoint(checkpoint, config=None):
    """Builds and loads the detector of a run, or of an official file.

    Args:
        checkpoint: a run directory, a `.weights.h5`, or a `.pth` or `.safetensors` file
            with official names.
        config: name or path; None takes the `config.json` beside the weights. An
            official file has none, so it needs one.

    Returns:
        (detector, `Config`, `pathlib.Path` of the weights).

    Raises:
        ValueError: if something is missing or does not fit, with its name.
    """
    from vfnet_tf.inference.load import find_checkpoint, load_detector

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


def load_official(path, config):
    """Builds the detector of a config and loads an official file into it.

    The number of classes and their names are the file's. If it does not name them, they
    are COCO's where there are 80; else the config's.

    Args:
        path: of a `.pth` or `.safetensors` file.
        config: `Config`, name or path.

    Returns:
        (detector, `Config` with the classes).

    Raises:
        ValueError: if the file cannot be read or does not fit the config.
    """
    from vfnet_tf.builder import build_detector
    from vfnet_tf.checkpoints.pytorch import load_pytorch_checkpoint, read_checkpoint
    from vfnet_tf.config import load_config

    official = read_checkpoint(path)
    config = with_classes(load_config(config), official)
    detector = build_detector(config)
    load_pytorch_checkpoint(detector, official, skip_classifier=False)
    return detector, config


def with_classes(config, official):
    """A config with the classes of a checkpoint.

    Args:
        config: `Config`.
        official: `checkpoints.pytorch.Checkpoint`.

    Returns:
        `Config` with `model.num_classes`, `class_names` and `category_ids`; the latter
        two are empty where nothing tells them.
    """
    from vfnet_tf.data.formats.coco_classes import COCO_CATEGORY_IDS, COCO_CLASS_NAMES

    number = official.num_classes or config.model.num_classes
    model = dataclasses.replace(config.model, num_classes=number)
    candidates = (official.class_names, config.class_names, COCO_CLASS_NAMES)
    # Files of fine-tuned models are seen with the names of the set before.
    names = next((c for c in candidates if c and len(c) == number), ())
    ids = config.category_ids if names == config.class_names else ()
    if names == COCO_CLASS_NAMES:
        ids = COCO_CATEGORY_IDS
    elif len(ids) != len(names):
        ids = tuple(range(1, len(names) + 1))
    return dataclasses.replace(config, model=model, class_names=names, category_ids=ids)
