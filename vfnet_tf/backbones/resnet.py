import keras

from vfnet_tf.layers import ConvNormAct
from vfnet_tf.ops.convolution import pad_symmetric

#: Blocks per stage, and whether they are bottlenecks (He et al., CVPR 2016, Table 1).
DEPTHS = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
}


@keras.saving.register_keras_serializable("vfnet_tf")
class ResNet(keras.Model):
    """ResNet (He et al., CVPR 2016) in torchvision's variant: stride on the 3x3.

    Args:
        depth: 18, 34, 50 or 101.
        norm: `"frozen_batch_norm"` for pretrained weights (stored statistics, also in
            training) or `"batch_norm"` to train from scratch.
        frozen_stages: stages without gradients; 1 freezes the stem and the first stage
            (the official setting), 0 the stem, -1 nothing.
        input_shape: `(height, width, 3)`, None where any size goes.

    Input: float `[B, H, W, 3]`, normalised by torchvision's mean and standard deviation.
    Output: dict `"C2"` .. `"C5"` of `[B, ceil(H / s), ceil(W / s), C]`, s = 4, 8, 16, 32.
    `pyramid_outputs` holds the same maps by KerasHub's names, `"P2"` .. `"P5"`.
    """

    def __init__(
        self,
        depth=50,
        norm="frozen_batch_norm",
        frozen_stages=1,
        input_shape=(None, None, 3),
        name=None,
        **kwargs,
    ):
        if depth not in DEPTHS:
            raise ValueError(
                f"`depth` must be one of {sorted(DEPTHS)}. Received: depth={depth}"
            )
        if not -1 <= frozen_stages <= 4:
            raise ValueError(
                "`frozen_stages` must be in -1..4. "
                f"Received: frozen_stages={frozen_stages}"
            )
        num_blocks, bottleneck = DEPTHS[depth]
        inputs = keras.Input(input_shape)
        x = ConvNormAct(64, 7, 2, norm=norm, activation="relu", name="conv1")(inputs)
        # Zeros pad the pooling as well as -inf would: the map is not negative.
        x = _SymmetricMaxPool(name="pool1")(x)
        outputs = {}
        for stage, blocks in enumerate(num_blocks, start=1):
            for block in range(blocks):
                x = _residual_block(
                    x,
                    width=64 * 2 ** (stage - 1),
                    strides=2 if stage > 1 and block == 0 else 1,
                    bottleneck=bottleneck,
                    norm=norm,
                    name=f"layer{stage}_{block}",
                )
            outputs[f"C{stage + 1}"] = x
        super().__init__(
            inputs=inputs, outputs=outputs, name=name or f"resnet{depth}", **kwargs
        )
        self.depth = depth
        self.norm = norm
        self.frozen_stages = frozen_stages
        self._input_shape_argument = tuple(input_shape)
        self.pyramid_outputs = {
            level.replace("C", "P"): tensor for level, tensor in outputs.items()
        }
        frozen = ["conv1"] if frozen_stages >= 0 else []
        frozen += [f"layer{stage}_" for stage in range(1, frozen_stages + 1)]
        for layer in self.layers:
            if layer.name.startswith(tuple(frozen)):
                layer.trainable = False

    def get_config(self):
        return {
            "name": self.name,
            "trainable": self.trainable,
            "depth": self.depth,
            "norm": self.norm,
            "frozen_stages": self.frozen_stages,
            "input_shape": self._input_shape_argument,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        return cls(**config)


@keras.saving.register_keras_serializable("vfnet_tf")
class _SymmetricMaxPool(keras.layers.Layer):
    """3x3 max pooling at stride 2 with one zero cell on every side."""

    def call(self, inputs):
        return keras.ops.max_pool(
            pad_symmetric(inputs, 1), 3, 2, "valid", data_format="channels_last"
        )

    def compute_output_shape(self, input_shape):
        sides = [s and -(-s // 2) for s in input_shape[1:3]]
        return (input_shape[0], *sides, input_shape[3])


def _residual_block(inputs, width, strides, bottleneck, norm, name):
    filters = width * 4 if bottleneck else width
    if bottleneck:
        convs = [(width, 1, 1), (width, 3, strides), (filters, 1, 1)]
    else:
        convs = [(width, 3, strides), (width, 3, 1)]
    x = inputs
    for number, (channels, kernel_size, stride) in enumerate(convs, start=1):
        last = number == len(convs)
        x = ConvNormAct(
            channels,
            kernel_size,
            stride,
            norm=norm,
            activation=None if last else "relu",
            name=f"{name}_conv{number}",
        )(x)
    shortcut = inputs
    if strides > 1 or inputs.shape[-1] != filters:
        shortcut = ConvNormAct(
            filters, 1, strides, norm=norm, name=f"{name}_downsample"
        )(inputs)
    x = keras.layers.Add(name=f"{name}_add")([x, shortcut])
    return keras.layers.ReLU(name=f"{name}_out")(x)
