import math

import keras
from keras import ops

from vfnet_tf.layers.deform_conv2d import DeformableConv2D
from vfnet_tf.layers.frozen_batch_norm import FrozenBatchNorm
from vfnet_tf.layers.group_norm import GroupNorm
from vfnet_tf.layers.trainable_parts import TrainableParts
from vfnet_tf.ops.convolution import conv2d

#: Numbers in the largest kernel that a frozen batch norm is folded into. Larger ones
#: stand where maps are small: scaling those is the shorter way.
MAX_FOLDED = 2**19

NORMS = {
    "frozen_batch_norm": FrozenBatchNorm,
    # torch's momentum 0.1 is Keras's 0.9.
    "batch_norm": lambda **kwargs: keras.layers.BatchNormalization(
        momentum=0.9, epsilon=1e-5, **kwargs
    ),
    "group_norm": GroupNorm,
}


@keras.saving.register_keras_serializable("vfnet_tf")
class ConvNormAct(TrainableParts, keras.layers.Layer):
    """A 2-D convolution, its normalisation and its activation.

    Padding is symmetric, `(kernel_size - 1) // 2` on each side, as in PyTorch; at
    stride 2 that differs from Keras's "same". A frozen batch norm is folded into the
    kernel unless that is large.

    Args:
        filters: int.
        kernel_size: int, odd.
        strides: int.
        norm: `"frozen_batch_norm"`, `"batch_norm"`, `"group_norm"` or None.
        activation: name of a Keras activation or None.
        use_bias: bool; None means a bias exactly where there is no norm.
        groups: int, groups of channels that are convolved apart (ResNeXt).
        deformable: bool, a modulated `DeformableConv2D` in place of the convolution.
        kernel_initializer, bias_initializer: as in `keras.layers.Conv2D`.
        offset_initializer: as in `DeformableConv2D`.

    Shapes: `[B, H, W, C]` to `[B, ceil(H / strides), ceil(W / strides), filters]`.
    """

    def __init__(
        self,
        filters,
        kernel_size,
        strides=1,
        norm=None,
        activation=None,
        use_bias=None,
        groups=1,
        deformable=False,
        kernel_initializer="he_normal",
        bias_initializer="zeros",
        offset_initializer="zeros",
        **kwargs,
    ):
        super().__init__(**kwargs)
        if kernel_size % 2 == 0:
            raise ValueError(
                f"`kernel_size` must be odd. Received: kernel_size={kernel_size}"
            )
        if norm is not None and norm not in NORMS:
            raise ValueError(
                f"`norm` must be None or one of {sorted(NORMS)}. Received: norm={norm}"
            )
        self.filters = filters
        self.kernel_size = kernel_size
        self.strides = strides
        self.norm = norm
        self.activation = keras.activations.get(activation)
        self.use_bias = norm is None if use_bias is None else use_bias
        self.groups = groups
        self.deformable = deformable
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.offset_initializer = keras.initializers.get(offset_initializer)
        kind, settings = keras.layers.Conv2D, {}
        if deformable:
            kind = DeformableConv2D
            settings["offset_initializer"] = self.offset_initializer
        # It holds the variables; `call` pads, and folds the norm.
        self.conv = kind(
            filters,
            kernel_size,
            strides,
            groups=groups,
            use_bias=self.use_bias,
            kernel_initializer=self.kernel_initializer,
            bias_initializer=self.bias_initializer,
            dtype=self.dtype_policy,
            name="conv",
            **settings,
        )
        self.norm_layer = None
        if norm is not None:
            self.norm_layer = NORMS[norm](dtype=self.dtype_policy, name="norm")

    def build(self, input_shape):
        # Sizes left open: `call` pads the map.
        self.conv.build((None, None, None, input_shape[-1]))
        if self.norm_layer is not None:
            self.norm_layer.build(self.compute_output_shape(input_shape))

    def call(self, inputs, training=None):
        kernel = ops.convert_to_tensor(self.conv.kernel)
        bias = ops.convert_to_tensor(self.conv.bias) if self.use_bias else None
        is_folded = (
            self.norm == "frozen_batch_norm"
            and not self.use_bias
            and math.prod(kernel.shape) <= MAX_FOLDED
        )
        if is_folded:
            kernel, bias = self.norm_layer.fold(kernel)
        kernel = ops.cast(kernel, self.compute_dtype)
        bias = None if bias is None else ops.cast(bias, self.compute_dtype)
        if self.deformable:
            outputs = self.conv.convolve(inputs, kernel, bias)
        else:
            outputs = conv2d(inputs, kernel, bias, self.strides, groups=self.groups)
        if self.norm == "batch_norm":
            outputs = self.norm_layer(outputs, training=training)
        elif self.norm is not None and not is_folded:
            outputs = self.norm_layer(outputs)
        return self.activation(outputs)

    def compute_output_shape(self, input_shape):
        sides = [s and -(-s // self.strides) for s in input_shape[1:3]]
        return (input_shape[0], *sides, self.filters)

    def get_config(self):
        return {
            **super().get_config(),
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "strides": self.strides,
            "norm": self.norm,
            "activation": keras.activations.serialize(self.activation),
            "use_bias": self.use_bias,
            "groups": self.groups,
            "deformable": self.deformable,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
            "offset_initializer": keras.initializers.serialize(self.offset_initializer),
        }
