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
# # Export: one file that takes JPEG bytes and gives boxes
# A SavedModel holds all of it: decoding, resizing, normalisation, network, non-maximum suppression. Whoever serves it needs TensorFlow (or TensorFlow
# Serving), not this library. This notebook writes one, calls it, and checks that it says what Python says.

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
# ## A detector
# A run: weights and config in a folder, as `vfnet train` leaves it. Without one, an untrained detector will do: export does not mind
# what a detector has learned. (Its scores are near 0.5 once the bias of -4.6 is gone, with which training begins.)

# %%
import pathlib

from vfnet_tf.config import load_config, override

RUN = pathlib.Path("runs/mine")  # <-- EDIT: your run

if RUN.is_dir():
    predictor = vfnet_tf.Predictor.from_checkpoint(RUN)
else:
    keras.utils.set_random_seed(0)
    config = override(
        load_config("vfnet_r50_synthetic"),
        model__backbone__name="resnet18",
        model__neck_filters=32,
        model__head_filters=32,
        model__head_convs=1,
        model__num_classes=4,
        data__image_size=(128, 160),
        class_names=("disc", "square", "triangle", "star"),
        category_ids=(1, 2, 3, 4),
    )
    predictor = vfnet_tf.Predictor(vfnet_tf.build_detector(config), config)
    predictor.detector.head.class_predictor.conv.bias.assign([0.0] * 4)
detector, config = predictor.detector, predictor.config
# A detector that trained for a minute is sure of little: let weak detections through.
detector.score_threshold = 0.01
print(config.name, "from", RUN if RUN.is_dir() else "its initial weights")

# %% [markdown]
# ## Write
# Sizes, normalisation and class names come from the config, thresholds from the detector; all are recorded in the file. The folder appears whole or
# not at all.

# %%
from vfnet_tf.export.saved_model.exporter import describe_signatures, export_saved_model

target = export_saved_model(detector, "models/vfnet/1", config=config, overwrite=True)
size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
print(f"{target}: {size / 2**20:.1f} MB\n")
print(describe_signatures(target))

# %% [markdown]
# ## Load and call with TensorFlow alone
# From here on nothing of this library is needed. Images come as the bytes of their files, of any sizes; a file that is no image spoils
# nothing for the others, `status` says what was wrong with it.

# %%
import io

import numpy as np
from PIL import Image

from vfnet_tf.data.synthetic import draw_scene  # for something to look at


def jpeg(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "jpeg", quality=92)
    return file.getvalue()


pixels, _ = draw_scene(np.random.default_rng(5), (128, 160))
image_bytes = jpeg(pixels)

served = tf.saved_model.load(str(target))
answer = served.signatures["serving_default"](
    image_bytes=tf.constant([image_bytes, b"not an image"])
)
for name, value in answer.items():
    print(f"{name:18} {value.dtype.name:8} {value.shape}")
print(
    "detections", answer["num_detections"].numpy(), "status", answer["status"].numpy()
)

# %% [markdown]
# ## The same as in Python
# The graph that serves is the graph that was evaluated: `detector.detect`, with the same steps before it. Decoding is one of them: JPEG decoders differ by a step of
# brightness here and there, which is enough to move a box, so `read_file` decodes as the graph does.

# %%
path = pathlib.Path("picture.jpg")
path.write_bytes(image_bytes)
decoded = predictor.read_file(str(path))
network_input = {
    name: value[None] for name, value in predictor.prepare(decoded).items()
}
found = detector.detect(**network_input)

count = int(found["num_detections"][0])
box_difference = np.abs(found["boxes"][0] - answer["detection_boxes"][0]).max()
score_difference = np.abs(found["scores"][0] - answer["detection_scores"][0]).max()
is_same = (
    count == answer["num_detections"][0]
    and np.array_equal(found["labels"][0], answer["detection_classes"][0])
    and box_difference < 1e-3  # pixels
    and score_difference < 1e-5
)
print(
    f"{count} detections; boxes differ by {box_difference} pixels, scores by {score_difference}"
)

# %% [markdown]
# ## See
# The five best of what the SavedModel answered.

# %%
from IPython.display import display

from vfnet_tf.drawing import draw_detections

best = {
    name: value[0, :5].numpy() for name, value in answer.items() if value.shape.rank > 1
}
picture = draw_detections(
    pixels,
    best["detection_boxes"],
    best["detection_classes"],
    best["detection_scores"],
    config.class_names,
)
display(Image.fromarray(picture))

# %% [markdown]
# ## Over the wire
# `tensorflow_model_server --model_base_path=$PWD/models/vfnet --model_name=vfnet --rest_api_port=8501` serves the folder above (`1` is the version). A request is
# JSON, and bytes are `{"b64": ...}`; the server decodes them itself. The pixels as JSON numbers would be many times as long. Here the server's
# part is played by three lines; `vfnet_tf.export.serving.client.ServingClient` is a client for the real one.

# %%
import base64
import json

request = json.dumps(
    {
        "signature_name": "serving_default",
        "instances": [{"b64": base64.b64encode(image_bytes).decode("ascii")}],
    }
)
print("POST http://HOST:8501/v1/models/vfnet:predict")
print(request[:100], "...")
print(f"{len(request)} characters; as pixels {len(json.dumps(pixels.tolist()))}")

# What the server does with it:
rows = [base64.b64decode(row["b64"]) for row in json.loads(request)["instances"]]
outputs = served.signatures["serving_default"](image_bytes=tf.constant(rows))
response = {
    "predictions": [
        {name: value[i].numpy().tolist() for name, value in outputs.items()}
        for i in range(len(rows))
    ]
}

first = response["predictions"][0]
label = first["detection_classes"][0]
print(
    config.class_names[label], first["detection_scores"][0], first["detection_boxes"][0]
)

# %% [markdown]
# **Expected:** the SavedModel finds what `detector.detect` finds, at least one object, also when asked in the server's format; the file that is no image
# gets a status other than 0 and no detections.

# %%
print(f"detections: {count}")
print(f"box difference in pixels: {box_difference:.2e}")
assert is_same
assert count > 0
assert np.array_equal(first["detection_scores"], answer["detection_scores"][0])
assert answer["status"].numpy()[0] == 0 != answer["status"].numpy()[1]
assert answer["num_detections"].numpy()[1] == 0
