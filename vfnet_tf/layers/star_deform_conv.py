import keras
from keras import ops

from vfnet_tf.layers.configs import ArgumentConfig
from vfnet_tf.layers.conv_arguments import channels_of, positive
from vfnet_tf.ops.deform_conv import star_conv


@keras.saving.register_keras_serializable("vfnet_tf")
class StarDeformableConv2D(ArgumentConfig, keras.layers.Layer):
    """3x3 convolution on the nine points of each cell's own box (paper, Sec. 4.3).

    A deformable convolution whose offsets are not learned: they are the cell's
    predicted distances. No bias, no mask.

    Args:
        filters: int.
        kernel_initializer: as in `keras.layers.Conv2D`; the official code draws from
            N(0, 0.01).

    Inputs, in this order: features `[B, H, W, C]`, and distances `[B, H, W, 4]` float32,
    `(left, top, right, bottom)` **in cells** of `features` (pixels divided by the
    stride). Output `[B, H, W, filters]`. What lies outside the map counts as 0.

    Raises:
        ValueError: for other inputs, with their shapes.

    >>> star = StarDeformableConv2D(filters=16)
    >>> features, distances = ops.ones((1, 4, 6, 8)), ops.full((1, 4, 6, 4), 20.0)
    >>> tuple(star(features, distances / 8).shape)  # pixels / stride
    (1, 4, 6, 16)
    """

    def __init__(self, filters, kernel_initializer="glorot_uniform", **kwargs):
        # No autocast: distances in bfloat16 would be off by up to half a cell.
        super().__init__(autocast=False, **kwargs)
        self.filters = positive(filters, "filters")
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, features_shape, distances_shape=None):
        channels = channels_of(features_shape, self)
        self.kernel = self.add_weight(
            (3, 3, channels, self.filters),
            self.kernel_initializer,
            name="kernel",
        )

    def call(self, features, distances=None):
        self._check(*(getattr(x, "shape", None) for x in (features, distances)))
        features = ops.cast(features, self.compute_dtype)
        return star_conv(features, distances, ops.cast(self.kernel, self.compute_dtype))

    def _check(self, *shapes):
        channels = self.kernel.shape[2]
        shapes = [None if shape is None else tuple(shape) for shape in shapes]
        fits = None not in shapes and len(shapes[0]) == len(shapes[1]) == 4
        if (
            not fits
            or (shapes[0][3], shapes[1][3]) != (channels, 4)
            or any(
                None not in sides and sides[0] != sides[1]
                for sides in zip(*(shape[:3] for shape in shapes), strict=True)
            )
        ):
            raise ValueError(
                f"{self.name} (StarDeformableConv2D) must be given features "
                f"[B, H, W, {channels}] and distances [B, H, W, 4], as two arguments. "
                f"Received: shapes {shapes}"
            )

    def compute_output_shape(self, features_shape, distances_shape=None):
        channels_of(features_shape, self)
        return (*features_shape[:-1], self.filters)
