"""Draws the pictures of `augmentation.md` with the augmentations themselves.

`python docs/augmentation_figures.py` writes them to `docs/figures/augmentation/`.
"""

import pathlib
import sys

import numpy as np
import tensorflow as tf
from PIL import Image

from vfnet_tf.data.augmentation import (
    CopyPaste,
    GaussianBlur,
    GaussianNoise,
    JpegQuality,
    LargeScaleJitter,
    MinIoUCrop,
    MixUp,
    Mosaic,
    PhotometricDistortion,
    QuarterTurn,
    RandomAffine,
    VerticalFlip,
)
from vfnet_tf.data.synthetic import draw_scene
from vfnet_tf.drawing import draw_detections, draw_grid

SIZE = (132, 176)
SCENES = (21, 5, 8, 13)
#: Settings of the pictures. Where the default is hard to see in a small picture, stronger.
FIGURES = {
    "photometric_distortion": PhotometricDistortion(each=1.0),
    "gaussian_blur": GaussianBlur(sigma=(1.0, 2.0)),
    "gaussian_noise": GaussianNoise(deviation=(10.0, 25.0)),
    "jpeg_quality": JpegQuality(quality=(5, 15)),
    "vertical_flip": VerticalFlip(),
    "quarter_turn": QuarterTurn(turns=(1, 2, 3)),
    "random_affine": RandomAffine(degrees=20.0),
    "large_scale_jitter": LargeScaleJitter(scale=(0.5, 2.0)),
    "min_iou_crop": MinIoUCrop(),
    "copy_paste": CopyPaste(),
    "mosaic": Mosaic(),
    "mix_up": MixUp(),
}
#: Seeds whose draws show what an augmentation does.
SEEDS = {"large_scale_jitter": (0, 4), "quarter_turn": (2, 1), "min_iou_crop": (2, 3)}


def example(seed):
    """A generated image as a resized example, see `data.example`."""
    image, objects = draw_scene(np.random.default_rng(seed), SIZE)
    labels, boxes, _ = zip(*objects, strict=True)
    boxes = np.array(boxes, "float32")
    boxes[:, 2:] += boxes[:, :2]
    return {
        "image": tf.constant(image),
        "boxes": tf.constant(boxes),
        "labels": tf.constant(labels, "int32"),
    }


def draw(example):
    """The image of an example with its boxes, without captions."""
    values = {name: value.numpy() for name, value in example.items()}
    return draw_detections(
        values["image"], values["boxes"], values["labels"], captions=False, min_side=1
    )


def figure(name):
    """The image itself and two draws of an augmentation, beside each other."""
    transform = FIGURES[name]
    own, *others = map(example, SCENES)
    partners = (lambda index: others[index],) if transform.num_partners else ()
    drawn = [
        transform.apply(own, tf.constant([0, seed]), *partners)
        for seed in SEEDS.get(name, (0, 1))
    ]
    return draw_grid([draw(each) for each in (own, *drawn)], 3, cell_size=SIZE, gap=4)


def main(folder=pathlib.Path(__file__).parent / "figures" / "augmentation"):
    """Writes all pictures; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name in FIGURES:
        paths.append(folder / f"{name}.jpg")
        Image.fromarray(figure(name)).save(paths[-1], quality=85)
    return paths


if __name__ == "__main__":
    for path in main(*map(pathlib.Path, sys.argv[1:2])):
        print(path)
