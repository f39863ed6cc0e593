import keras
from keras import ops


@keras.saving.register_keras_serializable("vfnet_tf")
class GroupNorm(keras.layers.Layer):
    """Group normalisation (Wu and He, ECCV 2018, Eq. 1-2) in three passes over the map.

    The result is that of `keras.layers.GroupNormalization`. The sums over the cells are
    matrix products with a row of ones, and mean, variance, gamma and beta become one
    scale and one shift per image and channel.

    Args:
        groups: int, must divide the channels.
        epsilon: float, added to the variance (Keras's own default is 1e-3).

    Shapes: `[B, H, W, C]` in and out. Statistics are float32, whatever the dtype.
    """

    def __init__(self, groups=32, epsilon=1e-5, **kwargs):
        super().__init__(**kwargs)
        self.groups = groups
        self.epsilon = epsilon

    def build(self, input_shape):
        channels = input_shape[-1]
        if channels % self.groups:
            raise ValueError(
                "`groups` must divide the channels. "
                f"Received: groups={self.groups}, channels={channels}"
            )
        self.gamma = self.add_weight((channels,), "ones", name="gamma")
        self.beta = self.add_weight((channels,), "zeros", name="beta")

    def call(self, inputs):
        batch, height, width, channels = ops.shape(inputs)
        cells = height * width
        flat = ops.reshape(ops.cast(inputs, "float32"), (batch, -1, channels))
        # Shifted by one cell's values the squares stay small: E[x^2] - E[x]^2 of an
        # unshifted map would lose the variance of a channel whose mean is large.
        pivot = ops.stop_gradient(
            ops.repeat(
                ops.mean(
                    ops.reshape(
                        flat[:, 0], (batch, self.groups, channels // self.groups)
                    ),
                    axis=-1,
                ),
                channels // self.groups,
                axis=-1,
            )
        )[:, None]
        shifted = flat - pivot
        ones = ops.ones((batch, 1, cells), dtype="float32")
        sums = ops.concatenate(
            [ops.matmul(ones, shifted), ops.matmul(ones, ops.square(shifted))], axis=1
        )
        per_group = ops.mean(
            ops.reshape(sums, (batch, 2, self.groups, channels // self.groups)),
            axis=-1,
        ) / ops.cast(cells, "float32")
        mean = per_group[:, 0]
        variance = ops.maximum(per_group[:, 1] - ops.square(mean), 0.0)
        inverse = ops.rsqrt(variance + self.epsilon)
        size = channels // self.groups
        mean = ops.repeat(mean, size, axis=-1)[:, None] + pivot
        scale = ops.repeat(inverse, size, axis=-1)[:, None]
        scale = scale * ops.cast(self.gamma, "float32")
        shift = ops.cast(self.beta, "float32") - mean * scale
        scale = ops.cast(scale[:, :, None], inputs.dtype)
        shift = ops.cast(shift[:, :, None], inputs.dtype)
        return inputs * scale + shift

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        own = {"groups": self.groups, "epsilon": self.epsilon}
        return {**super().get_config(), **own}
