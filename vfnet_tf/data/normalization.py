"""How pixel values become network inputs, kept in one place.

A backbone's weights fix its normalisation; the pipeline applies it, the checkpoint and
the export record it. The model itself never normalises.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Normalization:
    """`(image - mean) / std` per channel, after an optional RGB to BGR reversal.

    Args:
        mean: three floats in pixel values 0..255, in the order of `channel_order`.
        std: three floats > 0 in pixel values, in the order of `channel_order`.
        channel_order: `"rgb"`, or `"bgr"` for weights that expect blue first. The
            image that comes in is RGB either way.

    Raises:
        ValueError: for another number of channels, a std that is not positive, a value
            that is not finite, or an unknown order.
    """

    mean: tuple[float, ...] = (123.675, 116.28, 103.53)
    std: tuple[float, ...] = (58.395, 57.12, 57.375)
    channel_order: str = "rgb"

    def __post_init__(self):
        for name in ("mean", "std"):
            values = tuple(float(value) for value in getattr(self, name))
            if len(values) != 3 or not np.all(np.isfinite(values)):
                raise ValueError(
                    f"`{name}` must be three finite numbers. Received: {name}={values}"
                )
            object.__setattr__(self, name, values)
        if min(self.std) <= 0:
            raise ValueError(f"`std` must be > 0. Received: std={self.std}")
        if self.channel_order not in ("rgb", "bgr"):
            raise ValueError(
                "`channel_order` must be 'rgb' or 'bgr'. "
                f"Received: channel_order={self.channel_order!r}"
            )

    def __call__(self, image):
        """Normalises one image or a batch.

        Args:
            image: `[..., 3]` RGB of any real dtype, 0..255; a tf tensor or anything
                that `numpy.asarray` takes.

        Returns:
            float32 `[..., 3]`: a tf tensor for a tf tensor, else a numpy array.
        """
        is_bgr = self.channel_order == "bgr"
        mean = np.asarray(self.mean, "float32")
        std = np.asarray(self.std, "float32")
        # By name, so that TensorFlow need not be installed to serve numpy arrays.
        if type(image).__module__.startswith("tensorflow."):
            import tensorflow as tf

            image = tf.cast(image, "float32")
            image = tf.reverse(image, axis=[-1]) if is_bgr else image
            if image.shape.rank is None or image.shape.rank < 2:
                return (image - mean) / std
            # Along whole rows TensorFlow broadcasts three times as fast as along three
            # channels.
            shape = tf.shape(image)
            width = shape[-2]
            rows = tf.reshape(image, tf.concat([shape[:-2], [3 * width]], axis=0))
            rows = (rows - tf.tile(mean, [width])) / tf.tile(std, [width])
            return tf.ensure_shape(tf.reshape(rows, shape), image.shape)
        image = np.asarray(image).astype("float32")
        image = image[..., ::-1] if is_bgr else image
        return (image - mean) / std

    def inverse(self, image):
        """RGB pixel values, float32 `[..., 3]`, of a normalised numpy array."""
        mean, std = (np.asarray(values, "float32") for values in (self.mean, self.std))
        image = np.asarray(image) * std + mean
        return image[..., ::-1] if self.channel_order == "bgr" else image

    def to_dict(self):
        """Returns a dict of JSON types, the inverse of `from_dict`."""
        return {
            "mean": list(self.mean),
            "std": list(self.std),
            "channel_order": self.channel_order,
        }

    @classmethod
    def from_dict(cls, values):
        """Builds a `Normalization` from `to_dict()`; an unknown key is an error."""
        names = {field.name for field in dataclasses.fields(cls)}
        if set(values) != names:
            raise ValueError(
                f"The keys must be {sorted(names)}. Received: keys={sorted(values)}"
            )
        return cls(**values)


TORCHVISION = Normalization()
"""ImageNet statistics of torchvision's and the official weights (docs/parity.md, S32)."""

RGB_255_TORCH = Normalization(
    mean=tuple(255 * value for value in (0.485, 0.456, 0.406)),
    std=tuple(255 * value for value in (0.229, 0.224, 0.225)),
)
"""`TORCHVISION` as Keras's "torch" mode states it: on a 0..1 scale, times 255."""

CAFFE_BGR = Normalization((103.939, 116.779, 123.68), (1.0, 1.0, 1.0), "bgr")
"""Keras's "caffe" mode: `keras.applications` ResNet-50/101/152 and VGG weights."""

MINUS_ONE_TO_ONE = Normalization((127.5, 127.5, 127.5), (127.5, 127.5, 127.5))
"""Keras's "tf" mode: ResNetV2, MobileNet and Inception weights."""

IDENTITY = Normalization((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
"""Raw 0..255, for backbones that rescale inside (EfficientNet, ConvNeXt)."""
