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
# # Fine-tune on your own data with `model.fit`
# Images with boxes in COCO format, a pretrained `keras.applications` network as the backbone, and Keras as you know it: `compile`, `fit`, callbacks, `.keras`.

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
# ## Your data
# A folder with `annotations/instances_train.json`, `annotations/instances_val.json` and the images in `train/` and `val/` (or in `images/`). In Colab: upload it, or mount
# your Drive. While `DATA` is None, generated images stand in. Reading checks every image and every box, and drops, counts and names what is wrong.

# %%
import pathlib

import numpy as np
from IPython.display import display
from PIL import Image

from vfnet_tf.data.formats.coco import find_coco_splits, read_coco
from vfnet_tf.data.synthetic import make_synthetic_dataset
from vfnet_tf.drawing import add_title, draw_detections, draw_grid

DATA = None  # <-- EDIT: your folder
NUM_TRAIN, NUM_VAL, EPOCHS = (8, 4, 2) if SMALL else (120, 30, 8)
IMAGE_SIZE = (64, 96) if SMALL else (128, 160)  # images are resized to fit into it

folder = DATA or make_synthetic_dataset(
    num_train=NUM_TRAIN, num_val=NUM_VAL, image_size=(128, 160), seed=1
)
splits = find_coco_splits(folder)
train_set = read_coco(*splits["train"])
# The classes of the training set, in its order; images without objects are kept.
val_set = read_coco(*splits["val"], class_names=train_set.class_names, training=False)
print(train_set.summary())
print(val_set.summary())

# %% [markdown]
# ## Batches
# The pipeline resizes, flips, normalises and pads. **The normalisation belongs to the backbone's weights**: Keras's ResNet-50 expects blue-green-red minus the
# mean. A look at a batch tells whether the boxes sit where they should; do it with your data, too.

# %%
from vfnet_tf.data.normalization import CAFFE_BGR
from vfnet_tf.data.pipeline import build_pipeline

settings = {"batch_size": 4, "image_size": IMAGE_SIZE, "normalization": CAFFE_BGR}
train_batches = build_pipeline(train_set, training=True, cache_decoded=True, **settings)
val_batches = build_pipeline(val_set, training=False, cache_decoded=True, **settings)

batch = next(iter(train_batches))
print({name: (value.dtype.name, tuple(value.shape)) for name, value in batch.items()})
pictures = [
    draw_detections(
        (image + CAFFE_BGR.mean)[..., ::-1],
        boxes,
        labels,
        class_names=train_set.class_names,
    )
    for image, boxes, labels in zip(
        *(batch[name].numpy() for name in ("images", "boxes", "labels")), strict=True
    )
]
display(Image.fromarray(draw_grid(pictures, columns=2)))

# %% [markdown]
# ## The detector
# `KerasBackbone` makes any functional Keras model a backbone: name the layers that end at strides 8, 16 and 32. It freezes what comes before
# `frozen_until`, and keeps the statistics of the batch norms: batches of detection are too small to estimate them. A stage without pretrained weights
# needs its norms trained; `trainable_norms` gives the start of their names.

# %%
from vfnet_tf.builder import load_layer_weights

# <-- EDIT: an .npz with arrays named `layer/variable`.
WEIGHTS = pathlib.Path(vfnet_tf.__file__).parents[2] / "shared" / "weights"
WEIGHTS = WEIGHTS / "resnet50_imagenet_keras_conv1_to_conv4.npz"

tf.config.run_functions_eagerly(SMALL)  # or tracing takes most of the tests' time
keras.utils.set_random_seed(0)
application = keras.applications.ResNet50(
    # Colab may download. Elsewhere a file, or a start from scratch.
    weights="imagenet" if IN_COLAB else None,
    include_top=False,
    input_shape=(None, None, 3),
)
if IN_COLAB:
    trainable_norms = None
elif WEIGHTS.is_file():
    load_layer_weights(application, WEIGHTS)
    trainable_norms = "conv5"  # this file ends before the last stage
else:
    trainable_norms = ""  # all
is_pretrained = trainable_norms != ""
print("pretrained:", is_pretrained)

backbone = vfnet_tf.KerasBackbone(
    application,
    layer_names=("conv3_block4_out", "conv4_block6_out", "conv5_block3_out"),
    frozen_until=("conv4_block6_out" if SMALL else "conv2_block3_out")
    if is_pretrained
    else None,
    trainable_norms=trainable_norms,
)
filters = 32 if SMALL else 64
detector = vfnet_tf.VFNet(
    backbone=backbone,
    neck=vfnet_tf.FPN(filters=filters),
    head=vfnet_tf.VFNetHead(train_set.num_classes, filters=filters, num_convs=1),
)
trained = sum(np.prod(weight.shape) for weight in detector.trainable_weights)
print(
    f"{trained / 1e6:.1f} of {detector.count_params() / 1e6:.1f} M weights are trained"
)

