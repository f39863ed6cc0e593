"""A Python library's augmentation in the input pipeline, by `tf.numpy_function`.

Albumentations and libraries like it take numpy arrays and give numpy arrays:
`augment(image=..., bboxes=..., class_labels=...)`. `wrap` makes a transform of
`build_pipeline(transforms=[...])` of them. The library gets the seed of the image's
place in the epoch, so a resumed training draws the same.

    from albumentations import BboxParams, Compose, RandomFog

    def make(seed):
        boxes = BboxParams("pascal_voc", label_fields=["class_labels"])
        return Compose([RandomFog()], bbox_params=boxes, seed=seed)

    batches = build_pipeline(
        dataset, batch_size=4, training=True, transforms=[wrap(make)]
    )

Without that library this file has one of its own, `Shift`:

    python examples/albumentations_transform.py

Python runs in one thread at a time: such a transform is slower than one in TensorFlow,
and the threads of the pipeline wait for each other.
"""

import argparse

import numpy as np
import tensorflow as tf

from vfnet_tf.data.formats.coco import read_coco
from vfnet_tf.data.formats.readers import find_splits
from vfnet_tf.data.pipeline import build_pipeline
from vfnet_tf.data.synthetic import make_synthetic_dataset


def wrap(make):
    """Makes a transform of a library's augmentation.

    Args:
        make: function of an int seed to a callable that takes `image`, uint8
            `[h, w, 3]`, `bboxes`, a list of `(x1, y1, x2, y2)` in pixels, and
            `class_labels`, and gives a dict of the same keys. It may change the number
            of boxes, but must not make the image larger.

    Returns:
        Function of `(example, rng)` to an example.
    """

    def augment(image, boxes, labels, seed):
        given = {"bboxes": boxes.tolist(), "class_labels": labels.tolist()}
        result = make(int(seed))(image=image, **given)
        return (
            np.asarray(result["image"], "uint8"),
            np.asarray(result["bboxes"], "float32").reshape(-1, 4),
            np.asarray(result["class_labels"], "int32").reshape(-1),
        )

    def transform(example, rng):
        seed = tf.random.stateless_uniform([], rng, 0, 2**31 - 1, "int32")
        image, boxes, labels = tf.numpy_function(
            augment,
            [example["image"], example["boxes"], example["labels"], seed],
            ["uint8", "float32", "int32"],
        )
        # TensorFlow cannot see the shapes of what Python gives.
        return {
            **example,
            "image": tf.ensure_shape(image, [None, None, 3]),
            "boxes": tf.ensure_shape(boxes, [None, 4]),
            "labels": tf.ensure_shape(labels, [None]),
        }

    return transform


class Shift:
    """Moves an image to the right by up to a quarter; called as Albumentations is."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)

    def __call__(self, image, bboxes, class_labels):
        width = image.shape[1]
        pixels = int(self.rng.integers(width // 4))
        moved = np.zeros_like(image)
        moved[:, pixels:] = image[:, : width - pixels]
        kept, labels = [], []
        for (x1, y1, x2, y2), label in zip(bboxes, class_labels, strict=True):
            if x1 + pixels < width - 1:
                kept.append((x1 + pixels, y1, min(x2 + pixels, width), y2))
                labels.append(label)
        return {"image": moved, "bboxes": kept, "class_labels": labels}


def main():
    """Reads a batch of generated images, and prints where its boxes are."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=2)
    options = parser.parse_args()
    dataset = read_coco(*find_splits(make_synthetic_dataset())["train"])
    batches = build_pipeline(
        dataset,
        batch_size=options.batch_size,
        training=True,
        image_size=(256, 320),
        transforms=[wrap(Shift)],
    )
    batch = next(batches.as_numpy_iterator())
    for image_id, boxes, labels in zip(
        batch["image_id"], batch["boxes"], batch["labels"], strict=True
    ):
        print(f"image {image_id}: {boxes[labels >= 0].round().tolist()}")


if __name__ == "__main__":
    main()
