import keras
from keras import ops

from vfnet_tf.layers.configs import ArgumentConfig


@keras.saving.register_keras_serializable("vfnet_tf")
class FrozenBatchNorm(ArgumentConfig, keras.layers.Layer):
    """Batch normalisation by stored statistics, in training too ("norm_eval").

    `gamma` and `beta` are trained, the moving mean and variance never change. With
    nothing left that depends on the batch, the layer is one scale and one shift per
    channel; `fold` gives them to a convolution, which saves a pass over the map.

    Args:
        epsilon: float, added to the variance.

    Shapes: `[..., C]` in and out. Dtype: the layer's compute dtype.
    """

    def __init__(self, epsilon=1e-5, **kwargs):
        super().__init__(**kwargs)
        self.epsilon = epsilon

    def build(self, input_shape):
        if not isinstance(input_shape[-1], int):
            raise ValueError(
                f"{self.name} (FrozenBatchNorm) must be given one tensor [..., C] of a "
                f"known number of channels. Received: shape={input_shape}"
            )
        shape = (input_shape[-1],)
        self.input_spec = keras.InputSpec(axes={-1: input_shape[-1]})
        self.gamma = self.add_weight(shape, "ones", name="gamma")
        self.beta = self.add_weight(shape, "zeros", name="beta")
        self.moving_mean = self.add_weight(
            shape, "zeros", trainable=False, autocast=False, name="moving_mean"
        )
        self.moving_variance = self.add_weight(
            shape, "ones", trainable=False, autocast=False, name="moving_variance"
        )

    def scale_and_shift(self):
        """Factor and summand per channel, float32 `[C]` each."""
        gamma = ops.cast(self.gamma, "float32")
        variance = ops.cast(self.moving_variance, "float32")
        scale = gamma * ops.rsqrt(variance + self.epsilon)
        mean = ops.cast(self.moving_mean, "float32")
        shift = ops.cast(self.beta, "float32") - mean * scale
        return scale, shift

    def fold(self, kernel):
        """Kernel and bias of the convolution that includes this normalisation.

        Args:
            kernel: float `[..., F]` of a convolution without bias.

        Returns:
            `(kernel, bias)`, `[..., F]` and `[F]`, of the kernel's dtype.
        """
        scale, shift = self.scale_and_shift()
        return kernel * ops.cast(scale, kernel.dtype), ops.cast(shift, kernel.dtype)

    def call(self, inputs, training=None, mask=None):  # BatchNormalization's
        scale, shift = self.scale_and_shift()
        return inputs * ops.cast(scale, inputs.dtype) + ops.cast(shift, inputs.dtype)

    def compute_output_shape(self, input_shape):
        return input_shape
