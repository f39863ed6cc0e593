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
# # The varifocal loss: what it is, and how to use it in a detector of your own
# A detector ranks its boxes by a score. Trained with the focal loss, the score says *is there an object?*; it does not say how well the box
# fits, and non-maximum suppression may keep the worse of two boxes. VarifocalNet ([paper](https://arxiv.org/abs/2008.13367), Eq. 2) trains the score to be
# the **IoU of the predicted box with its object**, and needs one loss for it.

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
# ## The formula
# $p$ is the predicted score of a class, $q$ its target: at an object's class the IoU of the box that is predicted *right there* with the true
# box, and 0 everywhere else.
#
# $$\mathrm{VFL}(p, q) = \begin{cases} -q\,\bigl(q \log p + (1 - q) \log(1 - p)\bigr) & q > 0 \\ -\alpha\, p^\gamma \log(1 - p) & q = 0 \end{cases}$$
#
# A positive gets the cross-entropy towards $q$, weighted by $q$: the better its box, the more it counts. A negative is weighted down by
# $p^\gamma$, as in the focal loss: the millions of easy ones must not drown the rest. Positives are *not* weighted down; they are rare.

# %%
import matplotlib.pyplot as plt
import numpy as np
from keras import ops

from vfnet_tf.losses import focal_loss, quality_focal_loss, varifocal_loss

p = np.linspace(0.002, 0.998, 499).astype("float32")
logits = np.log(p / (1 - p))


def curve(loss):
    """Values of a loss of logits, and its gradient with respect to them."""
    x = tf.constant(logits)
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = loss(x)
    return value.numpy(), tape.gradient(value, x).numpy()


def varifocal(q, **settings):
    return lambda x: varifocal_loss(ops.full_like(x, q), x, **settings)


Q = 0.6
panels = {
    "positives": {f"q = {q}": varifocal(q) for q in (0.25, 0.5, 0.75, 1.0)},
    "negatives, q = 0": {
        "α = 1, γ = 0: cross-entropy": varifocal(0, alpha=1, gamma=0),
        "α = 0.75, γ = 1": varifocal(0, gamma=1),
        "α = 0.75, γ = 2: default": varifocal(0),
        "α = 1.25, γ = 2.5": varifocal(0, alpha=1.25, gamma=2.5),
    },
    f"a positive whose box has IoU {Q}": {
        "varifocal, q": varifocal(Q),
        "cross-entropy, q": varifocal(Q, iou_weighted=False),
        "quality focal, q": lambda x: quality_focal_loss(ops.full_like(x, Q), x),
        "focal, y = 1": lambda x: focal_loss(ops.ones_like(x), x),
    },
}
curves = {
    title: {name: curve(loss) for name, loss in losses.items()}
    for title, losses in panels.items()
}

# %% [markdown]
# Above the loss, below its gradient with respect to the *logit*, which is what the network gets; all by automatic differentiation. Where the
# gradient is 0 the score wants to stay.

# %%
figure, axes = plt.subplots(2, 3, figsize=(13, 6.5), sharex=True, layout="constrained")
for column, (title, named) in enumerate(curves.items()):
    for name, values in named.items():
        for row in (0, 1):
            axes[row, column].plot(p, values[row], label=name)
    axes[0, column].set(title=title, ylim=(0, 2))
    axes[0, column].legend(fontsize="small")
    axes[1, column].axhline(0, color="black", linewidth=0.6)
    axes[1, column].set_xlabel("p")
axes[1, 1].set_ylim(-0.05, 1.05)
axes[0, 0].set_ylabel("loss")
axes[1, 0].set_ylabel("gradient by the logit")
plt.show()

# %% [markdown]
# - **Left:** each curve is lowest at $p = q$, not at 1. A box with IoU 0.25 should score 0.25, and pulls with a quarter of the force.
# - **Middle:** with $\gamma = 2$ a negative at $p = 0.1$ hardly pulls any more.
# - **Right:** the focal loss drives the score of a mediocre box to 1. The quality focal loss also aims at $q$, but weights positives down as they come near.

# %%
lowest = {
    name: p[np.argmin(np.abs(gradient))]
    for name, (_, gradient) in curves["positives"].items()
    if name != "q = 1.0"
}
print(
    "the gradient vanishes at p =", {k: round(float(v), 2) for k, v in lowest.items()}
)
cross_entropy = ops.binary_crossentropy(
    np.full_like(logits, Q), logits, from_logits=True
)
np.testing.assert_allclose(varifocal(Q)(logits), Q * cross_entropy, rtol=1e-4)

