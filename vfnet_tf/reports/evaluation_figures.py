"""The figures of a report, each a `matplotlib.figure.Figure` of half a page's width."""

import numpy as np

from vfnet_tf.drawing import class_color
from vfnet_tf.foreign_text import figure_text
from vfnet_tf.reports.curves import new_figure

#: Largest number of classes in one figure.
MAX_CLASSES = 20
_MAX_CURVES = 10
_CURVE_IOUS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.9)
_BLUE, _RED, _GREY = "#2378e1", "#e4322d", "#8a93a3"


def precision_recall(curves):
    """Mean over the classes, for several IoU thresholds.

    Args:
        curves: `evaluation.coco.PrecisionCurves`.
    """
    figure = new_figure()
    axes = figure.subplots()
    for number, iou in enumerate(_CURVE_IOUS):
        precision = curves.precision[_at(curves, iou), :, :, 0]
        there = ~np.isnan(precision).all(axis=0)
        mean = precision[:, there].mean(axis=1) if there.any() else np.nan
        shade = 0.9 - 0.75 * number / (len(_CURVE_IOUS) - 1)
        axes.plot(
            curves.recalls,
            np.broadcast_to(mean, curves.recalls.shape),
            color=(0.1, 0.35 + 0.4 * (1 - shade), 0.35 + 0.6 * shade),
            label=f"IoU {iou:g}: AP {np.mean(mean):.3f}",
        )
    return _finish_curves(figure, axes, "all classes")


def precision_recall_by_class(curves, class_names):
    """Curves of the classes at IoU 0.5, at most of the five best and five worst.

    Args:
        curves: `evaluation.coco.PrecisionCurves`.
        class_names: K strings.
    """
    precision = curves.precision[_at(curves, 0.5), :, :, 0]
    ap = precision.mean(axis=0)
    labels = [int(k) for k in np.argsort(-ap, kind="stable") if not np.isnan(ap[k])]
    title = "each class at IoU 0.5"
    if len(labels) > _MAX_CURVES:
        half = _MAX_CURVES // 2
        title = f"the {half} best and {half} worst of {len(labels)} classes, IoU 0.5"
        labels = labels[:half] + labels[-half:]
    figure = new_figure()
    axes = figure.subplots()
    for number, label in enumerate(labels):
        color = [value / 255 for value in class_color(number)]
        name = f"{_short_name(class_names[label])}: {ap[label]:.3f}"
        axes.plot(curves.recalls, precision[:, label], color=color, label=name)
    return _finish_curves(figure, axes, title)


def calibration_density(calibration):
    """Histogram of detections over score and IoU.

    Args:
        calibration: `evaluation.calibration.Calibration`.
    """
    from matplotlib.colors import LogNorm

    figure = new_figure()
    axes = figure.subplots()
    counts, xs, ys = np.histogram2d(
        calibration.scores, calibration.ious, bins=40, range=[[0, 1], [0, 1]]
    )
    if counts.any():
        image = axes.imshow(
            np.ma.masked_equal(counts.T, 0),
            origin="lower",
            extent=(xs[0], xs[-1], ys[0], ys[-1]),
            # From below 1, so that one detection is not white.
            norm=LogNorm(0.3, max(counts.max(), 3)),
            cmap="Blues",
            aspect="auto",
            interpolation="nearest",
        )
        bar = figure.colorbar(image, label="detections", format="%g")
        bar.minorticks_off()
    _diagonal(axes)
    axes.plot(
        calibration.mean_scores, calibration.mean_ious, "o-", color=_RED, markersize=4
    )
    axes.set_title(
        f"Pearson {calibration.pearson:.3f}, Spearman {calibration.spearman:.3f}"
    )
    return _finish_unit(figure, axes, "score", "IoU with the best object of the class")


def calibration_bins(calibration):
    """Mean IoU in each bin of scores, with the number of detections.

    Args:
        calibration: `evaluation.calibration.Calibration`.
    """
    figure = new_figure()
    axes = figure.subplots()
    edges = calibration.bin_edges
    centres, width = (edges[:-1] + edges[1:]) / 2, np.diff(edges)
    heights = np.nan_to_num(calibration.mean_ious)
    axes.bar(centres, heights, 0.92 * width, color=_BLUE, alpha=0.75)
    for centre, height, count in zip(centres, heights, calibration.counts, strict=True):
        if count:
            axes.annotate(
                _short(count), (centre, height), (0, 2), textcoords="offset points",
                ha="center", fontsize=8,
            )  # fmt: skip
    _diagonal(axes)
    axes.set_title(f"mean distance of the bars from the line: {calibration.gap:.3f}")
    return _finish_unit(figure, axes, "score", "mean IoU; above it, detections")


