import keras
from keras import ops

from vfnet_tf.layers import ConvNormAct
from vfnet_tf.necks.fpn import Pyramid


@keras.saving.register_keras_serializable("vfnet_tf")
class PAFPN(Pyramid):
    """Path aggregation pyramid of VFNet-X (PANet, Liu et al., CVPR 2018; paper, Sec. 5.3).

    Top-down sums as in `FPN`, then a bottom-up path: every level gets a stride-2
    convolution of the finer one added. P3-P5 leave through a deformable convolution
    each, P6 is a stride-2 convolution of P5 and P7 one of ReLU(P6). All convolutions
    but the 1x1 laterals have the norm in place of a bias.

    Args:
        filters: int, channels of every output.
        in_levels: names of the inputs, fine to coarse.
        out_levels: names of the outputs, fine to coarse.
        norm: as in `ConvNormAct`.
        deformable: bool, modulated deformable convolutions (DCNv2) at the end.

    Input, output and errors: see `FPN`.
    """

    def __init__(
        self,
        filters=384,
        in_levels=("C3", "C4", "C5"),
        out_levels=("P3", "P4", "P5", "P6", "P7"),
        norm="group_norm",
        deformable=True,
        **kwargs,
    ):
        super().__init__(filters, in_levels, out_levels, **kwargs)
        self.norm = norm
        self.deformable = deformable
        split = len(self.in_levels)

        def conv(name, kernel_size=3, strides=1, norm=norm, deformable=False):
            return ConvNormAct(
                filters,
                kernel_size,
                strides,
                norm=norm,
                deformable=deformable,
                kernel_initializer="glorot_uniform",
                # The official code initialises these like the other kernels of the neck:
                # docs/parity.md, S9.
                offset_initializer="glorot_uniform",
                dtype=self.dtype_policy,
                name=name,
            )

        self.laterals = [
            conv(f"lateral_{level}", 1, norm=None) for level in self.in_levels
        ]
        self.outputs = [
            conv(f"output_{level}", strides=1 if number < split else 2)
            for number, level in enumerate(self.out_levels)
        ]
        self.downsamples = [
            conv(f"downsample_{level}", strides=2)
            for level in self.out_levels[: split - 1]
        ]
        self.final_outputs = [
            conv(f"final_{level}", deformable=deformable)
            for level in self.out_levels[:split]
        ]

    def build(self, input_shapes):
        super().build(input_shapes)
        for layer in (*self.outputs, *self.downsamples, *self.final_outputs):
            layer.build((None, None, None, self.filters))

    def call(self, inputs):
        split = len(self.in_levels)
        levels = self.top_down(inputs)
        levels = [
            output(level)
            for output, level in zip(self.outputs[:split], levels, strict=True)
        ]
        for index, downsample in enumerate(self.downsamples):
            # The finer level is a bottom-up sum already.
            levels[index + 1] = levels[index + 1] + downsample(levels[index])
        results = [
            final(level)
            for final, level in zip(self.final_outputs, levels, strict=True)
        ]
        for number, output in enumerate(self.outputs[split:]):
            x = ops.relu(results[-1]) if number > 0 else results[-1]
            results.append(output(x))
        return dict(zip(self.out_levels, results, strict=True))
