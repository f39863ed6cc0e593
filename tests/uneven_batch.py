"""A batch whose boxes are spread unevenly over images and replicas."""

import numpy as np

from tests.golden import make_weights


def global_batch():
    """Four images: three boxes, one, and none in the other two."""
    boxes, labels = np.zeros((4, 3, 4), "float32"), np.full((4, 3), -1, "int32")
    boxes[0] = [[4, 6, 40, 50], [50, 10, 90, 60], [0, 0, 95, 63]]
    boxes[1, 0] = [20, 8, 60, 40]
    labels[0], labels[1, 0] = [0, 2, 1], 1
    return {
        "images": make_weights.make_image(5, 4, 64, 96),
        "boxes": boxes,
        "labels": labels,
        "image_size": np.array([[64, 96]] * 4, "float32"),
    }
