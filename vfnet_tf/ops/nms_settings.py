"""Which settings of NMS make sense, whatever computes it: tensors, numpy, a runtime."""

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

#: What `ops.nms.suppress` knows.
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
#: How a detector calls them.
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
        **settings: any of `nms`, `score_threshold`, `iou_threshold`, `sigma`,
            `min_score`, `max_detections` and `candidates_per_level`, also by the names
            that detectors have for them: numbers, arrays or tensors. What a graph
            computes is not known yet and passes.

    Raises:
        ValueError: for the first that makes no sense, with its name.
    """
    for name, value in settings.items():
        if name == "nms":
            check_nms(value)
            continue
        rule = _RULE_OF[_ALIASES.get(name, name)]
        try:
            known = np.asarray(value)
        except Exception:  # each backend has its own for a tensor without a value
            continue
        is_number = known.dtype.kind in "iuf" or known.dtype.name == "bfloat16"
        if not is_number or not np.all(_RULES[rule](known)):
            raise ValueError(f"`{name}` must be {rule}. Received: {name}={value!r}")
