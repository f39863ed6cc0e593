# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The star convolution: where it looks
# A 3x3 convolution reads a cell and its eight neighbours, however large the object is. VarifocalNet first predicts a box at each cell, then reads
# nine points of *that* box: the cell, the four corners, the middles of the four sides ([paper](https://arxiv.org/abs/2008.13367), Sec. 4.3). It is a deformable
# convolution whose offsets are not learned but computed from the box.

# %%
import importlib
import importlib.util
import os
import subprocess
import sys

IN_COLAB = "google.colab" in sys.modules
# <-- EDIT in Colab: a git URL ("git+https://..."), or the wheel that you uploaded
# (`pip wheel --no-deps .` in a clone makes it). Elsewhere: the clone around this file.
SOURCE = "vfnet_tf-0.1.0-py3-none-any.whl" if IN_COLAB else ".."
if importlib.util.find_spec("vfnet_tf") is None:
    # TensorFlow is not imported yet, so the runtime need not be restarted.
    command = [sys.executable, "-m", "pip", "install", "--quiet", SOURCE]
    subprocess.run(command, check=True)
    importlib.invalidate_caches()
os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import tensorflow as tf

import vfnet_tf

SMALL = "VFNET_TF_SMALL" in os.environ  # the tests set it: the same cells, less work
gpus = tf.config.list_physical_devices("GPU")
print(f"vfnet_tf {vfnet_tf.__version__}, Keras {keras.__version__}")
print(
    "GPU:", len(gpus) or "none, the CPU will do (Colab: Runtime > Change runtime type)"
)

# %% [markdown]
# ## An image and its boxes
# A photograph of COCO where the data lie beside the clone, otherwise a generated image. The map of features is the image itself,
# shrunk to cells of 8 x 8 pixels: level P3 with three channels one can look at.

# %%
import json
import pathlib

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from vfnet_tf.data.synthetic import draw_scene
from vfnet_tf.drawing import draw_detections

STRIDE = 8
coco = pathlib.Path(vfnet_tf.__file__).parents[2] / "shared" / "data" / "coco_mini"
photograph = coco / "val2017" / "000000214753.jpg"  # riders on a beach

if photograph.is_file():
    pixels = np.asarray(Image.open(photograph).convert("RGB"))
    content = json.loads((coco / "annotations" / "instances_val2017.json").read_text())
    image_id = int(photograph.stem)
    xywh = [a["bbox"] for a in content["annotations"] if a["image_id"] == image_id]
else:
    pixels, objects = draw_scene(np.random.default_rng(12), (424, 640))
    xywh = [box for _, box, _ in objects]
xywh = np.array(sorted(xywh, key=lambda box: -box[2] * box[3])[:4], "float32")
boxes = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)

height, width = pixels.shape[0] // STRIDE, pixels.shape[1] // STRIDE
pixels = pixels[: height * STRIDE, : width * STRIDE]
features = pixels.reshape(height, STRIDE, width, STRIDE, 3).mean(axis=(1, 3)) / 255
features = features[None].astype("float32")
print(
    "image", pixels.shape, "features", features.shape, "boxes", boxes.round().tolist()
)
figure, axes = plt.subplots(1, 2, figsize=(12, 4.2), layout="constrained")
axes[0].imshow(draw_detections(pixels, boxes, range(len(boxes)), captions=False))
axes[1].imshow(features[0])
axes[0].set_title("boxes")
axes[1].set_title(f"features: {height} x {width} cells")
plt.show()

# %% [markdown]
# ## Distances
# The head predicts, at each cell, `(left, top, right, bottom)`: how far the sides of the box are. Here they are set by hand, to what a trained head should
# say: the sides of the smallest object around the cell, and one cell where there is none. The layer wants them **in cells**: pixels divided
# by the stride.

# %%
from vfnet_tf.ops.boxes import boxes_to_distances
from vfnet_tf.priors import make_points

