import math

import keras
from keras import ops

from vfnet_tf.layers.configs import ArgumentConfig, set_arguments
from vfnet_tf.layers.conv_arguments import (
    cells_around,
    channels_of,
    check_layout,
    convolved_shape,
    int_or_pair,
    padding_mode,
    positive,
)
from vfnet_tf.layers.deform_conv2d import DeformableConv2D
from vfnet_tf.layers.frozen_batch_norm import FrozenBatchNorm
from vfnet_tf.layers.group_norm import GroupNorm
from vfnet_tf.layers.trainable_parts import TrainableParts
from vfnet_tf.ops.convolution import conv2d

#: A frozen batch norm is folded into kernels of at most so many numbers. Larger kernels
#: belong to small maps, which are scaled faster than the kernel.
MAX_FOLDED = 2**19

NORMS = {
    "frozen_batch_norm": FrozenBatchNorm,
    # torch's momentum 0.1 is Keras's 0.9.
    "batch_norm": lambda **kwargs: keras.layers.BatchNormalization(
        axis=-1, momentum=0.9, epsilon=1e-5, **kwargs
    ),
    "group_norm": GroupNorm,
}


@keras.saving.register_keras_serializable("vfnet_tf")
class ConvNormAct(ArgumentConfig, TrainableParts, keras.layers.Layer):
    """A 2-D convolution, its normalisation and its activation.

    Padding is symmetric, `(kernel_size - 1) // 2` on each side, as in PyTorch; at
    stride 2 that differs from Keras's `"same"`. A frozen batch norm is folded into the
    kernel unless that is large.

    Args:
        filters: int.
        kernel_size: int or pair for rows and columns; odd, unless `padding` is `"same"`
            or `"valid"`.
        strides: int or pair.
        norm: `"frozen_batch_norm"`, `"batch_norm"`, `"group_norm"` or None.
        activation: as in `keras.layers.Conv2D`, after the norm.
        use_bias: bool; None means a bias exactly where there is no norm.
        groups: int, groups of channels that are convolved apart (ResNeXt).
        deformable: bool, a modulated `DeformableConv2D` in place of the convolution.
        kernel_initializer, bias_initializer, kernel_regularizer, bias_regularizer,
            kernel_constraint, bias_constraint: as in `keras.layers.Conv2D`.
        offset_initializer: as in `DeformableConv2D`.
        dilation_rate: int or pair; strides are 1 then.
        padding, data_format: as in `DeformableConv2D`.

    Shapes and errors: see `DeformableConv2D`.
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
        dilation_rate=1,
        padding="symmetric",
        kernel_regularizer=None,
        bias_regularizer=None,
        kernel_constraint=None,
        bias_constraint=None,
        data_format=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_layout(data_format)
        self.data_format = "channels_last"
        if norm is not None and norm not in NORMS:
            raise ValueError(
                f"`norm` must be None or one of {sorted(NORMS)}. Received: norm={norm}"
            )
        self.filters = positive(filters, "filters")
        self.kernel_size = int_or_pair(kernel_size, "kernel_size")
        self.strides = int_or_pair(strides, "strides")
        self.dilation_rate = int_or_pair(dilation_rate, "dilation_rate")
        self.padding = padding_mode(padding, self.kernel_size)
        self.norm = norm
        self.use_bias = norm is None if use_bias is None else use_bias
        self.groups = positive(groups, "groups")
        self.deformable = deformable
        of_weights = {
            "kernel_initializer": kernel_initializer,
            "bias_initializer": bias_initializer,
            "kernel_regularizer": kernel_regularizer,
            "bias_regularizer": bias_regularizer,
            "kernel_constraint": kernel_constraint,
            "bias_constraint": bias_constraint,
        }
        # The kernel's initialiser first: each draws its seed when it is made.
        set_arguments(
            self,
            **of_weights,
            offset_initializer=offset_initializer,
            activation=activation,
        )
        self.input_spec = keras.InputSpec(ndim=4)
        kind, settings = keras.layers.Conv2D, {}
        if deformable:
            kind = DeformableConv2D
            settings["offset_initializer"] = self.offset_initializer
            settings["padding"] = self.padding
        # `call` uses its variables only: it pads, and folds the norm.
        self.conv = kind(
            self.filters,
            self.kernel_size,
            self.strides,
            dilation_rate=self.dilation_rate,
            groups=self.groups,
            use_bias=self.use_bias,
            data_format="channels_last",
            dtype=self.dtype_policy,
            name="conv",
            **{name: getattr(self, name) for name in of_weights},
            **settings,
        )
        self.norm_layer = None
        if norm is not None:
            self.norm_layer = NORMS[norm](dtype=self.dtype_policy, name="norm")

    def build(self, input_shape):
        channels = channels_of(input_shape, self)
        self.input_spec = keras.InputSpec(ndim=4, axes={-1: channels})
        # `call` pads the map, so its size is left open.
        self.conv.build((None, None, None, channels))
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
            cells = cells_around(self.kernel_size, self.dilation_rate, self.padding)
            outputs = conv2d(
                inputs,
                kernel,
                bias,
                self.strides,
                "same" if cells is None else cells,
                self.groups,
                self.dilation_rate,
            )
        if self.norm == "batch_norm":
            outputs = self.norm_layer(outputs, training=training)
        elif self.norm is not None and not is_folded:
            outputs = self.norm_layer(outputs)
        return self.activation(outputs)

    def compute_output_shape(self, input_shape):
        channels_of(input_shape, self)
        return convolved_shape(
            input_shape,
            self.filters,
            self.kernel_size,
            self.strides,
            self.dilation_rate,
            self.padding,
        )