# %% [markdown]
# ## Before
# What to expect of it now: nothing. Scores start at 0.01, and only what passes 0.05 counts as detected.

# %%
from vfnet_tf.config import Config, DataConfig

config = Config(
    name="mine",
    data=DataConfig(image_size=IMAGE_SIZE, normalization=CAFFE_BGR),
    class_names=train_set.class_names,
    category_ids=train_set.category_ids,
)
predictor = vfnet_tf.Predictor(detector, config)
paths = [record.path for record in val_set[:3]]
before = predictor(paths)
for found in before:
    print(found)

# %% [markdown]
# ## Fit
# Callbacks read what those before them put into `logs`. `CocoEvaluation` comes first: it adds `val_AP`, `val_AP50`, ..., so Keras's own `EarlyStopping(monitor="val_AP", mode="max")`
# or `ModelCheckpoint` can go by them. `ResumableCheckpoint` keeps weights, optimizer and place in the run.
#
# Half of the epochs first. Let us say that the runtime is then taken away.

# %%
from vfnet_tf.evaluation.coco import CocoEvaluator
from vfnet_tf.training.callbacks import HistoryCsv, ResumableCheckpoint
from vfnet_tf.training.coco_evaluation import CocoEvaluation

run = pathlib.Path("runs/fine_tune")
checkpoint = ResumableCheckpoint(run, monitor="val_AP")
callbacks = [
    train_batches.epoch_order,
    CocoEvaluation(val_batches, CocoEvaluator(val_set)),
    HistoryCsv(run / "history.csv"),
    checkpoint,
]
warm_up = len(train_batches)  # steps, one epoch
rate = keras.optimizers.schedules.CosineDecay(
    1e-4, (EPOCHS - 1) * warm_up, warmup_target=1e-3, warmup_steps=warm_up
)
detector.compile(keras.optimizers.AdamW(rate, weight_decay=0.01), jit_compile=False)


def train(epochs):
    first_epoch, _ = checkpoint.restore(detector)
    print(f"starting after epoch {first_epoch}")
    return detector.fit(
        train_batches,
        initial_epoch=first_epoch,
        epochs=epochs,
        shuffle=False,  # the pipeline does
        callbacks=callbacks,
        verbose=2,
    )


first_half = train(EPOCHS // 2)

# %% [markdown]
# Run all cells again, or call it again: it goes on where it stopped, the learning rate and the order of the images included.

# %%
history = train(EPOCHS)

# %% [markdown]
# ## Curves
# `history.csv` has a line for each epoch of both parts.

# %%
from vfnet_tf.reports.curves import plot_history

plot_history(run / "history.csv", run / "history.png")
display(Image.open(run / "history.png"))

# %% [markdown]
# ## After
# The weights of the best epoch by `val_AP`, on images that it has not seen: the truth, what it found before the training and what it finds now, from a score of 0.3 on.

# %%
if checkpoint.best_path.exists():
    print("best: epoch {}, val_AP {:.3f}".format(*checkpoint.restore_best(detector)))
after = predictor(paths)
pictures = []
for record, *found in zip(val_set, before, after, strict=False):
    names = train_set.class_names
    truth = draw_detections(
        found[0].image, record.boxes, record.labels, class_names=names
    )
    pictures.append(add_title(truth, "truth"))
    for when, prediction in zip(("before", "after"), found, strict=True):
        pictures.append(add_title(prediction.draw(score_threshold=0.3), when))
display(Image.fromarray(draw_grid(pictures, columns=3)))

# %% [markdown]
# ## Save and load
# A `.keras` file holds architecture and weights; Keras loads it, in another program after `import keras` and `import vfnet_tf`, which
# registers the classes.

# %%
detector.save(run / "detector.keras")
loaded = keras.models.load_model(run / "detector.keras", compile=False)
images = batch["images"][:1]
saved_difference = np.abs(
    detector(images)["class_logits"] - loaded(images)["class_logits"]
).max()
print("largest difference of the logits of saved and loaded:", saved_difference)

# %% [markdown]
# **Expected:** every epoch has a line and a `val_AP`, the second `fit` went on after the first, the loss has fallen, and the loaded detector is the saved one.
# With pretrained weights, AP50 on unseen images passes 0.2. (Not at the tests' small scale: two epochs of two steps.)

# %%
from vfnet_tf.training.callbacks import read_history

rows = read_history(run / "history.csv")
ap50 = max(row["val_AP50"] for row in rows)
print(f"epochs: {len(rows)}")
print(f"loss, last epoch to first: {rows[-1]['loss'] / rows[0]['loss']:.3f}")
print(f"best AP50: {ap50:.3f}")
assert [row["epoch"] for row in rows] == list(range(1, EPOCHS + 1))
assert "val_AP" in rows[0]
assert set(history.epoch) <= set(range(EPOCHS // 2, EPOCHS))  # none of the first half
assert rows[-1]["loss"] < rows[0]["loss"]
assert saved_difference < 1e-4
assert SMALL or not is_pretrained or ap50 > 0.2
