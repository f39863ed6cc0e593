"""Detectors by name: folders of a config and weights, published models, the hub.

A preset is a folder with `config.json` and `model.weights.h5`; a run directory is one.
"""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import re
import shutil
import tempfile

from vfnet_tf import builder
from vfnet_tf.builder import build_detector
from vfnet_tf.checkpoints.imagenet import WeightsUnavailableError, fetch_repository
from vfnet_tf.checkpoints.published import (
    address_of,
    closest_published,
    fetch_published,
    is_published,
    preset_folder,
    writing_to,
)
from vfnet_tf.checkpoints.pytorch import load_pytorch_checkpoint, read_checkpoint
from vfnet_tf.config import load_config, override, save_config, shipped_config
from vfnet_tf.data.formats.coco_classes import COCO_CATEGORY_IDS, COCO_CLASS_NAMES
from vfnet_tf.detectors import DenseDetector
from vfnet_tf.files import only_process
from vfnet_tf.warm_start import load_run_weights

#: Files of weights in a folder, the first that is there is taken.
WEIGHT_FILES = ("model.weights.h5", "best.weights.h5", "last.weights.h5")

#: Endings of the files that `load_official` reads.
OFFICIAL_SUFFIXES = (".pth", ".pt", ".safetensors")

_HUB = "hf://"


def is_preset_name(preset):
    """Whether a text names a published model or a repository of the hub."""
    text = _text_of(preset)
    return is_published(text) or text.startswith(_HUB)


def _text_of(preset):
    """A preset's name; a `Path` has one slash where the name of a repository has two."""
    text = os.fspath(preset)
    return re.sub(r"^hf:/(?=[^/])", _HUB, text)


def preset_directory(preset):
    """The folder of a preset, downloaded and converted if it is not there yet.

    Args:
        preset: a folder; the name of a published model (`vfnet configs` lists them); or
            `hf://USER/REPOSITORY`.

    Returns:
        `pathlib.Path` of a folder with `config.json` and a file of weights.

    Raises:
        ValueError: if there is no such preset.
        WeightsUnavailableError: a ValueError; if it cannot be downloaded now.
    """
    return _folder_of(preset, ("config.json", *WEIGHT_FILES))


def _folder_of(preset, files):
    """The folder of a preset, in which are at least these files, if there are."""
    text = _text_of(preset)
    if text.startswith(_HUB):
        return fetch_repository(text.removeprefix(_HUB), files)
    path = pathlib.Path(text).expanduser()
    if path.is_dir():
        return path
    if is_published(text):
        return published_directory(text)
    raise ValueError(
        "`preset` must be a folder with config.json and model.weights.h5, the name of a "
        "published model (`vfnet configs` lists them), or hf://USER/REPOSITORY. "
        f"Received: preset={text}.{closest_published(text)}"
    )


def _config_of(preset):
    """The config of a preset; its weights are not downloaded."""
    text = _text_of(preset)
    if is_published(text) and not pathlib.Path(text).is_dir():
        return override(
            shipped_config(text),
            class_names=COCO_CLASS_NAMES,
            category_ids=COCO_CATEGORY_IDS,
        )
    return load_config(_folder_of(preset, ("config.json",)))


def from_preset(preset, load_weights=True, num_classes=None, detector_class=None):
    """Builds a detector and loads the weights of a preset.

    Args:
        preset: see `preset_directory`.
        load_weights: bool; False leaves the weights as they are initialised, and
            downloads none.
        num_classes: int; None takes the preset's. Another number leaves the classifier
            as it is initialised.
        detector_class: what the detector must be, such as `vfnet_tf.VFNet`.

    Returns:
        The detector, a `DenseDetector`.

    Raises:
        TypeError: if `load_weights` is a number: that of classes is `num_classes=`.
        ValueError: if the preset does not exist, or is of another detector.
    """
    if not isinstance(load_weights, bool):
        raise TypeError(
            "`load_weights` must be True or False, and classes are given as "
            f"`num_classes=...`. Received: load_weights={load_weights}"
        )
    if load_weights:
        folder = preset_directory(preset)
        config, weights = load_config(folder), find_weights(folder)
    else:
        config, weights = _config_of(preset), None
    if num_classes is not None and num_classes != config.model.num_classes:
        config = override(
            config, model__num_classes=num_classes, class_names=(), category_ids=()
        )
        detector = build_detector(config)
        if load_weights:
            load_run_weights(detector, weights)
    else:
        detector = build_detector(config, weights=weights)
    if detector_class is not None and not isinstance(detector, detector_class):
        raise ValueError(
            f"The preset must be of a {detector_class.__name__}. "
            f"Received: preset={preset}, a {type(detector).__name__}"
        )
    return detector