points, _ = make_points([(height, width)], strides=(STRIDE,))  # (x, y) of each cell
points = np.asarray(points)
distances = np.full((len(points), 4), STRIDE, "float32")
owner = np.full(len(points), -1)
for number, box in enumerate(boxes):  # from large to small
    to_sides = np.asarray(boxes_to_distances(points, box))
    is_inside = to_sides.min(axis=1) > 0
    distances[is_inside] = to_sides[is_inside]
    owner[is_inside] = number
distances = distances.reshape(1, height, width, 4) / STRIDE


def star(x, y, left_top_right_bottom):
    """The nine points of a star, row by row: `[3, 3, 2]`, (x, y)."""
    left, top, right, bottom = left_top_right_bottom
    return np.array(
        [[(x + dx, y + dy) for dx in (-left, 0, right)] for dy in (-top, 0, bottom)]
    )


# Off the middle of each object: every cell of it is asked, not just the one in the middle.
corner, sides = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]
cells = []  # (x, y)
for number, place in enumerate(corner + [0.6, 0.65] * sides):
    own = points[owner == number]
    nearest = own[np.argmin(np.square(own - place).sum(axis=1))]
    cells.append(np.round(nearest / STRIDE).astype(int))
for x, y in cells:
    sides = ", ".join(f"{side:.1f}" for side in distances[0, y, x])
    print(f"cell ({x}, {y}): left, top, right, bottom = {sides} cells")

# %% [markdown]
# ## Nine points each
# Circles: the star of a cell (the larger one is the cell). Crosses: what a 3x3 convolution would read there. The star of a cell that lies off the middle is
# lopsided, and it reaches the ends of the object however large that is.

# %%
figure, axes = plt.subplots(figsize=(11, 7.5), layout="constrained")
axes.imshow(pixels)
for number, ((x, y), box) in enumerate(zip(cells, boxes, strict=True)):
    color = f"C{number}"
    x1, y1, x2, y2 = box
    axes.plot([x1, x2, x2, x1, x1], [y1, y1, y2, y2, y1], color=color, linewidth=1)
    nine = star(x, y, distances[0, y, x]).reshape(9, 2) * STRIDE
    for end in nine:
        axes.plot(*zip(nine[4], end, strict=True), color=color, linewidth=0.8)
    axes.scatter(*nine.T, s=45, color=color, edgecolor="white", zorder=3)
    axes.scatter(*nine[4], s=110, color=color, edgecolor="white", zorder=4)
    plain = star(x, y, (1, 1, 1, 1)).reshape(9, 2) * STRIDE
    axes.scatter(*plain.T, s=30, color="white", marker="x", linewidth=1, zorder=5)
axes.axis("off")
plt.show()

# %% [markdown]
# ## The offsets
# A deformable convolution reads at *tap + offset*. The tap of row -1, column -1 is the upper left neighbour; to send it to the corner of the box,
# the offset is `(dy, dx) = (1 - top, 1 - left)`. With the offsets of all cells, the general operator and `StarDeformableConv2D` agree on the
# whole map; the star needs 25 reads instead of 36, as the middle of a side shares its row or its column with the cell.

# %%
from vfnet_tf.ops.deform_conv import deform_conv

keras.utils.set_random_seed(0)
layer = vfnet_tf.layers.StarDeformableConv2D(filters=4)
output = np.asarray(layer(features, distances))
kernel = np.asarray(layer.kernel)  # [3, 3, channels, filters]

left, top, right, bottom = np.moveaxis(distances, -1, 0)
zero = np.zeros_like(left)
offsets = np.stack(
    [
        np.stack([dy, dx], axis=-1)
        for dy in (1 - top, zero, bottom - 1)
        for dx in (1 - left, zero, right - 1)
    ],
    axis=-2,
)  # [1, height, width, 9, 2]
x, y = cells[0]
print(f"offsets (dy, dx) of cell ({x}, {y}), tap by tap:")
for row in offsets[0, y, x].reshape(3, 3, 2).round(1).tolist():
    print("   ", *(f"({dy:6.1f}, {dx:6.1f})" for dy, dx in row))
general = np.asarray(
    deform_conv(features, offsets.reshape(1, height, width, 18), kernel)
)
against_general = np.abs(output - general).max()
print("largest difference from the general operator:", against_general)

