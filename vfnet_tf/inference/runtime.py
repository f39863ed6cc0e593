"""Detections from exported files by PIL and numpy, without TensorFlow."""

import dataclasses

from vfnet_tf import config as configs
from vfnet_tf.data import numpy_images
from vfnet_tf.data.images.inspect import inspect_image
from vfnet_tf.data.images.numpy_decode import load_image
from vfnet_tf.data.normalization import Normalization
from vfnet_tf.inference.prediction import Prediction
from vfnet_tf.inference.predictor import Predictor


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class RuntimePrediction(Prediction):
    """A `Prediction` whose image is read again without TensorFlow."""

    def _read_file(self, path):
        return load_image(path)


class RuntimePredictor(Predictor):
    """A `Predictor` on an exported file, with PIL and numpy instead of TensorFlow.

    Args:
        model: the loaded file, with `metadata`, `num_classes`, `score_threshold` and
            the method `detect` of a `DenseDetector`.
        batch_size: int, images that go through the network at a time.
    """

    prediction_type = RuntimePrediction

    def __init__(self, model, *, batch_size=1):
        super().__init__(model, _config_of(model.metadata), batch_size=batch_size)

    def read_file(self, path, name=None):
        """Reads an image file. See `sources.load_file`."""
        header = inspect_image(path, full=False)
        if header.error:
            raise ValueError(
                f"An image must be readable. Received: {name or path} {header.error}"
            )
        try:
            return load_image(path)
        except Exception as error:  # PIL's decoders raise errors of many classes
            raise ValueError(
                f"An image must be readable. Received: {name or path} cannot be "
                f"decoded: {error}"
            ) from error

    def prepare(self, pixels):
        """One image as a network input. See `Predictor.prepare`."""
        data = self.config.data
        return numpy_images.prepare(
            pixels, data.image_size, data.keep_ratio, data.normalization
        )


def _config_of(metadata):
    """The `Config` of an exported file, with the settings chosen for the export."""
    stored = metadata["config"]
    config = configs.Config("exported") if stored is None else configs.from_dict(stored)
    data = dataclasses.replace(
        config.data,
        image_size=tuple(metadata["image_size"]),
        keep_ratio=metadata["keep_ratio"],
        normalization=Normalization.from_dict(metadata["normalization"]),
    )
    return dataclasses.replace(
        config,
        data=data,
        class_names=tuple(metadata["class_names"]),
        category_ids=tuple(metadata["category_ids"]),
    )
