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
NUM_TRAIN, EPOCHS = (256, 10) if SMALL else (1024, 20)

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
# Next the network and the loss. The IoU depends on the boxes of this very step, so the targets of the scores are made *inside* the loss. For comparison a second
# network of the same initial weights is trained with the focal loss, which takes one-hot targets.

# %%
from vfnet_tf.losses import FocalLoss, GIoULoss
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
    """A loss of the scores and the GIoU loss of the boxes."""

    def __init__(self, class_loss):
        super().__init__(reduction="sum")
        self.class_loss = class_loss

    def call(self, y_true, y_pred):
        one_hot, true_boxes = y_true[..., :K], y_true[..., K:]
        logits, boxes = decode(y_pred)
        is_positive = ops.max(one_hot, axis=-1)
        iou = ops.stop_gradient(elementwise_iou(boxes, true_boxes))
        # The floor keeps a positive with a hopeless box from becoming a negative.
        q = one_hot * ops.maximum(iou, 1e-6)[..., None]
        if isinstance(self.class_loss, FocalLoss):
            q = one_hot
        class_loss = self.class_loss.call(q, logits)  # [B, P]
        box_loss = is_positive * GIoULoss().call(true_boxes, boxes)
        return (class_loss + 2 * box_loss) / ops.maximum(ops.sum(is_positive), 1)


networks, losses = {}, {}
for name, class_loss in {"varifocal": VarifocalLoss(), "focal": FocalLoss()}.items():
    keras.utils.set_random_seed(0)
    networks[name] = build_network()
    rate = keras.optimizers.schedules.CosineDecay(3e-3, EPOCHS * NUM_TRAIN // 32)
    networks[name].compile(
        keras.optimizers.Adam(rate),
        loss=DetectionLoss(class_loss),
        jit_compile=False,  # XLA would compile for longer than this trains
    )
    history = networks[name].fit(
        images, targets, batch_size=32, epochs=EPOCHS, verbose=0
    )
    losses[name] = history.history["loss"]
    print(f"{name}, loss of each epoch:", np.round(losses[name], 2))

# %% [markdown]
# ## Does the score know how good the box is?
# On images that neither has seen, each point of an object: the score of its class against the IoU of its box, and the mean IoU of each eighth of the scores. Right, what
# the first network detects after non-maximum suppression: the number beside a name is, in effect, a guess of the IoU.

# %%
from vfnet_tf.drawing import draw_detections, draw_grid
from vfnet_tf.ops.nms import suppress

figure, axes = plt.subplots(1, 3, figsize=(15, 5), layout="constrained")
is_object = test_targets[..., :K] > 0
correlations, detections = {}, {}
for axis, (name, network) in zip(axes, networks.items(), strict=False):
    outputs = network.predict(test_images, verbose=0)
    test_logits, boxes = decode(ops.convert_to_tensor(outputs))
    scores = ops.sigmoid(test_logits)
    detections[name] = suppress(boxes, scores, 0.6, 0.3, 10)
    iou = np.asarray(elementwise_iou(boxes, test_targets[..., K:]))
    iou, score = iou[is_object.any(axis=-1)], np.asarray(scores)[is_object]
    correlations[name] = np.corrcoef(score, iou)[0, 1]
    eighths = np.array_split(np.argsort(score), 8)
    axis.scatter(score, iou, s=6, alpha=0.4)
    axis.plot(
        [score[rows].mean() for rows in eighths],
        [iou[rows].mean() for rows in eighths],
        "o-",
        color="C1",
        label="mean of an eighth",
    )
    axis.plot([0, 1], [0, 1], color="grey", linewidth=0.8, label="score = IoU")
    axis.set(xlabel="score", title=f"{name} loss: correlation {correlations[name]:.2f}")
axes[0].set_ylabel("IoU of the box")
axes[0].legend()
found = detections["varifocal"]
pictures = [
    draw_detections(
        test_images[i],
        *(np.asarray(found[key][i]) for key in ("boxes", "labels", "scores")),
        CLASS_NAMES,
    )
    for i in range(4)
]
axes[2].imshow(draw_grid(pictures, columns=2))
axes[2].axis("off")
plt.show()

# %% [markdown]
# **Expected:** the loss falls, and score and IoU go together: on unseen objects their correlation passes 0.3, and it is higher than with the focal loss. (That one is not
# zero: what is hard to see is hard to classify *and* to box. The varifocal loss is told.)

# %%
ratio = losses["varifocal"][-1] / losses["varifocal"][0]
print(f"loss, last epoch to first: {ratio:.3f}")
print(f"correlation of score and IoU: {correlations['varifocal']:.3f}")
print(f"the same with the focal loss: {correlations['focal']:.3f}")
assert ratio < 1
assert correlations["varifocal"] > max(0.3, correlations["focal"])
assert all(abs(float(name[4:]) - value) < 0.01 for name, value in lowest.items())
