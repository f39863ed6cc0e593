"""Draws the figures of `how_vfnet_works.md` by the functions that it tells of.

`python docs/figures.py` writes them to `docs/figures/`.
"""

import math
import pathlib
import sys

import matplotlib
import numpy as np
from keras import ops
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from vfnet_tf.assigners import ATSSAssigner
from vfnet_tf.data.synthetic import draw_scene
from vfnet_tf.losses import focal_loss, varifocal_loss
from vfnet_tf.ops.boxes import (
    box_area,
    boxes_to_distances,
    distances_to_boxes,
    elementwise_iou,
    xywh_to_xyxy,
)
from vfnet_tf.ops.deform_conv import star_conv
from vfnet_tf.ops.nms import class_wise_nms
from vfnet_tf.priors import STRIDES, make_points

RED, BLUE, GREEN, ORANGE, GREY = "#d6302b", "#1f6fd1", "#2e9e46", "#e08a00", "#8a8f98"
STYLE = {
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "font.size": 10,
    "legend.frameon": False,
    # The same figure is the same file.
    "svg.hashsalt": "vfnet_tf",
}


def _numpy(tensor):
    return ops.convert_to_numpy(tensor)


def scene(seed=21):
    """A generated image uint8 `[256, 320, 3]`, its boxes `[M, 4]` and labels `[M]`.

    The one by default has a very small object, and a large one between two levels.
    """
    image, objects = draw_scene(np.random.default_rng(seed))
    boxes = np.array([box for _, box, _ in objects], "float32")
    labels = np.array([label for label, _, _ in objects], "int32")
    return image, _numpy(xywh_to_xyxy(boxes)), labels


def _show(axes, image, scale=2):
    """A pale image below, so that what is drawn on it stands out; each pixel as it is.

    It is made smaller first, which also takes the noise: the file stays small.
    """
    height, width = image.shape[:2]
    size = (width // scale, height // scale)
    small = Image.fromarray(image).resize(size, Image.Resampling.LANCZOS)
    pale = 0.55 * np.asarray(small) + 0.45 * 255
    # Few levels compress well.
    pale = (np.round(pale / 8) * 8).clip(0, 255).astype("uint8")
    axes.imshow(pale, extent=(0, width, height, 0), interpolation="none")
    axes.set(xticks=[], yticks=[], xlim=(0, width), ylim=(height, 0))
    axes.spines[:].set_visible(False)


def _box(axes, box, color, **style):
    x1, y1, x2, y2 = (float(side) for side in box)
    style = {"fill": False, "linewidth": 2, **style}
    axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, edgecolor=color, **style))


def ranking():
    """Two boxes on one object: which does NMS keep by which score?"""
    image, boxes, _ = scene()
    truth = boxes[np.argmax(box_area(boxes))]
    side = truth[2] - truth[0]
    pair = truth + side * np.array(
        [[0.26, 0.1, 0.18, 0.06], [-0.03, 0.02, 0.03, 0.05]], "float32"
    )
    ious = _numpy(elementwise_iou(pair, truth))
    figure = Figure((9, 3), layout="constrained")
    left, *others = figure.subplots(1, 3, width_ratios=(1, 1.15, 1.15))
    _show(left, image)
    margin = 0.35 * side
    left.set(
        xlim=(truth[0] - margin, truth[2] + margin),
        ylim=(truth[3] + margin, truth[1] - margin),
        title="two predictions, one object",
    )
    _box(left, truth, "black", linestyle="--", linewidth=1.5)
    for name, box, color in zip("AB", pair, (RED, BLUE), strict=True):
        _box(left, box, color)
        corner = {
            "A": (box[2], box[3], "right", "bottom"),
            "B": (*box[:2], "left", "top"),
        }
        x, y, horizontal, vertical = corner[name]
        left.text(
            x,
            y,
            f" {name} ",
            color=color,
            weight="bold",
            size=13,
            ha=horizontal,
            va=vertical,
        )
    rankings = {
        "class scores": np.array([0.95, 0.85], "float32"),
        "IoU-aware scores": ious,
    }
    for axes, (title, scores) in zip(others, rankings.items(), strict=True):
        kept = class_wise_nms(pair[None], scores[None, :, None], 0.5, 0.05, 2)
        kept = [list(map(float, box)) for box in _numpy(kept["boxes"])[0]]
        for row, (box, color) in enumerate(zip(pair, (RED, BLUE), strict=True)):
            is_kept = list(map(float, box)) in kept
            axes.barh(row, scores[row], color=color, alpha=1 if is_kept else 0.3)
            verdict = "kept" if is_kept else "suppressed"
            axes.text(
                0.03,
                row,
                f"{scores[row]:.2f}, {verdict}",
                va="center",
                color="white" if is_kept else "black",
            )
        axes.set(
            yticks=(0, 1),
            yticklabels=[
                f"{name}\nIoU {iou:.2f}" for name, iou in zip("AB", ious, strict=True)
            ],
            ylim=(1.6, -0.6),
            xlim=(0, 1),
            title=f"ranked by {title}",
        )
    return figure


