import math
import pathlib

import keras
import numpy as np
from PIL import Image


class TensorBoardLog(keras.callbacks.Callback):
    """Writes the logs of each epoch, the learning rate and pictures for TensorBoard.

    The host waits for the device only at the end of an epoch, unlike with Keras's own
    callback.

    Args:
        folder: of the event files.
        picture: path of a PNG that is there after each evaluation, or None.
        learning_rate: function without arguments that returns the rate, or None.

    Raises:
        ImportError: the extra `tensorboard` is not installed; names the command.
    """

    def __init__(self, folder, picture=None, learning_rate=None):
        super().__init__()
        try:
            import tensorboard  # noqa: F401
        except ImportError as error:
            raise ImportError(
                "TensorBoard is not installed: pip install 'vfnet_tf[tensorboard]'"
            ) from error
        import tensorflow as tf

        self.picture = picture
        self.learning_rate = learning_rate
        self._writer = tf.summary.create_file_writer(str(pathlib.Path(folder)))

    def on_epoch_end(self, epoch, logs=None):
        import tensorflow as tf

        logs = dict(logs or {})
        if self.learning_rate is not None:
            logs["learning_rate"] = self.learning_rate()
        is_evaluated = math.isfinite(logs.get("val_AP", math.nan))
        with self._writer.as_default(step=epoch + 1):
            for name, value in logs.items():
                # The AP of an epoch without evaluation is NaN.
                if math.isfinite(value):
                    tf.summary.scalar(name, float(value))
            if is_evaluated and self.picture is not None:
                with Image.open(self.picture) as picture:
                    pixels = np.asarray(picture.convert("RGB"))
                tf.summary.image("truth beside detections", pixels[None])
        self._writer.flush()
