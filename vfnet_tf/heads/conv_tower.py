import keras

from vfnet_tf.layers import ConvNormAct
from vfnet_tf.layers.configs import ArgumentConfig
from vfnet_tf.layers.trainable_parts import TrainableParts


@keras.saving.register_keras_serializable("vfnet_tf")
class ConvTower(ArgumentConfig, TrainableParts, keras.layers.Layer):
    """3x3 convolutions with norm and ReLU, shared by all levels.

    Args:
        num_convs: int.
        filters: int, channels of each.
        norm: as in `ConvNormAct`.
        deformable_last: bool, the last one is a modulated deformable convolution.

    Shapes: `[B, H, W, C]` to `[B, H, W, filters]`.
    """

    def __init__(
        self,
        num_convs=3,
        filters=256,
        norm="group_norm",
        deformable_last=False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if num_convs < 0:
            raise ValueError(
                f"`num_convs` must be >= 0. Received: num_convs={num_convs}"
            )
        self.num_convs = num_convs
        self.filters = filters
        self.norm = norm
        self.deformable_last = deformable_last
        self.convs = [
            self._make_conv(index, deformable_last and index == num_convs - 1)
            for index in range(num_convs)
        ]

    def _make_conv(self, index, deformable):
        # As in the official code: deformable kernels start from a uniform distribution
        # of +-1 / sqrt(fan_in), all others from N(0, 0.01): docs/parity.md, S9.
        # Each layer has an initialiser of its own, since one repeats its values.
        if deformable:
            initializer = keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform")
        else:
            initializer = keras.initializers.RandomNormal(stddev=0.01)
        return ConvNormAct(
            self.filters,
            3,
            norm=self.norm,
            activation="relu",
            deformable=deformable,
            kernel_initializer=initializer,
            dtype=self.dtype_policy,
            name=f"conv{index}",
        )

    def build(self, input_shape):
        for conv in self.convs:
            conv.build(input_shape)
            input_shape = conv.compute_output_shape(input_shape)

    def call(self, inputs):
        for conv in self.convs:
            inputs = conv(inputs)
        return inputs

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.filters if self.num_convs else input_shape[-1])