def loss():
    """The varifocal loss over the predicted score, beside the focal loss."""
    p = np.linspace(0.002, 0.998, 250, dtype="float32")
    logits = np.log(p / (1 - p))
    figure = Figure((9, 3.4), layout="constrained")
    negatives, positives = figure.subplots(1, 2)

    def varifocal(q, **settings):
        return _numpy(varifocal_loss(np.full_like(p, q), logits, **settings))

    # Without modulation the negatives have the plain cross-entropy.
    negatives.plot(p, varifocal(0, alpha=1, gamma=0), color=GREY, label="cross-entropy")
    negatives.plot(p, varifocal(0), color=RED, label="varifocal, α = 0.75, γ = 2")
    focal = _numpy(focal_loss(np.zeros_like(p), logits))
    negatives.plot(p, focal, color=BLUE, ls="--", label="focal, α = 0.25: the same")
    negatives.set(title="negatives, q = 0: easy ones hardly count", ylim=(0, 3))
    focal = _numpy(focal_loss(np.ones_like(p), logits))
    for q, color in ((0.9, GREEN), (0.6, ORANGE), (0.3, RED)):
        values = varifocal(q)
        positives.plot(p, values, color=color, label=f"varifocal, q = {q}")
        lowest = np.argmin(values)
        positives.plot(p[lowest], values[lowest], "o", color=color)
    positives.plot(p, focal, color=BLUE, ls="--", label="focal, target 1")
    positives.set(title="positives: lowest where the score is the IoU", ylim=(0, 3))
    for axes in (negatives, positives):
        axes.set(xlabel="predicted score p", xlim=(0, 1))
        axes.legend()
    negatives.set(ylabel="loss")
    return figure