# %% [markdown]
# ## By hand, at one cell
# Nothing but loops: nine points, each the weighted mean of the four cells around it (bilinear interpolation; what lies outside the map is 0),
# times the kernel.


# %%
def bilinear(x, y):
    value = np.zeros(features.shape[-1])
    for row in (int(np.floor(y)), int(np.floor(y)) + 1):
        for column in (int(np.floor(x)), int(np.floor(x)) + 1):
            if 0 <= row < height and 0 <= column < width:
                weight = (1 - abs(y - row)) * (1 - abs(x - column))
                value += weight * features[0, row, column]
    return value


by_hand = np.zeros(4)
places = star(x, y, distances[0, y, x])
for i in range(3):
    for j in range(3):
        by_hand += bilinear(*places[i, j]) @ kernel[i, j]
against_loops = np.abs(output[0, y, x] - by_hand).max()
print("layer   ", output[0, y, x])
print("by hand ", by_hand)

# %% [markdown]
# ## Two special stars
# - **All distances one cell:** the nine points are the nine cells of an ordinary 3x3 convolution.
# - **All distances zero:** all nine points fall on the cell. What is left is a 1x1 convolution with the sum of the nine kernels: the layer has
#   stopped looking around. Before training a head predicts neither.

# %%
ones = np.ones_like(distances)
conv3x3 = np.asarray(keras.ops.conv(features, kernel, padding="same"))
conv1x1 = features @ kernel.sum(axis=(0, 1))
against_3x3 = np.abs(np.asarray(layer(features, ones)) - conv3x3).max()
against_1x1 = np.abs(np.asarray(layer(features, 0 * ones)) - conv1x1).max()
print("one cell, against a 3x3 convolution: ", against_3x3)
print("zero, against a 1x1 convolution:     ", against_1x1)

# %% [markdown]
# ## What it really reads
# The gradient of one output with respect to the features tells which cells it was made of, and with what weight; a kernel of ones leaves the
# bilinear weights alone. This is not drawn from the formula, it is measured on the layer.

# %%
probe = vfnet_tf.layers.StarDeformableConv2D(filters=1, kernel_initializer="ones")


def cells_read(distances):
    x_ = tf.constant(features)
    with tf.GradientTape() as tape:
        tape.watch(x_)
        value = probe(x_, distances)[0, y, x, 0]
    return tape.gradient(value, x_).numpy()[0, ..., 0]


cases = {
    "distances 0": 0 * ones,
    "distances 1: plain 3x3": ones,
    "the star of its box": distances,
}
reads = {title: cells_read(case) for title, case in cases.items()}
x1, y1, x2, y2 = boxes[0] / STRIDE
figure, axes = plt.subplots(1, 3, figsize=(13, 5), layout="constrained")
for axis, (title, weights) in zip(axes, reads.items(), strict=True):
    axis.imshow(features[0], alpha=0.6)
    axis.imshow(np.ma.masked_equal(weights, 0), cmap="autumn_r", vmin=0, vmax=1)
    axis.plot([x1, x2, x2, x1, x1], [y1, y1, y2, y2, y1], color="white", linewidth=1)
    axis.set(title=f"{title}; cells read: {np.count_nonzero(weights)}")
    axis.set(xlim=(x1 - 5, x2 + 5), ylim=(y2 + 5, y1 - 5))
plt.show()

# %% [markdown]
# **Expected:** layer, general operator and loops give the same numbers (differences below 1e-5); zero distances read 1 cell, unit distances 9, and the star
# at most 25; each time the weights add up to 9, one for each point. In training the star lets only a tenth of its gradient through to the
# distances (`star_gradient` of `VFNetHead`, as in the official code), lest the class scores pull at the boxes.

# %%
star_cells = np.count_nonzero(reads["the star of its box"])
worst = max(against_general, against_loops, against_3x3, against_1x1)
print(f"largest difference of all: {worst:.2e}")
print(f"cells that the star reads: {star_cells}")
assert worst < 1e-5
assert [np.count_nonzero(r) for r in reads.values()] == [1, 9, star_cells]
assert 9 < star_cells <= 25
assert all(abs(r.sum() - 9) < 1e-4 for r in reads.values())
