"""Types of errors and their cost in AP (TIDE: Bolya et al., ECCV 2020, Sec. 2)."""

import numpy as np

#: IoU below which a detection shows the background.
BACKGROUND_IOU = 0.1
#: Main errors and their meanings. IoUs are the largest with an object of that kind.
ERROR_TYPES = {
    "classification": "right place (IoU >= 0.5), wrong class",
    "localisation": "right class, wrong place (0.1 <= IoU < 0.5)",
    "both": "wrong class, wrong place (0.1 <= IoU < 0.5)",
    "duplicate": "right, but a higher score had found the object before",
    "background": "no object there (IoU < 0.1)",
    "missed": "objects that no detection came near, not even in those ways",
}
#: Two oracles beside them.
SPECIAL_TYPES = {
    "false positives": "all wrong detections removed",
    "false negatives": "all objects that were not found left out",
}
_RECALLS = np.linspace(0.0, 1.0, 101)


def classify_errors(matches):
    """Gives each false positive its type.

    If several fit, the first of localisation, classification, duplicate, background and
    both is taken, as in TIDE's tool.

    Args:
        matches: `Matches`, whose `iou_threshold` is TIDE's foreground threshold.

    Returns:
        `kinds`, a string array `[N]` with `""` for detections without error, and
        `is_missed`, bool `[G]`: objects that neither a right detection nor a
        localisation or classification error points at.
    """
    threshold = matches.iou_threshold
    own, other = matches.own_iou, matches.other_iou
    kinds = np.select(
        [
            ~matches.is_false,
            (own >= BACKGROUND_IOU) & (own < threshold),
            other >= threshold,
            own >= threshold,
            np.maximum(own, other) < BACKGROUND_IOU,
        ],
        ["", "localisation", "classification", "duplicate", "background"],
        default="both",
    )
    is_missed = ~matches.is_found
    targets = _targets(matches, kinds)
    is_missed[targets[targets >= 0]] = False
    return kinds, is_missed


def error_costs(matches):
    """The cost of each type of error: the gain in AP if that type alone is corrected.

    As in TIDE, a classification error gets the right class and a localisation error the
    right box. If the object is found already, or another of these errors with a higher
    score points at it, the detection is removed instead. Both, duplicate and background
    errors are removed. Missed objects do not count; a class without any object and
    detection left is left out of the mean.

    Args:
        matches: `Matches`; AP is at its `iou_threshold`.

    Returns:
        dict with `"AP"`, float, and `"main"` and `"special"`: dicts from the names of
        `ERROR_TYPES` and `SPECIAL_TYPES` to `{"count": int, "cost": float}`, the gain in
        AP, in [0, 1]. Costs do not add up, since they depend on each other.
    """
    kinds, is_missed = classify_errors(matches)
    targets = _targets(matches, kinds)
    is_best = _is_best_of_target(targets, matches)
    num_classes = matches.num_classes
    positives = np.bincount(matches.gt_labels, minlength=num_classes)

    everything = np.ones(len(kinds), bool)
    nothing = np.zeros(len(is_missed), bool)

    def mean_ap(keep, labels=matches.labels, is_true=matches.is_true, left_out=nothing):
        keep = keep & ~matches.is_ignored
        left = positives - np.bincount(
            matches.gt_labels[left_out], minlength=num_classes
        )
        values = average_precision(
            labels[keep], matches.scores[keep], is_true[keep], left
        )
        detected = np.bincount(labels[keep], minlength=num_classes)
        values = values[(positives > 0) & ((left > 0) | (detected > 0))]
        return float(np.mean(values)) if len(values) else float("nan")

    base = mean_ap(everything)
    costs = {}
    for name in ERROR_TYPES:
        is_kind = kinds == name
        count = int(np.sum(is_kind))
        if name == "missed":
            count = int(np.sum(is_missed))
            fixed = mean_ap(everything, left_out=is_missed)
        elif name in ("classification", "localisation"):
            is_corrected = is_kind & is_best
            labels = matches.labels.copy()
            labels[is_corrected] = matches.gt_labels[targets[is_corrected]]
            fixed = mean_ap(
                ~is_kind | is_corrected, labels, matches.is_true | is_corrected
            )
        else:
            fixed = mean_ap(~is_kind)
        # Rounding of recalls can make it slightly negative.
        costs[name] = {"count": count, "cost": max(fixed - base, 0.0)}
    is_found = matches.is_found
    special = {
        "false positives": {
            "count": int(np.sum(matches.is_false)),
            "cost": mean_ap(~matches.is_false) - base,
        },
        "false negatives": {
            "count": int(np.sum(~is_found)),
            "cost": mean_ap(everything, left_out=~is_found) - base,
        },
    }
    return {"AP": base, "main": costs, "special": special}


def average_precision(labels, scores, is_true, num_positives):
    """AP of each class at one IoU threshold, as pycocotools integrates it.

    Args:
        labels: int `[n]` in [0, K).
        scores: float `[n]`; equal scores keep their order.
        is_true: bool `[n]`.
        num_positives: int `[K]`, objects of each class.

    Returns:
        float64 `[K]`: the mean over 101 recalls of the best precision at that recall or
        a higher one; 0 for a class without objects.
    """
    order = np.lexsort((-np.asarray(scores), labels))
    starts = np.searchsorted(labels[order], np.arange(len(num_positives) + 1))
    values = np.zeros(len(num_positives))
    for label, positives in enumerate(num_positives):
        rows = order[starts[label] : starts[label + 1]]
        if not positives or not len(rows):
            continue
        true = np.cumsum(is_true[rows])
        precision = true / (np.arange(len(rows)) + 1.0 + np.spacing(1))
        precision = np.maximum.accumulate(precision[::-1])[::-1]
        at = np.searchsorted(true / positives, _RECALLS, side="left")
        values[label] = np.sum(precision[at[at < len(rows)]]) / len(_RECALLS)
    return values


def _targets(matches, kinds):
    """Int `[N]`: the object of a localisation or classification error, -1 if found."""
    targets = np.select(
        [kinds == "localisation", kinds == "classification"],
        [matches.own_object, matches.other_object],
        default=-1,  # other kinds have none
    )
    is_found = np.append(matches.is_found, False)  # for -1, its last
    return np.where(is_found[targets], -1, targets)


def _is_best_of_target(targets, matches):
    """Bool `[N]`, the highest score of all errors that point at the same object."""
    rows = np.flatnonzero(targets >= 0)
    rows = rows[np.argsort(-matches.scores[rows], kind="stable")]
    _, first = np.unique(targets[rows], return_index=True)
    is_best = np.zeros(len(targets), bool)
    is_best[rows[first]] = True
    return is_best
