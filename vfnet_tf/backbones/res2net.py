import keras
from keras import ops

from vfnet_tf.backbones.resnet import (
    StagedBackbone,
    SymmetricMaxPool,
    check_stages,
    layers_of,
)
from vfnet_tf.layers import ConvNormAct
from vfnet_tf.layers.configs import ArgumentConfig
from vfnet_tf.ops.convolution import pad_symmetric

#: Blocks per stage.
DEPTHS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


@keras.saving.register_keras_serializable("vfnet_tf")
class Res2Net(StagedBackbone):
    """Res2Net v1d (Gao et al., TPAMI 2021): several scales within a block.

    The 3x3 convolution of a bottleneck becomes `scales - 1` small ones, each of which
    also gets the result of the one before. "v1d" stands for a stem of three 3x3
    convolutions and for shortcuts that pool before they are projected.

    Args:
        depth: 50 or 101.
        base_width: channels of one scale in the first stage, doubled in every later one.
        scales: int >= 2, scales of a block.
        deformable, norm, frozen_stages, input_shape, dtype: see `ResNet`.

    Input and output: see `ResNet`.
    """

    def __init__(
        self,
        depth=101,
        base_width=26,
        scales=4,
        deformable=(),
        norm="frozen_batch_norm",
        frozen_stages=1,
        input_shape=(None, None, 3),
        dtype=None,
        name=None,
        **kwargs,
    ):
        if depth not in DEPTHS:
            raise ValueError(
                f"`depth` must be one of {sorted(DEPTHS)}. Received: depth={depth}"
            )
        if scales < 2:
            raise ValueError(f"`scales` must be at least 2. Received: scales={scales}")
        check_stages(frozen_stages, deformable)
        with layers_of(dtype) as policy:
            inputs = keras.Input(input_shape)
            x = inputs
            for number, (filters, strides) in enumerate(((32, 2), (32, 1), (64, 1))):
                x = ConvNormAct(
                    filters,
                    3,
                    strides,
                    norm=norm,
                    activation="relu",
                    name=f"stem{number}",
                )(x)
            x = SymmetricMaxPool(name="pool1")(x)
            outputs = {}
            for stage, blocks in enumerate(DEPTHS[depth], start=1):
                level = f"C{stage + 1}"
                for block in range(blocks):
                    x = _block(
                        x,
                        width=base_width * 2 ** (stage - 1),
                        scales=scales,
                        filters=256 * 2 ** (stage - 1),
                        strides=2 if stage > 1 and block == 0 else 1,
                        is_first=block == 0,
                        norm=norm,
                        deformable=level in deformable,
                        name=f"layer{stage}_{block}",
                    )
                outputs[level] = x
        settings = {
            "depth": depth,
            "base_width": base_width,
            "scales": scales,
            "deformable": tuple(deformable),
            "norm": norm,
            "frozen_stages": frozen_stages,
        }
        super().__init__(
            inputs,
            outputs,
            "stem",
            settings,
            policy,
            name=name or f"res2net{depth}",
            **kwargs,
        )


@keras.saving.register_keras_serializable("vfnet_tf")
class _ScaleSplit(ArgumentConfig, keras.layers.Layer):
    """Splits the channels evenly into a list of maps."""

    def __init__(self, scales, **kwargs):
        super().__init__(**kwargs)
        self.scales = scales

    def call(self, inputs):
        return ops.split(inputs, self.scales, axis=-1)


@keras.saving.register_keras_serializable("vfnet_tf")
class _SymmetricAveragePool(keras.layers.Layer):
    """3x3 mean at stride 2; the zero cells on every side count."""

    def call(self, inputs):
        return ops.average_pool(
            pad_symmetric(inputs, 1), 3, 2, "valid", data_format="channels_last"
        )

    def compute_output_shape(self, input_shape):
        sides = [s and -(-s // 2) for s in input_shape[1:3]]
        return (input_shape[0], *sides, input_shape[3])


def _block(inputs, width, scales, filters, strides, is_first, norm, deformable, name):
    x = ConvNormAct(
        width * scales, 1, norm=norm, activation="relu", name=f"{name}_conv1"
    )(inputs)
    splits = _ScaleSplit(scales, name=f"{name}_split")(x)
    results = []
    for number, split in enumerate(splits[:-1]):
        if number > 0 and not is_first:
            split = keras.layers.Add(name=f"{name}_scale{number}")([split, results[-1]])
        split = ConvNormAct(
            width,
            3,
            strides,
            norm=norm,
            activation="relu",
            deformable=deformable,
            name=f"{name}_convs{number}",
        )(split)
        results.append(split)
    last = splits[-1]
    if strides > 1:
        last = _SymmetricAveragePool(name=f"{name}_pool")(last)
    x = keras.layers.Concatenate(name=f"{name}_scales")([*results, last])
    x = ConvNormAct(filters, 1, norm=norm, name=f"{name}_conv3")(x)
    shortcut = inputs
    if is_first:
        if strides > 1:
            # With "same", padding does not count in the mean of a last odd row or column.
            shortcut = keras.layers.AveragePooling2D(
                2,
                2,
                "same",
                data_format="channels_last",
                name=f"{name}_shortcut_pool",
            )(shortcut)
        shortcut = ConvNormAct(filters, 1, norm=norm, name=f"{name}_pooled_downsample")(
            shortcut
        )
    x = keras.layers.Add(name=f"{name}_add")([x, shortcut])
    return keras.layers.ReLU(name=f"{name}_out")(x)