def star_points(point, distances, stride, shape):
    """The nine points that `star_conv` reads for one cell.

    The features are the coordinates themselves, and each tap of the kernel hands on
    what it reads.

    Args:
        point: `(x, y)` pixels, a cell's corner.
        distances: `(left, top, right, bottom)` pixels.
        stride: pixels per cell.
        shape: (height, width) of the map in cells.

    Returns:
        float32 `[9, 2]`, `(x, y)` pixels, taps row by row.
    """
    height, width = shape
    y, x = np.mgrid[0:height, 0:width].astype("float32")
    features = np.stack([x, y], axis=-1)[None]
    kernel = np.eye(18, dtype="float32").reshape(3, 3, 2, 18)
    cells = np.broadcast_to(
        np.array(distances, "float32") / stride, (1, height, width, 4)
    )
    read = _numpy(star_conv(features, cells, kernel))
    column, row = (int(place // stride) for place in point)
    return read[0, row, column].reshape(9, 2) * stride


def star():
    """The star of a cell's initial box, and the refinement of that box."""
    image, boxes, _ = scene()
    truth = boxes[np.argmax(box_area(boxes))]
    stride = 16
    center = (truth[:2] + truth[2:]) / 2
    point = np.floor(center / stride) * stride
    sides = _numpy(boxes_to_distances(point, truth))
    distances = sides * np.array([1.25, 0.75, 0.8, 1.3], "float32")
    initial = _numpy(distances_to_boxes(point, distances))
    # What the head learns: factors near those that would be right.
    factors = np.round(1 + 0.85 * (sides / distances - 1), 2)
    refined = _numpy(distances_to_boxes(point, distances * factors))
    figure = Figure((9, 3.7), layout="constrained")
    left, right = figure.subplots(1, 2)
    height, width = image.shape[:2]
    grid = (math.ceil(height / stride), math.ceil(width / stride))
    points = star_points(point, distances, stride, grid)
    _show(left, image)
    left.set_xticks(np.arange(0, width, stride))
    left.set_yticks(np.arange(0, height, stride))
    left.grid(color="black", alpha=0.18, linewidth=0.6)
    left.tick_params(length=0, labelbottom=False, labelleft=False)
    _box(left, initial, RED)
    for x, y in points:
        left.plot([point[0], x], [point[1], y], color=RED, linewidth=0.8, alpha=0.7)
    left.plot(*points.T, "o", color="#ffd400", markeredgecolor="black", markersize=8)
    left.plot(*point, "o", color="black", markersize=4)
    left.set_title("nine points read for one cell (P4)")
    _show(right, image)
    _box(right, truth, "black", linestyle="--", linewidth=1.5)
    labels = {
        "initial": (initial, RED),
        "refined": (refined, BLUE),
    }
    for name, (box, color) in labels.items():
        iou = float(_numpy(elementwise_iou(box, truth)))
        _box(right, box, color, label=f"{name}, IoU {iou:.2f}")
    right.plot(*point, "o", color="black", markersize=4)
    right.legend(loc="upper left", framealpha=0.85, frameon=True)
    right.set_title(
        "distances × "
        + ", ".join(f"{factor:.2f}" for factor in factors)
        + " (l, t, r, b)"
    )
    return figure


def assignment():
    """Which points ATSS makes positive, and on which level."""
    image, boxes, labels = scene()
    height, width = image.shape[:2]
    shapes = [(math.ceil(height / s), math.ceil(width / s)) for s in STRIDES]
    points, strides = make_points(shapes)
    result = ATSSAssigner()(
        points, strides, boxes[None], labels[None], np.array([[height, width]])
    )
    rows, points, strides = (
        _numpy(result.gt_indices)[0],
        _numpy(points),
        _numpy(strides),
    )
    figure = Figure((9, 3.9), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    _show(left, image)
    colors = [RED, BLUE, GREEN, ORANGE, "#9b41cd", "#00a5b0"]
    markers = {8: "o", 16: "o", 32: "s", 64: "D", 128: "P"}
    sizes = {8: 4.5, 16: 7, 32: 9, 64: 11, 128: 14}
    for row, box in enumerate(boxes):
        _box(left, box, colors[row], linewidth=1.5)
        start = 0
        for level, stride in enumerate(STRIDES, start=3):
            chosen = points[(rows == row) & (strides == stride)]
            left.plot(
                *chosen.T,
                markers[stride],
                color=colors[row],
                markersize=sizes[stride],
                markeredgecolor="black",
                markeredgewidth=0.4,
            )
            if len(chosen):
                right.barh(
                    row,
                    len(chosen),
                    left=start,
                    color=colors[row],
                    alpha=0.4 + 0.12 * (level - 3),
                    edgecolor="white",
                )
                right.text(
                    start + max(0.6, len(chosen) / 2),
                    row,
                    f"P{level}",
                    ha="center",
                    va="center",
                )
            start += len(chosen)
    left.set_title("positive points, larger on coarser levels")
    sides = np.sqrt(box_area(boxes))
    right.set(
        title="positives of each object by level",
        yticks=range(len(boxes)),
        yticklabels=[f"{side:.0f} px" for side in sides],
        ylim=(len(boxes) - 0.5, -0.5),
        xlabel="points",
        xticks=range(0, 20, 3),
    )
    return figure


#: file stem -> what draws it
FIGURES = {
    "ranking": ranking,
    "varifocal_loss": loss,
    "star": star,
    "atss": assignment,
}


def main(directory=pathlib.Path(__file__).parent / "figures", suffix="svg"):
    """Writes all figures.

    Args:
        directory: `pathlib.Path` of a folder, made if need be.
        suffix: str, the format, `"svg"` or another of matplotlib's.

    Returns:
        list of the paths.
    """
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, draw in FIGURES.items():
        path = directory / f"{name}.{suffix}"
        with matplotlib.rc_context(STYLE):
            metadata = {"Date": None} if suffix == "svg" else None
            draw().savefig(path, metadata=metadata, dpi=100)
        paths.append(path)
    return paths


if __name__ == "__main__":
    print(*main(*map(pathlib.Path, sys.argv[1:2]), *sys.argv[2:3]), sep="\n")