def error_costs(costs):
    """Bars of the cost of each type of error.

    Args:
        costs: dict of `evaluation.error_types.error_costs`.
    """
    figure = new_figure()
    axes = figure.subplots()
    bars = {**costs["main"], **costs["special"]}
    values = [100 * entry["cost"] for entry in bars.values()]
    colors = [_BLUE] * len(costs["main"]) + [_GREY] * len(costs["special"])
    places = np.arange(len(bars))
    axes.barh(places, values, color=colors)
    for place, value in zip(places, values, strict=True):
        axes.annotate(
            f"{value:.1f}", (max(value, 0), place), (4, 0),
            textcoords="offset points", va="center", fontsize=9,
        )  # fmt: skip
    axes.set_yticks(places, [figure_text(name) for name in bars])
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("gain in AP50 if mended, points")
    axes.grid(axis="x", alpha=0.3)
    return figure


def ap_by_size(names, values):
    """Bars of AP for small, medium and large objects.

    Args:
        names: strings under the bars.
        values: floats in [0, 1]; NaN for no bar.
    """
    figure = new_figure(5.6, 3.0)
    axes = figure.subplots()
    axes.bar(np.arange(len(names)), np.nan_to_num(values), 0.6, color=_BLUE, alpha=0.75)
    for place, value in enumerate(values):
        text = "–" if np.isnan(value) else f"{value:.3f}"
        axes.annotate(
            text, (place, np.nan_to_num(value)), (0, 3), textcoords="offset points",
            ha="center", fontsize=9,
        )  # fmt: skip
    axes.set_xticks(np.arange(len(names)), names)
    axes.set_ylim(0, 1)
    axes.set_ylabel("AP")
    axes.grid(axis="y", alpha=0.3)
    return figure


def confusion(matrix, class_names):
    """The confusion matrix, at most of the `MAX_CLASSES` classes confused most.

    Args:
        matrix: int `[K + 1, K + 1]` of `evaluation.operating_point.confusion_matrix`.
        class_names: K strings.
    """
    matrix, names = _shortened_confusion(np.asarray(matrix), list(class_names))
    count = len(matrix)
    side = max(4.2, 1.8 + 0.32 * count)
    figure = new_figure(side + 0.9, side)
    axes = figure.subplots()
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, label="part of the row", shrink=0.8)
    size = 9 if count <= 12 else 6.5
    for row, column in zip(*np.nonzero(matrix), strict=True):
        color = "white" if share[row, column] > 0.5 else "black"
        text = _short(matrix[row, column])
        axes.text(
            column, row, text, ha="center", va="center", color=color, fontsize=size
        )
    names = [_short_name(name) for name in names]
    font = {"fontsize": 9 if count <= 12 else 7.5}
    axes.set_xticks(range(count), [*names, "missed"], rotation=90, **font)
    axes.set_yticks(range(count), [*names, "background"], **font)
    axes.set_xlabel("detected as")
    axes.set_ylabel("truly")
    return figure


def _shortened_confusion(matrix, names):
    """Adds up the least confused classes beyond `MAX_CLASSES`."""
    if len(names) <= MAX_CLASSES:
        return matrix, names
    classes = matrix[:-1, :-1]
    wrong = classes.sum(axis=0) + classes.sum(axis=1) - 2 * np.diag(classes)
    # Equally confused classes by their number of objects.
    order = np.lexsort((-matrix[:-1].sum(axis=1), -wrong))
    shown = np.sort(order[: MAX_CLASSES - 1])
    rest = np.sort(order[MAX_CLASSES - 1 :])
    groups = [[k] for k in shown] + [list(rest), [len(names)]]
    sums = [[matrix[np.ix_(row, column)].sum() for column in groups] for row in groups]
    return np.array(sums), [names[k] for k in shown] + [f"{len(rest)} others"]


def _at(curves, iou):
    return int(np.argmin(np.abs(curves.iou_thresholds - iou)))


def _diagonal(axes):
    axes.plot([0, 1], [0, 1], "--", color="#333333", linewidth=1.2, zorder=3)


def _finish_curves(figure, axes, title):
    axes.set_title(title)
    if axes.lines:
        axes.legend(fontsize=8, loc="lower left")
    return _finish_unit(figure, axes, "recall", "precision")


def _finish_unit(figure, axes, x_label, y_label):
    axes.set(xlim=(0, 1), ylim=(0, 1.05), xlabel=x_label, ylabel=y_label)
    axes.grid(alpha=0.3)
    return figure


def _short(count):
    return f"{count / 1000:.3g}k" if count >= 10000 else str(int(count))


def _short_name(name, length=16):
    return figure_text(name if len(name) <= length else name[: length - 1] + "…")
