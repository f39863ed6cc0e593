"""Compares a `.tflite` file with the detector in Keras."""

import keras
import numpy as np

from vfnet_tf.inference.litert import LiteRTModel

#: `quantize` -> largest differences to Keras: of boxes, relative to the image's longer side
#: or to the coordinate if that is larger, and of scores.
TOLERANCES = {
    "none": (1e-4, 1e-4),
    "float16": (0.002, 0.005),
    "dynamic_int8": (0.05, 0.1),
}

#: Number of points, those with the best scores, at which a quantised file is compared.
NUM_BEST = 100


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
        `score_difference`, see `TOLERANCES`.

    Raises:
        ValueError: if they are above `TOLERANCES`, or not finite.
    """
    model = LiteRTModel(path, num_threads)
    images = np.asarray(images, "float32")
    longer_side = max(model.metadata["image_size"])
    quantize = model.metadata["quantize"]
    differences = []
    for image in images:
        inputs = keras.ops.convert_to_tensor(image[None])
        ranked = detector.in_graph(detector.rank_all, inputs)
        expected = [keras.ops.convert_to_numpy(value)[0] for value in ranked]
        found = [value[0] for value in model(image[None])]
        if quantize != "none":
            best = np.argsort(-expected[1].max(axis=-1), kind="stable")[:NUM_BEST]
            expected, found = ([value[best] for value in v] for v in (expected, found))
        # Boxes are not clipped, and float32 is coarser for large coordinates.
        scale = np.maximum(np.abs(expected[0]), longer_side)
        differences.append(
            [
                np.max(np.abs(found[0] - expected[0]) / scale),
                np.max(np.abs(found[1] - expected[1])),
            ]
        )
    # Not `max`, which loses NaN.
    boxes, scores = np.max(differences, axis=0).tolist()
    box_tolerance, score_tolerance = TOLERANCES[quantize]
    if not (boxes <= box_tolerance and scores <= score_tolerance):
        raise ValueError(
            f"A LiteRT file with quantize={quantize!r} must give the detector's boxes to "
            f"{box_tolerance:g} of the longer side and its scores to "
            f"{score_tolerance:g}. Received: {path} with differences of {boxes:.3g} and "
            f"{scores:.3g}"
        )
    return {
        "num_images": len(images),
        "box_difference": boxes,
        "score_difference": scores,
    }