def save_to_preset(detector, preset_dir, config=None):
    """Writes a detector as a preset.

    Args:
        detector: `DenseDetector`.
        preset_dir: path of the folder to write to; its preset is replaced.
        config: the `Config` that builds such a detector; None for the one that
            `build_detector` built it from.

    Raises:
        ValueError: without a config.
    """
    config = getattr(detector, "_built_from", None) if config is None else config
    if config is None:
        raise ValueError(
            "A preset needs the config of the detector: build the detector with "
            "`vfnet_tf.build_detector`, or give `config`. Received: config=None"
        )
    folder = pathlib.Path(preset_dir)
    folder.mkdir(parents=True, exist_ok=True)
    save_config(config, folder / "config.json")
    detector.save_weights(folder / WEIGHT_FILES[0])


def find_weights(folder):
    """The file of weights in a folder; a ValueError where there is none."""
    found = [folder / name for name in WEIGHT_FILES if (folder / name).is_file()]
    if not found:
        raise ValueError(
            f"A preset or run directory must hold {' or '.join(WEIGHT_FILES)}. "
            f"Received: {folder}"
        )
    return found[0]


def published_weights(config, name=None):
    """The file of weights of a published model, for a detector of a config.

    Args:
        config: `Config`; its number of classes may be another one.
        name: of the published model; None takes that of the config.

    Returns:
        `pathlib.Path` in the cache.

    Raises:
        WeightsUnavailableError: if nothing is published for it, the model is another
            one, or the weights cannot be downloaded now.
    """
    name = config.name if name is None else name
    if is_published(name):
        model = shipped_config(name).model
        if config.model != dataclasses.replace(
            model, num_classes=config.model.num_classes
        ):
            is_own = name == config.name
            options = "--backbone, --class-loss and --assigner"
            remedy = f"leave out {options}" if is_own else f"give --config {name}"
            raise WeightsUnavailableError(
                f"the model is not that of the config {name}: {remedy}, or give other "
                "--weights"
            )
    return find_weights(published_directory(name))


def published_directory(name):
    """The folder of a published model in the cache; its file is converted once.

    Args:
        name: of a published model; a folder of that name is not looked at.

    Raises:
        WeightsUnavailableError: if there are no such weights, or they cannot be had now.
    """
    address_of(name)  # before a folder is made
    folder = preset_folder(name)
    # The record of the source is written last.
    is_whole = (folder / "source.json").is_file
    if is_whole():
        return folder
    waits = functools.partial(
        print, f"waiting    for another process that has {folder}"
    )
    with writing_to(folder), only_process(folder, waits) as is_alone:
        if is_alone:
            _remove_unfinished(folder)
        if not is_whole():
            _convert(fetch_published(name), shipped_config(name), folder)
    return folder


def _remove_unfinished(folder):
    """Removes what a killed process left."""
    for path in folder.glob(".unfinished-*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def _convert(source, config, folder):
    """Writes the preset of an official file into a folder."""
    detector, config = load_official(source, config)
    aside = pathlib.Path(tempfile.mkdtemp(prefix=".unfinished-", dir=folder))
    try:
        save_to_preset(detector, aside, config)
        with open(source, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        record = {"file": source.name, "sha256": digest}
        (aside / "source.json").write_text(json.dumps(record, indent=1))
        for name in ("config.json", WEIGHT_FILES[0], "source.json"):
            os.replace(aside / name, folder / name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


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


def _load_published(detector, config):
    """Loads the published weights of a config into a detector of it."""
    weights = published_weights(config)
    is_whole = detector.num_classes == load_config(weights.parent).model.num_classes
    if is_whole and not config.class_names:
        detector.load_weights(weights)
    else:
        load_run_weights(detector, weights, config.class_names)


# For what lies below: `build_detector`, and two methods of every detector.
builder.load_published = _load_published
DenseDetector._from_preset = staticmethod(from_preset)
DenseDetector._save_to_preset = staticmethod(save_to_preset)