# %% [markdown]
# ## The contract
# Three things go wrong when this loss is put into another detector:
#
# 1. **Targets are soft.** A one-hot target gives $q = 1$ everywhere, and the score learns nothing about the box.
# 2. **The IoU carries no gradient.** It is a target: `stop_gradient`.
# 3. **Sum, then divide by the number of positives of the batch.** A mean over all points divides by the background instead. Keras's default
#    reduction is such a mean; `VarifocalLoss` defaults to `"sum"`.
#
# The same five objects on ever more background:

# %%
from vfnet_tf.losses import VarifocalLoss

POSITIVES = 5
print("points   sum / positives   mean over points")
for points in (100, 1_000, 10_000):
    targets = np.zeros((1, points, 1), "float32")
    targets[0, :POSITIVES] = 0.7
    scores = np.where(targets > 0, 0.3, 0.01)  # objects half found, easy background
    x = np.log(scores / (1 - scores)).astype("float32")
    weights = np.full((1, points), 1 / POSITIVES, "float32")
    total = VarifocalLoss()(targets, x, sample_weight=weights)
    mean = VarifocalLoss(reduction="sum_over_batch_size")(targets, x)
    print(f"{points:6}   {float(total):15.4f}   {float(mean):16.5f}")

# %% [markdown]
# ## In a detector that is not VFNet
# One level, no anchors, some convolutions of plain Keras. Each of 8 x 8 points predicts class scores and its distances to the four sides of a box.
# First the images (64 x 64 pixels, the shapes of the library's generator) and what each point is to learn: points in the middle of an object get its class and box.

# %%
from vfnet_tf.data.synthetic import CLASS_NAMES, draw_scene

SIDE, STRIDE, K = 64, 8, len(CLASS_NAMES)
NUM_TRAIN, EPOCHS = (256, 12) if SMALL else (1024, 40)

