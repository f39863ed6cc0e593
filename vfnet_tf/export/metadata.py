"""The metadata that the exported files of all formats share."""

import keras
import numpy as np

import vfnet_tf
from vfnet_tf import config as configs
from vfnet_tf.data.canvases import CANVAS_MULTIPLE
from vfnet_tf.data.normalization import Normalization
from vfnet_tf.export import fingerprint
from vfnet_tf.ops.nms_settings import DETECTION_SETTINGS, check_settings


def describe_detector(detector, config=None, given=None, **versions):
    """The metadata that a program needs to run an exported file, a dict of JSON types.

    Args:
        detector: a built `DenseDetector`.
        config: its `Config`, or None.
        given: dict of settings that replace those of config and detector: `class_names`,
            `category_ids`, `image_size`, `keep_ratio`, `normalization` and
            `DETECTION_SETTINGS`. A value of None replaces nothing.
        **versions: further entries of `versions`.

    Raises:
        ValueError: for a setting that does not fit the detector.
    """
    data = configs.DataConfig() if config is None else config.data
    chosen = {
        "class_names": () if config is None else config.class_names,
        "category_ids": () if config is None else config.category_ids,
        **{name: getattr(detector, name) for name in DETECTION_SETTINGS},
        "image_size": data.image_size,
        "keep_ratio": data.keep_ratio,
        "normalization": data.normalization,
    }
    given = {k: v for k, v in (given or {}).items() if v is not None}
    unknown = sorted(set(given) - set(chosen))
    if unknown:
        raise ValueError(
            f"An export takes the settings {sorted(chosen)}. Received: {unknown}"
        )
    chosen.update(given)
    _check_settings(chosen, detector.num_classes)
    return {
        "detector": type(detector).__name__,
        "num_classes": detector.num_classes,
        "class_names": [str(name) for name in chosen["class_names"]],
        "category_ids": [int(number) for number in chosen["category_ids"]],
        "image_size": [int(side) for side in chosen["image_size"]],
        "keep_ratio": bool(chosen["keep_ratio"]),
        "canvas_multiple": CANVAS_MULTIPLE,
        "normalization": chosen["normalization"].to_dict(),
        "score_threshold": float(chosen["score_threshold"]),
        "nms_iou_threshold": float(chosen["nms_iou_threshold"]),
        "candidates_per_level": int(chosen["candidates_per_level"]),
        "max_detections": int(chosen["max_detections"]),
        "nms": chosen["nms"],
        "soft_nms_sigma": float(chosen["soft_nms_sigma"]),
        "soft_nms_min_score": float(chosen["soft_nms_min_score"]),
        "precision": detector.dtype_policy.name,
        "versions": {
            "vfnet_tf": vfnet_tf.__version__,
            "keras": keras.__version__,
            **versions,
        },
        "weights_sha256": fingerprint.weights_sha256(detector),
        "config_sha256": None if config is None else fingerprint.config_sha256(config),
        "config": None if config is None else fingerprint.config_fields(config),
    }


def _check_settings(settings, num_classes):
    sides = np.asarray(settings["image_size"])
    is_pair = sides.shape == (2,) and np.all(sides == sides.astype("int64"))
    is_pair = is_pair and min(sides) >= 1
    if not is_pair or (settings["keep_ratio"] and sides[0] > sides[1]):
        raise ValueError(
            "`image_size` must be two positive whole numbers, short <= long if "
            f"`keep_ratio`. Received: image_size={settings['image_size']}, "
            f"keep_ratio={settings['keep_ratio']}"
        )
    for name in ("class_names", "category_ids"):
        if len(settings[name]) not in (0, num_classes):
            raise ValueError(
                f"`{name}` must have one entry per class, {num_classes}. "
                f"Received: {name} with {len(settings[name])} entries"
            )
    check_settings(**{name: settings[name] for name in DETECTION_SETTINGS})
    if not isinstance(settings["normalization"], Normalization):
        raise ValueError(
            "`normalization` must be a Normalization. "
            f"Received: normalization={settings['normalization']!r}"
        )
