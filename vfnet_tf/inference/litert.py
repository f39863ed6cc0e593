"""Detections from a `.tflite` file by `export_litert`, run by `ai-edge-litert`."""

import json
import zipfile

import numpy as np

from vfnet_tf.data import numpy_images
from vfnet_tf.inference import numpy_detection
from vfnet_tf.inference.runtime import RuntimePredictor
from vfnet_tf.ops.nms_settings import DETECTION_SETTINGS

#: Name of the metadata in a `.tflite` file, which is a zip archive as well.
METADATA_FILE = "metadata.json"


class LiteRTModel:
    """Boxes and scores of normalised images, by LiteRT.

    `detect` adds selection and NMS to them, so that the model can take the place of a
    `DenseDetector` in `LiteRTPredictor` and in `vfnet evaluate`.

    Args:
        path: of the `.tflite` file.
        num_threads: int, CPU threads.

    Attributes:
        metadata: dict, see `export_litert`.
        num_classes: int.
        score_threshold: float.

    Raises:
        ImportError: if `ai-edge-litert` is not installed.
        ValueError: if `export_litert` did not write the file.
    """

    def __init__(self, path, num_threads=1):
        self.metadata = read_metadata(path)
        self.num_classes = self.metadata["num_classes"]
        self.score_threshold = self.metadata["score_threshold"]
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError as error:
            raise ImportError(
                "To run .tflite files, install LiteRT: pip install 'vfnet_tf[litert]'"
            ) from error
        self._interpreter = Interpreter(str(path), num_threads=num_threads)
        self._raw = self._interpreter.get_signature_runner("raw")

    def __call__(self, images):
        """Runs the network image by image.

        Args:
            images: float32 `[B, H, W, 3]`, normalised, H and W those of the file.

        Returns:
            `boxes` float32 `[B, P, 4]` in pixels of the input, not clipped, and
            `scores` float32 `[B, P, K]`.

        Raises:
            ValueError: for images of another size.
        """
        images = np.asarray(images, "float32")
        shape = (*self.metadata["image_size"], 3)
        if images.ndim != 4 or images.shape[1:] != shape:
            raise ValueError(
                f"`images` must be a batch of {shape}, the size of the file. "
                f"Received: images of shape {images.shape}"
            )
        found = [self._raw(images=image[None]) for image in images]
        return tuple(
            np.concatenate([each[name] for each in found])
            for name in ("boxes", "scores")
        )

    def detect(self, images, image_size, scale, **overrides):
        """Detections after NMS. See `DenseDetector.detect`.

        The score threshold applies to the scores in the file. With FCOS and ATSS these
        include the centerness; the detector applies the threshold before it multiplies
        by the centerness, and so keeps a few more weak boxes.
        """
        boxes, scores = self(images)
        settings = {
            name: self.metadata[name]
            for name in (*DETECTION_SETTINGS, "level_sizes", "clip_margin")
        }
        settings.update(overrides)
        return numpy_detection.detect(boxes, scores, None, image_size, scale, settings)


class LiteRTPredictor(RuntimePredictor):
    """A `Predictor` on a `.tflite` file, run by LiteRT image by image.

    Args:
        path: of the file.
        num_threads: int, CPU threads.
    """

    def __init__(self, path, num_threads=1):
        super().__init__(LiteRTModel(path, num_threads))

    def prepare(self, pixels):
        """One image as an input of the file's size.

        With `keep_ratio` the image becomes as large as fits into the input, in portrait
        as in landscape format; otherwise it is stretched.

        Args:
            pixels: uint8 `[h, w, 3]` RGB.

        Returns:
            dict of float32 arrays, see `Predictor.prepare`.
        """
        data = self.config.data
        limit = data.image_size
        size = fitted_size(pixels.shape[:2], limit) if data.keep_ratio else limit
        return numpy_images.prepare(
            pixels, size, False, data.normalization, canvas=limit
        )


def fitted_size(size, limit):
    """The largest size within `limit` that keeps the ratio of the sides.

    Args:
        size, limit: (height, width) in pixels.

    Returns:
        (height, width) as ints >= 1, rounded like those of `transforms.keep_ratio_size`.
    """
    factor = min(limit[0] / size[0], limit[1] / size[1])
    return tuple(max(int(side * factor + 0.5), 1) for side in size)


def read_metadata(path):
    """The metadata in a `.tflite` file as a dict, without loading the model.

    Raises:
        ValueError: if there is no such file, or `export_litert` did not write it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return json.loads(archive.read(METADATA_FILE))
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(
            "`path` must be a .tflite file by `export_litert`, with metadata.json in "
            f"it. Received: {path}: {error}"
        ) from error
