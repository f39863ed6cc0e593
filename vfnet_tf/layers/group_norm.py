import keras

from vfnet_tf.layers.configs import ArgumentConfig
from vfnet_tf.layers.conv_arguments import channels_of, positive
from vfnet_tf.ops.normalization import group_norm


@keras.saving.register_keras_serializable("vfnet_tf")
class GroupNorm(ArgumentConfig, keras.layers.Layer):
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
        self.groups = positive(groups, "groups")
        self.epsilon = epsilon

    def build(self, input_shape):
        channels = channels_of(input_shape, self)
        self.input_spec = keras.InputSpec(ndim=4, axes={-1: channels})
        if channels % self.groups:
            raise ValueError(
                "`groups` must divide the channels. "
                f"Received: groups={self.groups}, channels={channels}"
            )
        self.gamma = self.add_weight((channels,), "ones", name="gamma")
        self.beta = self.add_weight((channels,), "zeros", name="beta")

    def call(self, inputs):
        return group_norm(inputs, self.gamma, self.beta, self.groups, self.epsilon)

    def compute_output_shape(self, input_shape):
        return input_shape
