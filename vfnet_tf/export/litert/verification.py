"""Compares a `.tflite` file with the detector in Keras."""

import keras
import numpy as np

from vfnet_tf.export import best_points
from vfnet_tf.inference.litert import LiteRTModel


def verify_litert(path, detector, images, num_threads=1):
    """Compares a file in LiteRT with its detector.

    A float32 file must have boxes and scores of all points to 1e-4. Quantised files keep
    11 bits (float16) or 8 bits (int8, also of activations) of each weight, and the
    errors add up over some fifty layers; their bounds are a few times the differences
    of trained weights (docs/deployment/litert.md). They hold for the 100 best points of
    an image: boxes far from any object are arbitrary and without effect.

    Args:
        path: of the `.tflite` file.
        detector: the exported detector.
        images: float32 `[B, H, W, 3]`, normalised, of the file's size; best of pictures
            with objects, see `LiteRTPredictor.prepare`.
        num_threads: int.

    Returns:
        dict of `num_images`, and the largest differences `box_difference` and
        `score_difference`, see `best_points.TOLERANCES`.

    Raises:
        ValueError: if they are above the tolerances, or not finite.
    """
    model = LiteRTModel(path, num_threads)
    images = np.asarray(images, "float32")
    longer_side = max(model.metadata["image_size"])
    quantize = model.metadata["quantize"]
    count = None if quantize == "none" else best_points.NUM_BEST
    differences = []
    for image in images:
        inputs = keras.ops.convert_to_tensor(image[None])
        ranked = detector.in_graph(detector.rank_all, inputs)
        expected = [keras.ops.convert_to_numpy(value)[0] for value in ranked]
        found = [value[0] for value in model(image[None])]
        differences.append(
            best_points.differences(*expected, *found, longer_side, count)
        )
    return best_points.check(f"The LiteRT file {path}", quantize, differences)
