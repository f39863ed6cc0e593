"""Ranges of the settings of NMS, for tensors, numpy and exported files alike."""

import numpy as np

#: Arguments of a `DenseDetector` that `detect` takes for one call, too, and that each
#: exported file keeps.
DETECTION_SETTINGS = (
    "score_threshold",
    "nms_iou_threshold",
    "candidates_per_level",
    "max_detections",
    "nms",
    "soft_nms_sigma",
    "soft_nms_min_score",
)

#: Values of `nms` in `ops.nms.suppress`.
NMS_KINDS = ("hard", "soft_linear", "soft_gaussian")

_RULES = {
    "in [0, 1]": lambda value: (value >= 0) & (value <= 1),
    "> 0 and finite": lambda value: (value > 0) & np.isfinite(value),
    ">= 0 and finite": lambda value: (value >= 0) & np.isfinite(value),
    "at least 1 and whole": lambda value: (value >= 1) & (value % 1 == 0),
}
_RULE_OF = {
    "score_threshold": "in [0, 1]",
    "iou_threshold": "in [0, 1]",
    "sigma": "> 0 and finite",
    "min_score": ">= 0 and finite",
    "max_detections": "at least 1 and whole",
    "candidates_per_level": "at least 1 and whole",
}
#: Names that detectors have for them.
_ALIASES = {
    "nms_iou_threshold": "iou_threshold",
    "soft_nms_sigma": "sigma",
    "soft_nms_min_score": "min_score",
}


def check_nms(nms):
    """Returns `nms` if it is one of `NMS_KINDS`.

    Raises:
        ValueError: if it is not.
    """
    if nms not in NMS_KINDS:
        raise ValueError(f"`nms` must be one of {NMS_KINDS}. Received: nms={nms!r}")
    return nms


def check_settings(**settings):
    """Refuses settings out of range, NaN among them.

    Args:
        **settings: numbers, arrays or tensors for any of `nms`, `score_threshold`,
            `iou_threshold`, `sigma`, `min_score`, `max_detections` and
            `candidates_per_level`, also by a detector's names. Tensors of a graph have
            no value yet and are not checked.

    Raises:
        ValueError: for the first that is out of range, with its name.
    """
    for name, value in settings.items():
        if name == "nms":
            check_nms(value)
            continue
        rule = _RULE_OF[_ALIASES.get(name, name)]
        try:
            known = np.asarray(value)
        except Exception:  # a tensor without a value: each backend raises another one
            continue
        is_number = known.dtype.kind in "iuf" or known.dtype.name == "bfloat16"
        if not is_number or not np.all(_RULES[rule](known)):
            raise ValueError(f"`{name}` must be {rule}. Received: {name}={value!r}")
