import keras
from keras import ops

from vfnet_tf.ops.convolution import add_bias, pad_symmetric
from vfnet_tf.ops.deform_conv import deform_conv


@keras.saving.register_keras_serializable("vfnet_tf")
class DeformableConv2D(keras.layers.Layer):
    """Deformable convolution that predicts its own offsets.

    Version 1 (Dai et al., ICCV 2017, Eq. 2) moves each tap by a learned `(dy, dx)`;
    version 2 (Zhu et al., CVPR 2019, Eq. 1) also multiplies it by a mask
    `sigmoid(logit)` in (0, 1). Both come from a plain convolution of the same kernel
    size and stride, which starts at zero: before training the layer is a plain
    convolution (with a mask, half of one).

    Args:
        filters: int.
        kernel_size: int, odd.
        strides: int.
        dilation_rate: int.
        groups: int, groups of the main convolution.
        deform_groups: int, groups of input channels with offsets of their own.
        modulated: bool, True for version 2.
        use_bias: bool, bias of the main convolution.
        kernel_initializer, bias_initializer: as in `keras.layers.Conv2D`.
        offset_initializer: of the kernel that predicts offsets and masks; zeros, as in
            the papers, start without any.

    Shapes: `[B, H, W, C]` to `[B, ceil(H / strides), ceil(W / strides), filters]`; padding
    is symmetric and keeps the size at stride 1. Outside the map counts as 0. Offsets and
    masks are float32 under mixed precision.
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
        **kwargs,
    ):
        super().__init__(**kwargs)
        if kernel_size % 2 == 0:
            raise ValueError(
                f"`kernel_size` must be odd. Received: kernel_size={kernel_size}"
            )
        if filters % groups:
            raise ValueError(
                "`groups` must divide `filters`. "
                f"Received: groups={groups}, filters={filters}"
            )
        self.filters = filters
        self.kernel_size = kernel_size
        self.strides = strides
        self.dilation_rate = dilation_rate
        self.groups = groups
        self.deform_groups = deform_groups
        self.modulated = modulated
        self.use_bias = use_bias
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.offset_initializer = keras.initializers.get(offset_initializer)
        self.padding = dilation_rate * (kernel_size - 1) // 2
        self._num_offsets = 2 * deform_groups * kernel_size**2
        self.conv_offset = keras.layers.Conv2D(
            self._num_offsets * 3 // 2 if modulated else self._num_offsets,
            kernel_size,
            strides,
            padding="valid",
            dilation_rate=dilation_rate,
            kernel_initializer=self.offset_initializer,
            dtype="float32",
            name="conv_offset",
        )

    def build(self, input_shape):
        channels = input_shape[-1]
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
            (
                self.kernel_size,
                self.kernel_size,
                channels // self.groups,
                self.filters,
            ),
            self.kernel_initializer,
            name="kernel",
        )
        self.bias = None
        if self.use_bias:
            self.bias = self.add_weight(
                (self.filters,), self.bias_initializer, name="bias"
            )

    def call(self, inputs):
        kernel = ops.convert_to_tensor(self.kernel)
        bias = None if self.bias is None else ops.convert_to_tensor(self.bias)
        return self.convolve(inputs, kernel, bias)

    def convolve(self, inputs, kernel, bias=None):
        """The layer with another kernel in place of its own, e.g. one with a norm in it.

        Args:
            inputs: float `[B, H, W, C]`.
            kernel: of the shape of the layer's own.
            bias: float `[filters]` or None.
        """
        offsets = self.conv_offset(pad_symmetric(inputs, self.padding))
        mask = None
        if self.modulated:
            mask = ops.sigmoid(offsets[..., self._num_offsets :])
            offsets = offsets[..., : self._num_offsets]
        outputs = deform_conv(
            inputs,
            offsets,
            kernel,
            mask,
            strides=self.strides,
            padding=self.padding,
            dilation=self.dilation_rate,
            groups=self.groups,
        )
        return outputs if bias is None else add_bias(outputs, bias)

    def compute_output_shape(self, input_shape):
        sides = [s and -(-s // self.strides) for s in input_shape[1:3]]
        return (input_shape[0], *sides, self.filters)

    def get_config(self):
        return {
            **super().get_config(),
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "strides": self.strides,
            "dilation_rate": self.dilation_rate,
            "groups": self.groups,
            "deform_groups": self.deform_groups,
            "modulated": self.modulated,
            "use_bias": self.use_bias,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
            "offset_initializer": keras.initializers.serialize(self.offset_initializer),
        }
