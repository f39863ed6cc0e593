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
from vfnet_tf.ops.convolution import add_bias, pad_symmetric
from vfnet_tf.ops.deform_conv import deform_conv
from vfnet_tf.ops.shapes import as_pair, sizes_of


@keras.saving.register_keras_serializable("vfnet_tf")
class DeformableConv2D(ArgumentConfig, keras.layers.Layer):
    """Deformable convolution that predicts its own offsets.

    Version 1 (Dai et al., ICCV 2017, Eq. 2) moves each tap by a learned `(dy, dx)`;
    version 2 (Zhu et al., CVPR 2019, Eq. 1) also multiplies it by a mask
    `sigmoid(logit)` in (0, 1). Both come from a plain convolution of the same kernel
    size and stride, which starts at zero: before training the layer is a plain
    convolution (with a mask, half of one).

    Args:
        filters: int.
        kernel_size: int or pair for rows and columns; odd, unless `padding` is `"same"`
            or `"valid"`.
        strides, dilation_rate: int or pair; one of them is 1.
        groups: int, groups of the main convolution.
        deform_groups: int, groups of input channels with offsets of their own.
        modulated: bool, True for version 2.
        use_bias: bool, bias of the main convolution.
        padding: `"symmetric"`, by the same number of cells on every side, as in PyTorch;
            or `"same"` or `"valid"`, as in Keras.
        activation, kernel_initializer, bias_initializer, kernel_regularizer,
            bias_regularizer, kernel_constraint, bias_constraint: as in
            `keras.layers.Conv2D`.
        data_format: `"channels_last"` or None.
        offset_initializer: of the kernel that predicts offsets and masks; zeros, as in
            the papers, start without any.

    Shapes: `[B, H, W, C]` to `[B, ceil(H / strides), ceil(W / strides), filters]`, less by
    the kernel with `"valid"`. Outside the map counts as 0. Offsets and masks are float32
    under mixed precision.

    Raises:
        ValueError: for arguments out of range, and for anything but one map of known
            channels.
    """

    def __init__(
        self,
        filters,
        kernel_size=3,
        strides=1,
        dilation_rate=1,
        groups=1,
        deform_groups=1,
        modulated=True,
        use_bias=False,
        kernel_initializer="glorot_uniform",
        bias_initializer="zeros",
        offset_initializer="zeros",
        padding="symmetric",
        activation=None,
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
        filters, groups = positive(filters, "filters"), positive(groups, "groups")
        if filters % groups:
            raise ValueError(
                "`groups` must divide `filters`. "
                f"Received: groups={groups}, filters={filters}"
            )
        self.filters = filters
        self.kernel_size = int_or_pair(kernel_size, "kernel_size")
        self.strides = int_or_pair(strides, "strides")
        self.dilation_rate = int_or_pair(dilation_rate, "dilation_rate")
        self.groups = groups
        self.deform_groups = positive(deform_groups, "deform_groups")
        self.modulated = modulated
        self.use_bias = use_bias
        self.padding = padding_mode(padding, self.kernel_size)
        set_arguments(
            self,
            kernel_initializer=kernel_initializer,
            bias_initializer=bias_initializer,
            offset_initializer=offset_initializer,
            activation=activation,
            kernel_regularizer=kernel_regularizer,
            bias_regularizer=bias_regularizer,
            kernel_constraint=kernel_constraint,
            bias_constraint=bias_constraint,
        )
        #: zero cells around the map; None where its size decides
        self.cells = cells_around(self.kernel_size, self.dilation_rate, self.padding)
        self.input_spec = keras.InputSpec(ndim=4)
        #: channels of the offsets, after which the masks' come
        self.num_offsets = 2 * deform_groups * math.prod(as_pair(self.kernel_size))
        self.conv_offset = keras.layers.Conv2D(
            self.num_offsets * 3 // 2 if modulated else self.num_offsets,
            self.kernel_size,
            self.strides,
            padding="same" if self.padding == "same" else "valid",
            data_format="channels_last",
            dilation_rate=self.dilation_rate,
            kernel_initializer=self.offset_initializer,
            dtype="float32",
            name="conv_offset",
        )

    def build(self, input_shape):
        channels = channels_of(input_shape, self)
        self.input_spec = keras.InputSpec(ndim=4, axes={-1: channels})
        for name, value in (
            ("groups", self.groups),
            ("deform_groups", self.deform_groups),
        ):
            if channels % value:
                raise ValueError(
                    f"`{name}` must divide the input channels. "
                    f"Received: {name}={value}, channels={channels}"
                )
        self.conv_offset.build((None, None, None, channels))  # padded in `call`
        self.kernel = self.add_weight(
            (*as_pair(self.kernel_size), channels // self.groups, self.filters),
            self.kernel_initializer,
            regularizer=self.kernel_regularizer,
            constraint=self.kernel_constraint,
            name="kernel",
        )
        self.bias = None
        if self.use_bias:
            self.bias = self.add_weight(
                (self.filters,),
                self.bias_initializer,
                regularizer=self.bias_regularizer,
                constraint=self.bias_constraint,
                name="bias",
            )

    def call(self, inputs):
        kernel = ops.convert_to_tensor(self.kernel)
        bias = None if self.bias is None else ops.convert_to_tensor(self.bias)
        return self.activation(self.convolve(inputs, kernel, bias))

    def convolve(self, inputs, kernel, bias=None):
        """The layer's convolution, without its activation, by a given kernel.

        Args:
            inputs: float `[B, H, W, C]`.
            kernel: float, of the shape of the layer's own; e.g. one with a folded norm.
            bias: float `[filters]` or None.

        Returns:
            `[B, Ho, Wo, filters]` of the dtype of `inputs`.
        """
        cells, padded = self.cells, inputs
        if cells is None:
            cells = self._cells_before(inputs)
        elif any(cells):
            padded = pad_symmetric(inputs, cells)
        offsets = self.conv_offset(padded)
        mask = None
        if self.modulated:
            mask = ops.sigmoid(offsets[..., self.num_offsets :])
            offsets = offsets[..., : self.num_offsets]
        outputs = deform_conv(
            inputs,
            offsets,
            kernel,
            mask,
            strides=self.strides,
            padding=cells,
            dilation=self.dilation_rate,
            groups=self.groups,
        )
        return outputs if bias is None else add_bias(outputs, bias)

    def _cells_before(self, inputs):
        """Zero cells above and on the left with `"same"`: half of all, rounded down."""
        cells = []
        for size, kernel, stride, dilation in zip(
            sizes_of(inputs)[1:3],
            *map(as_pair, (self.kernel_size, self.strides, self.dilation_rate)),
            strict=True,
        ):
            missing = (-(-size // stride) - 1) * stride + dilation * (kernel - 1) + 1
            missing = missing - size
            is_known = isinstance(size, int)
            cells.append(
                (max(missing, 0) if is_known else ops.maximum(missing, 0)) // 2
            )
        return cells

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
