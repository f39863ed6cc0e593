import keras
from keras import ops

from vfnet_tf.layers.configs import ArgumentConfig
from vfnet_tf.layers.conv_arguments import check_layout
from vfnet_tf.layers.frozen_batch_norm import FrozenBatchNorm
from vfnet_tf.layers.trainable_parts import TrainableParts
from vfnet_tf.ops.convolution import add_bias


@keras.saving.register_keras_serializable("vfnet_tf")
class FoldedConv2D(ArgumentConfig, TrainableParts, keras.layers.Conv2D):
    """A Keras `Conv2D` that includes the frozen batch norm after it.

    The result is that of the two layers one after the other, without the passes over
    the map that the second one costs.

    Args:
        epsilon: float, of the batch norm.
        others: as in `keras.layers.Conv2D`; no activation and no bias: that of an
            original layer is subtracted from the stored mean, which it was part of.
            Maps are `[B, H, W, C]`, whatever `keras.config.image_data_format()` is.

    Attributes:
        norm: the `FrozenBatchNorm`, whose `gamma` and `beta` are trained.

    Raises:
        ValueError: for an activation or `data_format="channels_first"`.
    """

    def __init__(self, *args, epsilon=1e-5, **kwargs):
        settings = {"data_format": "channels_last", **kwargs, "use_bias": False}
        if len(args) > 4:  # filters, kernel_size, strides, padding, data_format
            del settings["data_format"]
        super().__init__(*args, **settings)
        check_layout(self.data_format)
        if self.activation is not keras.activations.linear:
            raise ValueError(
                "`activation` must be None: it belongs after the norm. "
                f"Received: activation={self.activation}"
            )
        self.epsilon = epsilon
        self.norm = FrozenBatchNorm(epsilon, dtype=self.dtype_policy, name="norm")

    def build(self, input_shape):
        super().build(input_shape)
        self.norm.build((None, self.filters))

    def call(self, inputs):
        kernel, bias = self.norm.fold(ops.convert_to_tensor(self.kernel))
        kernel = ops.cast(kernel, self.compute_dtype)
        outputs = self.convolution_op(inputs, kernel)
        return add_bias(outputs, ops.cast(bias, self.compute_dtype))
