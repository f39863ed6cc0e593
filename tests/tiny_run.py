"""A run directory that takes seconds to make, and a COCO-format set of odd images."""

import dataclasses
import functools
import json

import keras
import numpy as np
from PIL import Image

from vfnet_tf.builder import build_detector
from vfnet_tf.config import BackboneConfig, Config, DataConfig, ModelConfig, save_config

CLASS_NAMES = ("disc", "square", "star")
CATEGORY_IDS = (3, 5, 9)


def tiny_config(**changes):
    """VFNet-ResNet-18 with 64 filters and 3 classes, images within 128x160."""
    values = {
        "name": "tiny",
        "model": ModelConfig(
            backbone=BackboneConfig("resnet18"),
            num_classes=3,
            neck_filters=64,
            head_filters=64,
            head_convs=1,
        ),
        "data": DataConfig(image_size=(128, 160)),
        "class_names": CLASS_NAMES,
        "category_ids": CATEGORY_IDS,
    }
    return Config(**{**values, **changes})


def tiny_detector(config):
    """A detector with the same random weights each time and scores from 0.1 to 0.9."""
    keras.utils.set_random_seed(3)
    detector = build_detector(config)
    predictor = detector.head.class_predictor
    rng = np.random.default_rng(5)
    for variable in predictor.weights:
        values = rng.normal(0.0, 0.3, variable.shape)
        variable.assign(values if variable.name == "kernel" else values - 1.5)
    return detector


@functools.cache
def shared_detector():
    """One `tiny_detector` for all tests, as its graphs take seconds to trace."""
    return tiny_detector(tiny_config())


class LineDetector(keras.Model):
    """Learns the number of boxes from an image's mean pixel; detects one box."""

    backbone = None

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(1, kernel_initializer="ones")
        self.dense.build((None, 3))
        self.built = True

    def call(self, inputs, training=None):
        return self.dense(keras.ops.mean(inputs["images"], axis=(1, 2)))

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, **kwargs):
        numbers = keras.ops.sum(keras.ops.cast(x["labels"] >= 0, "float32"), axis=1)
        errors = keras.ops.cast(y_pred[:, 0], "float32") - numbers
        return keras.ops.mean(keras.ops.square(errors))

    def detect(self, images, image_size, scale):
        count = keras.ops.shape(images)[0]
        return {
            "boxes": keras.ops.zeros((count, 1, 4)) + image_size[0, 0],
            "scores": keras.ops.zeros((count, 1)) + 0.5,
            "labels": keras.ops.zeros((count, 1), "int32"),
            "num_detections": keras.ops.ones((count,), "int32"),
        }


class PlainDetector:
    """Finds the whole image, with its mean as the score, without a network."""

    num_classes = 3
    score_threshold = 0.05

    def __init__(self):
        self.calls = []

    def detect(self, images, image_size, scale, **overrides):
        self.calls.append((images.shape, overrides))
        height, width = (image_size / scale).T
        boxes = np.stack([0 * width, 0 * height, width, height], axis=-1)[:, None]
        scores = images.mean(axis=(1, 2, 3))[:, None] / 10 + 0.5
        found = {
            "boxes": np.concatenate([boxes, 0 * boxes], axis=1),
            "scores": np.concatenate([scores, 0 * scores], axis=1),
            "labels": np.tile(np.array([[2, -1]], "int32"), (len(images), 1)),
            "num_detections": np.ones(len(images), "int32"),
        }
        return {k: keras.ops.convert_to_tensor(value) for k, value in found.items()}


def quick_config():
    """RetinaNet-ResNet-18 with 16 filters, the detector that is traced soonest."""
    model = dataclasses.replace(
        tiny_config().model, detector="retinanet", neck_filters=16, head_filters=16
    )
    return tiny_config(model=model)


def write_run(directory, config=None):
    """Writes `config.json` and `best.weights.h5` of a `tiny_detector`."""
    config = config or tiny_config()
    directory.mkdir(parents=True)
    tiny_detector(config).save_weights(directory / "best.weights.h5")
    save_config(config, directory / "config.json")
    return directory


def picture(seed, height, width):
    """uint8 `[height, width, 3]`: smooth blobs and a few hard rectangles."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (6, 8, 3), dtype="uint8")
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    pixels = np.array(image)
    for _ in range(3):
        y, x = rng.integers(height // 2), rng.integers(width // 2)
        pixels[y : y + height // 3, x : x + width // 4] = rng.integers(0, 256, 3)
    return pixels


def write_images(directory):
    """Writes seven files of different sizes, modes, formats and orientations.

    Returns:
        dict file name -> (height, width) upright.
    """
    directory.mkdir(parents=True, exist_ok=True)
    sizes = {
        "a.jpg": (120, 150),
        "b.jpg": (200, 140),
        "c.png": (64, 80),
        "d.png": (128, 160),
        "e.bmp": (100, 130),
        "f.jpg": (150, 120),
        "g.png": (70, 100),
    }
    for seed, (name, (height, width)) in enumerate(sizes.items()):
        image = Image.fromarray(picture(seed, height, width))
        options = {}
        if name == "b.jpg":
            image = image.convert("L")
        if name == "c.png":  # 16 bits
            image = Image.fromarray(
                np.asarray(image.convert("L")).astype("uint16") * 257
            )
        if name == "d.png":
            image = image.convert("RGBA")
        if name == "f.jpg":
            # Stored turned; the orientation 6 turns it clockwise.
            image = image.transpose(Image.Transpose.ROTATE_90)
            exif = Image.Exif()
            exif[0x0112] = 6
            options["exif"] = exif
        image.save(directory / name, **options)
    return sizes


def write_coco(root, split="val"):
    """`write_images` as a COCO-format set with one box of each class per image."""
    sizes = write_images(root / split)
    images, annotations = [], []
    for number, (name, (height, width)) in enumerate(sizes.items()):
        image_id = 10 + number
        images.append(
            {"id": image_id, "file_name": name, "height": height, "width": width}
        )
        for place, category_id in enumerate(CATEGORY_IDS):
            box = [5 + 10 * place, 8, width // 2, height // 2]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": category_id,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                }
            )
    categories = [
        {"id": category_id, "name": name}
        for category_id, name in zip(CATEGORY_IDS, CLASS_NAMES, strict=True)
    ]
    path = root / "annotations" / f"instances_{split}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content))
    return root
