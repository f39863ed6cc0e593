import contextlib

import keras

from vfnet_tf.layers import ConvNormAct
from vfnet_tf.layers.trainable_parts import TrainableParts
from vfnet_tf.ops.convolution import pad_symmetric

#: Blocks per stage, and whether they are bottlenecks (He et al., CVPR 2016, Table 1).
DEPTHS = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
}


class StagedBackbone(TrainableParts, keras.Model):
    """What backbones of a stem and four stages share: freezing, outputs and config.

    Args:
        inputs: Keras tensor of the images.
        outputs: dict `"C2"` .. `"C5"` of Keras tensors.
        stem: str, how the names of the stem's layers start; those of the stages start
            with `layer1_` to `layer4_`.
        settings: dict of the subclass's arguments, `frozen_stages` among them, which
            become attributes and, with the input's shape and the policy, the config.
        policy: `keras.DTypePolicy` of the layers.
    """

    def __init__(self, inputs, outputs, stem, settings, policy, **kwargs):
        super().__init__(inputs=inputs, outputs=outputs, **kwargs)
        self.dtype_policy = policy
        self._names = tuple(settings)
        for name, value in settings.items():
            setattr(self, name, value)
        self._input_shape_argument = tuple(inputs.shape[1:])
        self.pyramid_outputs = {
            level.replace("C", "P"): tensor for level, tensor in outputs.items()
        }
        frozen = [stem] if self.frozen_stages >= 0 else []
        frozen += [f"layer{stage}_" for stage in range(1, self.frozen_stages + 1)]
        for layer in self.layers:
            if layer.name.startswith(tuple(frozen)):
                layer.trainable = False
        self._keep_initial_flags()

    def _own_config(self):
        return {
            "name": self.name,
            "trainable": self.trainable,
            "dtype": keras.dtype_policies.serialize(self.dtype_policy),
            "input_shape": self._input_shape_argument,
            **{name: getattr(self, name) for name in self._names},
        }

    @classmethod
    def _from_own_config(cls, config, custom_objects):
        return cls(**config)


@contextlib.contextmanager
def layers_of(dtype):
    """Makes the layers within of a dtype policy (None: the global one); yields it."""
    before = keras.config.dtype_policy()
    policy = keras.dtype_policies.get(dtype)
    keras.config.set_dtype_policy(policy)
    try:
        yield policy
    finally:
        keras.config.set_dtype_policy(before)


@keras.saving.register_keras_serializable("vfnet_tf")
class ResNet(StagedBackbone):
    """ResNet (He et al., CVPR 2016) in torchvision's variant: stride on the 3x3.

    With groups it is ResNeXt (Xie et al., CVPR 2017): `groups=32, width_per_group=4` is
    32x4d, `groups=64, width_per_group=4` is 64x4d.

    Args:
        depth: 18, 34, 50 or 101.
        norm: `"frozen_batch_norm"` for pretrained weights (stored statistics, also in
            training) or `"batch_norm"` to train from scratch.
        frozen_stages: stages without gradients; 1 freezes the stem and the first stage
            (the official setting), 0 the stem, -1 nothing.
        input_shape: `(height, width, 3)`, None where any size goes.
        groups: groups of the 3x3 convolutions of the bottlenecks.
        width_per_group: channels of each group in the first stage, doubled in every
            later one.
        deformable: levels among `"C2"` .. `"C5"` whose 3x3 convolutions, the strided
            ones too, are modulated deformable ones (DCNv2, Zhu et al., CVPR 2019).
        dtype: dtype policy of the layers; None is the global one.

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
        groups=1,
        width_per_group=64,
        deformable=(),
        dtype=None,
        name=None,
        **kwargs,
    ):
        if depth not in DEPTHS:
            raise ValueError(
                f"`depth` must be one of {sorted(DEPTHS)}. Received: depth={depth}"
            )
        num_blocks, bottleneck = DEPTHS[depth]
        if not bottleneck and (groups, width_per_group) != (1, 64):
            raise ValueError(
                "`groups` and `width_per_group` need bottlenecks, depth 50 or 101. "
                f"Received: depth={depth}, groups={groups}, "
                f"width_per_group={width_per_group}"
            )
        check_stages(frozen_stages, deformable)
        with layers_of(dtype) as policy:
            inputs = keras.Input(input_shape)
            x = ConvNormAct(64, 7, 2, norm=norm, activation="relu", name="conv1")(
                inputs
            )
            # The map is not negative, so that padding with zeros pads with nothing.
            x = SymmetricMaxPool(name="pool1")(x)
            outputs = {}
            for stage, blocks in enumerate(num_blocks, start=1):
                filters = 64 * 2 ** (stage - 1)
                level = f"C{stage + 1}"
                for block in range(blocks):
                    x = _residual_block(
                        x,
                        width=filters * width_per_group // 64 * groups,
                        filters=filters * 4 if bottleneck else filters,
                        strides=2 if stage > 1 and block == 0 else 1,
                        bottleneck=bottleneck,
                        norm=norm,
                        groups=groups,
                        deformable=level in deformable,
                        name=f"layer{stage}_{block}",
                    )
                outputs[level] = x
        settings = {
            "depth": depth,
            "norm": norm,
            "frozen_stages": frozen_stages,
            "groups": groups,
            "width_per_group": width_per_group,
            "deformable": tuple(deformable),
        }
        super().__init__(
            inputs,
            outputs,
            "conv1",
            settings,
            policy,
            name=name or f"resnet{depth}",
            **kwargs,
        )


@keras.saving.register_keras_serializable("vfnet_tf")
class SymmetricMaxPool(keras.layers.Layer):
    """3x3 max pooling at stride 2 with one zero cell on every side."""

    def call(self, inputs):
        return keras.ops.max_pool(
            pad_symmetric(inputs, 1), 3, 2, "valid", data_format="channels_last"
        )

    def compute_output_shape(self, input_shape):
        sides = [s and -(-s // 2) for s in input_shape[1:3]]
        return (input_shape[0], *sides, input_shape[3])


def check_stages(frozen_stages, deformable):
    """Raises `ValueError` for settings that name stages which do not exist."""
    if not -1 <= frozen_stages <= 4:
        raise ValueError(
            f"`frozen_stages` must be in -1..4. Received: frozen_stages={frozen_stages}"
        )
    levels = ("C2", "C3", "C4", "C5")
    if not set(deformable) <= set(levels):
        raise ValueError(
            f"`deformable` must be levels among {levels}. "
            f"Received: deformable={deformable}"
        )


def _residual_block(
    inputs, width, filters, strides, bottleneck, norm, groups, deformable, name
):
    # (channels, kernel size, stride); only 3x3 convolutions are grouped or deformable.
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
            groups=groups if kernel_size == 3 else 1,
            deformable=deformable and kernel_size == 3,
            name=f"{name}_conv{number}",
        )(x)
    shortcut = inputs
    if strides > 1 or inputs.shape[-1] != filters:
        shortcut = ConvNormAct(
            filters, 1, strides, norm=norm, name=f"{name}_downsample"
        )(inputs)
    x = keras.layers.Add(name=f"{name}_add")([x, shortcut])
    return keras.layers.ReLU(name=f"{name}_out")(x)