centers = (np.arange(SIDE // STRIDE, dtype="float32") + 0.5) * STRIDE
POINTS = np.stack(np.meshgrid(centers, centers), axis=-1).reshape(-1, 2)  # (x, y)


def make_example(seed):
    image, objects = draw_scene(np.random.default_rng(seed), (SIDE, SIDE))
    target = np.zeros((len(POINTS), K + 4), "float32")
    # Small objects come last: they lie on top.
    for label, (x, y, w, h), _ in sorted(objects, key=lambda one: -one[2]):
        from_center = np.abs(POINTS - [x + w / 2, y + h / 2])
        is_inside = np.all(from_center < np.array([w, h]) * 0.35, axis=1)
        target[is_inside] = 0
        target[is_inside, label] = 1
        target[is_inside, K:] = x, y, x + w, y + h
    return image, target


images, targets = map(np.stack, zip(*map(make_example, range(NUM_TRAIN)), strict=True))
test_images, test_targets = map(
    np.stack, zip(*map(make_example, range(10**6, 10**6 + 128)), strict=True)
)
positives = targets[..., :K].sum()
print(
    f"{positives / targets[..., :K].size:.1%} of all (point, class) pairs are positive"
)

# %% [markdown]
# Next the network and the loss. The IoU depends on the boxes of this very step, so the targets of the scores are made *inside* the loss.

# %%
from vfnet_tf.losses import GIoULoss
from vfnet_tf.ops.boxes import distances_to_boxes, elementwise_iou


def build_network():
    x = inputs = keras.Input((SIDE, SIDE, 3))
    x = keras.layers.Rescaling(1 / 127.5, offset=-1)(x)
    for filters, strides in ((16, 2), (32, 2), (64, 2), (64, 1), (64, 1)):
        x = keras.layers.Conv2D(filters, 3, strides, "same", use_bias=False)(x)
        x = keras.layers.BatchNormalization(momentum=0.9)(x)
        x = keras.layers.ReLU()(x)
    # Scores start at 0.01: background is what there is most of (focal loss, Sec. 3.3).
    prior = keras.initializers.Constant(-np.log(99))
    logits = keras.layers.Conv2D(K, 3, padding="same", bias_initializer=prior)(x)
    distances = keras.layers.Conv2D(4, 3, padding="same", activation="softplus")(x)
    outputs = keras.layers.Concatenate()([logits, distances])
    return keras.Model(inputs, keras.layers.Reshape((-1, K + 4))(outputs))


def decode(outputs):
    """Class logits [B, P, K] and boxes [B, P, 4] in pixels."""
    boxes = distances_to_boxes(ops.convert_to_tensor(POINTS), outputs[..., K:] * STRIDE)
    return outputs[..., :K], boxes


class DetectionLoss(keras.losses.Loss):
    """Varifocal loss of the scores and GIoU loss of the boxes."""

    def call(self, y_true, y_pred):
        one_hot, true_boxes = y_true[..., :K], y_true[..., K:]
        logits, boxes = decode(y_pred)
        is_positive = ops.max(one_hot, axis=-1)
        iou = ops.stop_gradient(elementwise_iou(boxes, true_boxes))
        # The floor keeps a positive with a hopeless box from becoming a negative.
        q = one_hot * ops.maximum(iou, 1e-6)[..., None]
        class_loss = VarifocalLoss().call(q, logits)  # [B, P]
        box_loss = is_positive * GIoULoss().call(true_boxes, boxes)
        return (class_loss + 2 * box_loss) / ops.maximum(ops.sum(is_positive), 1)


keras.utils.set_random_seed(0)
network = build_network()
rate = keras.optimizers.schedules.CosineDecay(3e-3, EPOCHS * NUM_TRAIN // 32)
network.compile(
    keras.optimizers.Adam(rate),
    loss=DetectionLoss(reduction="sum"),
    jit_compile=False,  # XLA would compile for longer than this trains
)
history = network.fit(images, targets, batch_size=32, epochs=EPOCHS, verbose=0)
print("loss of each epoch:", np.round(history.history["loss"], 2))

# %% [markdown]
# ## Does the score know how good the box is?
# On images that it has not seen, each point of an object: the score of its class against the IoU of its box. Left the cloud and its mean, right
# some detections after non-maximum suppression: the number beside a name is, in effect, a guess of the IoU.

# %%
from vfnet_tf.ops.nms import suppress
from vfnet_tf.visualization import draw_detections, draw_grid

test_logits, boxes = decode(
    ops.convert_to_tensor(network.predict(test_images, verbose=0))
)
scores = ops.sigmoid(test_logits)
is_object = test_targets[..., :K] > 0
iou = ops.convert_to_numpy(elementwise_iou(boxes, test_targets[..., K:]))
iou = iou[is_object.any(axis=-1)]
score = ops.convert_to_numpy(scores)[is_object]
correlation = np.corrcoef(score, iou)[0, 1]

found = suppress(boxes, scores, 0.6, 0.3, 10)
pictures = [
    draw_detections(
        test_images[i],
        *(
            ops.convert_to_numpy(found[name][i])
            for name in ("boxes", "labels", "scores")
        ),
        CLASS_NAMES,
    )
    for i in range(4)
]
figure, axes = plt.subplots(1, 2, figsize=(12, 5.5), layout="constrained")
axes[0].scatter(score, iou, s=6, alpha=0.4)
bins = np.quantile(score, np.linspace(0, 1, 9))
middle = (bins[:-1] + bins[1:]) / 2
which = np.clip(np.digitize(score, bins) - 1, 0, 7)
axes[0].plot(
    middle,
    [iou[which == b].mean() for b in range(8)],
    "o-",
    color="C1",
    label="mean of an eighth",
)
axes[0].plot([0, 1], [0, 1], color="grey", linewidth=0.8, label="score = IoU")
axes[0].set(
    xlabel="score", ylabel="IoU of the box", title=f"correlation {correlation:.2f}"
)
axes[0].legend()
axes[1].imshow(draw_grid(pictures, columns=2))
axes[1].axis("off")
plt.show()

# %% [markdown]
# **Expected:** the loss falls, and score and IoU go together: on unseen objects their correlation passes 0.3. (A score that is merely
# right about the class would give no reason for it.)

# %%
losses = history.history["loss"]
print(f"loss, last epoch to first: {losses[-1] / losses[0]:.3f}")
print(f"correlation of score and IoU: {correlation:.3f}")
assert losses[-1] < losses[0]
assert correlation > 0.3
assert all(abs(float(name[4:]) - value) < 0.01 for name, value in lowest.items())
