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
# # The first hour
# [The page of that name](../docs/tutorials/first_hour.md) as a notebook: detect in a photograph with a published model, fine-tune it on your own
# images, look at the result, export it, call it. `vfnet` is a command; lines with `!` work in a terminal, too, without the `!`.

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
# ## Detect in a photograph
# The first call downloads VFNet-R50 with its COCO weights (132 MB) and keeps them. It knows the 80 classes of COCO. Upload a photograph and name it
# here; without one, a drawing has to do, in which that model finds little.
#
# The addresses of the weights were not tried: there was no network where this was written.

# %%
import pathlib

import numpy as np
from IPython.display import display
from PIL import Image

from vfnet_tf.data.synthetic import CLASS_NAMES, draw_scene

MODEL = "vfnet_r50_fpn_mstrain_2x_coco"  # `vfnet configs` lists the others
PHOTO = pathlib.Path("street.jpg")  # <-- EDIT: your photograph

# The command is beside this notebook's Python, also where no environment is active.
scripts = str(pathlib.Path(sys.executable).parent)
os.environ["PATH"] = os.pathsep.join([scripts, os.environ["PATH"]])
rng = np.random.default_rng(0)
if not PHOTO.is_file():
    Image.fromarray(draw_scene(rng, (480, 640))[0]).save(PHOTO)
size = "--image-size 64 96" if SMALL else ""
# !vfnet predict {PHOTO} --checkpoint {MODEL} {size}
display(Image.open(pathlib.Path("predictions", PHOTO.name)))

# %% [markdown]
# ## Images and boxes of your own
# A folder in COCO, Pascal VOC, YOLO or CSV format ([all formats](../docs/data.md)). A CSV has a line for each box. This one is written for
# generated images with discs, squares, triangles and stars; put yours in their place.

# %%
import csv

NUM_IMAGES = {"train": 8, "val": 2} if SMALL else {"train": 40, "val": 10}

for split, count in NUM_IMAGES.items():
    folder = pathlib.Path("mydata", split)
    folder.mkdir(parents=True, exist_ok=True)
    with open(f"mydata/{split}.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "label", "x1", "y1", "x2", "y2"])
        for number in range(count):
            image, objects = draw_scene(rng, (160, 192))
            Image.fromarray(image).save(folder / f"{number}.png")
            for label, (x, y, width, height), _ in objects:
                corners = [x, y, x + width, y + height]
                table.writerow([f"{number}.png", CLASS_NAMES[label], *corners])
# !vfnet scan mydata

# %% [markdown]
# ## Fine-tune
# All but the classifier starts from the published weights. Each choice of size, length and schedule is a line with its reason and the option that
# changes it. `--time 1h` would end within an hour.

# %%
less = "--epochs 1 --image-size 64 96 --batch-size 4" if SMALL else ""
# !vfnet train --data mydata --config {MODEL} --weights coco --out runs/mine --no-export {less}
display(Image.open("runs/mine/samples.png"))

# %% [markdown]
# ## Look at the result
# The report is one page: open `report.html`. A score estimates the IoU of its box: 0.6 is a good one.

# %%
# !vfnet evaluate --data mydata --checkpoint runs/mine --report report.html
# !vfnet predict mydata/val --checkpoint runs/mine --out found
display(Image.open("found/0.png"))

# %% [markdown]
# ## Export
# A SavedModel takes JPEG or PNG bytes and gives final boxes. For comparison below, the run itself gives all detections of one image.

# %%
# !vfnet export runs/mine --out served/1
# !vfnet predict mydata/val/0.png --checkpoint runs/mine --out all --score-threshold 0 --no-pictures

# %% [markdown]
# ## Serve and call
# `vfnet demo runs/mine` serves a page on your own computer, and TensorFlow Serving takes `served` as it is. Here TensorFlow alone calls the SavedModel,
# in a process of its own.

# %%
code = """
import json, pathlib
import tensorflow as tf

model = tf.saved_model.load("served/1").signatures["image_bytes_with_thresholds"]
found = model(
    image_bytes=tf.constant([pathlib.Path("mydata/val/0.png").read_bytes()]),
    score_threshold=tf.constant([0.0]),
    nms_iou_threshold=tf.constant([-1.0]),
    max_detections=tf.constant([-1]),
)
scores = found["detection_scores"][0, : int(found["num_detections"][0])]
pathlib.Path("scores.json").write_text(json.dumps(scores.numpy().tolist()))
"""
subprocess.run([sys.executable, "-c", code], check=True)

# %% [markdown]
# **Expected:** the detector has an AP, and the SavedModel finds in one image what the run finds, with the same scores. What AP comes out with the
# real COCO weights was not tried.

# %%
import json

metrics = json.loads(pathlib.Path("runs/mine/evaluation_val/metrics.json").read_text())
served = json.loads(pathlib.Path("scores.json").read_text())
found = json.loads(pathlib.Path("all/detections.json").read_text())["annotations"]
difference = np.abs(np.subtract(served, [row["score"] for row in found])).max()
print(f"AP50: {metrics['AP50']:.3f}")
print(f"detections: {len(served)}")
print(f"score difference: {difference:.6f}")
assert difference < 1e-3
