"""Calibration: how well the score of a detection, the paper's IACS, tells its IoU."""

import dataclasses

import numpy as np

#: A detection with a lower IoU shows the background, as in TIDE.
MIN_IOU = 0.1


@dataclasses.dataclass(frozen=True, eq=False)
class Calibration:
    """Scores beside the IoU with the best ground truth of the detection's class.

    Attributes:
        scores, ious: float64 `[n]`, of the detections that count.
        pearson: float in [-1, 1], linear correlation; NaN if one of the two is constant
            or there are fewer than two detections.
        spearman: float in [-1, 1], correlation of the ranks, which decide NMS and AP; NaN
            likewise.
        bin_edges: float64 `[bins + 1]`, of the scores.
        counts: int `[bins]`, detections in each bin.
        mean_scores, mean_ious: float64 `[bins]`, NaN in an empty bin.
        gap: float, mean over the detections of abs(mean IoU - mean score) of their bin.
    """

    scores: np.ndarray
    ious: np.ndarray
    pearson: float
    spearman: float
    bin_edges: np.ndarray
    counts: np.ndarray
    mean_scores: np.ndarray
    mean_ious: np.ndarray
    gap: float


def calibrate(matches, min_iou=MIN_IOU, num_bins=10):
    """Compares scores with IoUs.

    Args:
        matches: `Matches`; detections in crowd regions are left out.
        min_iou: float, detections with a lower IoU are left out; 0 keeps all.
        num_bins: int, bins of equal width over scores in [0, 1].

    Returns:
        `Calibration`.
    """
    keep = ~matches.is_ignored & (matches.own_iou >= min_iou)
    scores, ious = matches.scores[keep], matches.own_iou[keep]
    edges = np.linspace(0.0, 1.0, num_bins + 1)
    # The last bin includes 1; scores outside [0, 1] go to the first or last bin.
    bins = np.clip(np.searchsorted(edges, scores, "right") - 1, 0, num_bins - 1)
    counts = np.bincount(bins, minlength=num_bins)
    sums = [np.bincount(bins, values, num_bins) for values in (scores, ious)]
    mean_scores, mean_ious = (
        np.divide(total, counts, out=np.full(num_bins, np.nan), where=counts > 0)
        for total in sums
    )
    gap = np.nan
    if len(scores):
        gap = float(np.nansum(counts * np.abs(mean_ious - mean_scores)) / len(scores))
    return Calibration(
        scores=scores,
        ious=ious,
        pearson=correlation(scores, ious),
        spearman=correlation(ranks(scores), ranks(ious)),
        bin_edges=edges,
        counts=counts,
        mean_scores=mean_scores,
        mean_ious=mean_ious,
        gap=gap,
    )


def correlation(first, second):
    """Pearson's coefficient of two float `[n]`; NaN if it is not defined."""
    if len(first) < 2:
        return float("nan")
    first, second = first - np.mean(first), second - np.mean(second)
    scale = np.sqrt(np.sum(first**2) * np.sum(second**2))
    return float(np.sum(first * second) / scale) if scale > 0 else float("nan")


def ranks(values):
    """Ranks from 1 of float `[n]`; equal values share the mean of their ranks."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[group]
