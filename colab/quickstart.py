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
# # Quickstart: install, train, predict, see
# VarifocalNet in Keras 3. Without a download there are no pretrained weights, so this notebook trains a small detector on generated images
# (some minutes on two CPU cores) and then uses it as you would any other.

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
# ## Images
# Generated shapes, written to disk in COCO format: a json file with the boxes and a folder of JPEGs. `read_coco` checks all of it before
# anything is trained and says what it found.

# %%
import numpy as np
from IPython.display import display
from PIL import Image

from vfnet_tf.data.formats.coco import find_coco_splits, read_coco
from vfnet_tf.data.synthetic import make_synthetic_dataset
from vfnet_tf.drawing import draw_detections, draw_grid

NUM_TRAIN, NUM_VAL, EPOCHS = (16, 4, 2) if SMALL else (200, 30, 8)
IMAGE_SIZE = (64, 96) if SMALL else (128, 160)  # images are resized to fit into it

folder = make_synthetic_dataset(
    num_train=NUM_TRAIN, num_val=NUM_VAL, image_size=(128, 160)
)
splits = find_coco_splits(folder)
train_set = read_coco(*splits["train"])
val_set = read_coco(*splits["val"], class_names=train_set.class_names, training=False)
print(train_set.summary())


def draw_truth(record):
    pixels = np.asarray(Image.open(record.path))
    return draw_detections(
        pixels, record.boxes, record.labels, class_names=train_set.class_names
    )


display(Image.fromarray(draw_grid([draw_truth(r) for r in train_set[:4]], columns=2)))

# %% [markdown]
# ## The detector
# A config describes all of it; `override` changes fields. This one starts from the config of a first run and makes it smaller still.
# `load_config("vfnet_r50_fpn_1x_coco")` would be the paper's. Any detector is a `keras.Model`.

# %%
from vfnet_tf.config import load_config, override, save_config

FILTERS = 32 if SMALL else 64

config = override(
    load_config("vfnet_r50_synthetic"),
    model__backbone__name="resnet18",
    model__neck_filters=FILTERS,
    model__head_filters=FILTERS,
    model__head_convs=1,
    model__num_classes=train_set.num_classes,
    data__image_size=IMAGE_SIZE,
    class_names=train_set.class_names,
    category_ids=train_set.category_ids,
)
tf.config.run_functions_eagerly(SMALL)  # or tracing takes most of the tests' time
keras.utils.set_random_seed(0)
detector = vfnet_tf.build_detector(config)
print(f"{detector.count_params() / 1e6:.1f} M parameters")

# %% [markdown]
# ## Train
# `compile` needs an optimizer only: the losses (Eq. 3 of the [paper](https://arxiv.org/abs/2008.13367)) and their metrics are built in. A batch is a dict of images,
# boxes, labels and sizes. The pipeline shuffles by itself; `epoch_order` gives each epoch an order of its own.
#
# The loss may rise at first: the class scores are to learn the IoUs of the boxes, and those grow.

# %%
from vfnet_tf.data.pipeline import build_pipeline

batches = build_pipeline(
    train_set,
    training=True,
    batch_size=8,
    image_size=config.data.image_size,
    cache_decoded=True,
)
# XLA would compile for longer than this trains.
detector.compile(keras.optimizers.AdamW(1e-3), jit_compile=False)
history = detector.fit(
    batches, epochs=EPOCHS, shuffle=False, callbacks=[batches.epoch_order], verbose=2
)

# %% [markdown]
# ## Keep it
# Weights and config in one folder are a *run*, which every command of `vfnet` takes, and the notebook `export`, too.

# %%
import pathlib

run = pathlib.Path("runs/quickstart")
run.mkdir(parents=True, exist_ok=True)
detector.save_weights(run / "best.weights.h5")
save_config(config, run / "config.json")
print(sorted(path.name for path in run.iterdir()))

# %% [markdown]
# ## Predict and see
# A `Predictor` takes a path, a folder, a glob, a URL, a PIL image, an array, or a list of these, and does all that lies between pixels and
# boxes. What it returns holds `boxes` in pixels of the image, `scores`, `labels` and `names`, and draws itself.

# %%
predictor = vfnet_tf.Predictor.from_checkpoint(run)
predictions = predictor([record.path for record in val_set])
for prediction in predictions[:4]:
    print(prediction)
pictures = []
for record, prediction in zip(val_set[:4], predictions, strict=False):
    pictures += [draw_truth(record), prediction.draw()]  # scores from 0.3
display(Image.fromarray(draw_grid(pictures, columns=4)))

# %% [markdown]
# **Expected:** left the truth, right what was found. The loss of the last epoch is clearly below that of the first (a ratio under 1), and most
# boxes on images that were never trained on are found: AP50, the average precision at IoU 0.5, passes 0.3 (0.80 was seen). (At the tests' small scale there is
# no time to learn: the loss falls, and that is all.)

# %%
from vfnet_tf.evaluation.coco import CocoEvaluator

evaluator = CocoEvaluator(val_set)
for record, found in zip(val_set, predictions, strict=True):
    detections = {
        name: getattr(found, name)[None] for name in ("boxes", "scores", "labels")
    }
    evaluator.update([record.image_id], detections)
ap50 = evaluator.evaluate()["AP50"]
ratio = history.history["loss"][-1] / history.history["loss"][0]
print(f"loss, last epoch to first: {ratio:.3f}")
print(f"AP50: {ap50:.3f}")
assert ratio < 1
assert SMALL or ap50 > 0.3
