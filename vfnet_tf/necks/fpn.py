import keras
from keras import ops

from vfnet_tf.layers import ConvNormAct
from vfnet_tf.layers.configs import ArgumentConfig
from vfnet_tf.layers.pyramid_levels import check_given, level_names, shapes_of
from vfnet_tf.layers.trainable_parts import TrainableParts
from vfnet_tf.ops.shapes import sizes_of


class Pyramid(ArgumentConfig, TrainableParts, keras.layers.Layer):
    """What `FPN` and `PAFPN` share: levels, shapes and the top-down sums.

    A subclass makes `laterals`, a convolution for each input.

    Args and errors: see `FPN`.
    """

    def __init__(self, filters, in_levels, out_levels, **kwargs):
        super().__init__(**kwargs)
        self.in_levels = level_names(in_levels, "in_levels")
        self.out_levels = level_names(out_levels, "out_levels")
        if len(out_levels) < len(in_levels):
            raise ValueError(
                "`out_levels` must not be fewer than `in_levels`. Received: "
                f"out_levels={self.out_levels}, in_levels={self.in_levels}"
            )
        self.filters = filters

    def build(self, input_shapes):
        shapes = shapes_of(input_shapes, self.in_levels, self)
        for shape, lateral in zip(shapes, self.laterals, strict=True):
            lateral.build(shape)

    def top_down(self, inputs):
        """Each level's lateral convolution plus the upsampled sum of the coarser levels."""
        check_given(inputs, self.in_levels, self)
        levels = [
            lateral(inputs[level])
            for level, lateral in zip(self.in_levels, self.laterals, strict=True)
        ]
        for index in reversed(range(len(levels) - 1)):
            levels[index] = add_upsampled(levels[index], levels[index + 1])
        return levels

    def compute_output_shape(self, input_shapes):
        given = shapes_of(input_shapes, self.in_levels, self)
        shapes = {}
        for number, level in enumerate(self.out_levels):
            if number < len(given):
                shape = (*given[number][:-1], self.filters)
            else:
                sides = [s and -(-s // 2) for s in shape[1:3]]
                shape = (shape[0], *sides, self.filters)
            shapes[level] = shape
        return shapes


@keras.saving.register_keras_serializable("vfnet_tf")
class FPN(Pyramid):
    """Feature pyramid P3-P7 from C3-C5 (Lin et al., CVPR 2017; FCOS, Sec. 3.2).

    P3-P5 are 3x3 convolutions of the top-down sums; P6 is a stride-2 convolution of P5
    (or C5) and P7 one of ReLU(P6). Convolutions have biases and no norm by default.

    Args:
        filters: int, channels of every output.
        in_levels: names of the inputs, fine to coarse.
        out_levels: names of the outputs, fine to coarse.
        relu_before_extra: ReLU between the extra levels (not before the first).
        extra_from: `"output"`, the first extra level is a convolution of the last one of
            the others, or `"input"`, of the last input (RetinaNet).
        norm: as in `ConvNormAct`.

    Input: dict of `[B, H, W, C]`, from which `in_levels` are taken. Output: dict of
    `[B, H, W, filters]`, each level half the size of the one before, rounded up.

    Raises:
        ValueError: for levels that are missing, doubled or fewer than the inputs, and for
            maps that are not each half the finer one, as far as their sizes are known.
    """

    def __init__(
        self,
        filters=256,
        in_levels=("C3", "C4", "C5"),
        out_levels=("P3", "P4", "P5", "P6", "P7"),
        relu_before_extra=True,
        extra_from="output",
        norm=None,
        **kwargs,
    ):
        super().__init__(filters, in_levels, out_levels, **kwargs)
        if extra_from not in ("output", "input"):
            raise ValueError(
                "`extra_from` must be 'output' or 'input'. "
                f"Received: extra_from={extra_from!r}"
            )
        self.relu_before_extra = relu_before_extra
        self.extra_from = extra_from
        self.norm = norm
        settings = {
            "norm": norm,
            "kernel_initializer": "glorot_uniform",
            "dtype": self.dtype_policy,
        }
        self.laterals = [
            ConvNormAct(filters, 1, name=f"lateral_{level}", **settings)
            for level in self.in_levels
        ]
        self.outputs = [
            ConvNormAct(
                filters,
                3,
                strides=1 if number < len(self.in_levels) else 2,
                name=f"output_{level}",
                **settings,
            )
            for number, level in enumerate(self.out_levels)
        ]

    def build(self, input_shapes):
        super().build(input_shapes)
        for number, output in enumerate(self.outputs):
            shape = (None, None, None, self.filters)
            if number == len(self.in_levels) and self.extra_from == "input":
                shape = input_shapes[self.in_levels[-1]]
            output.build(shape)

    def call(self, inputs):
        levels = self.top_down(inputs)
        split = len(levels)
        results = [
            output(level)
            for output, level in zip(self.outputs[:split], levels, strict=True)
        ]
        for number, output in enumerate(self.outputs[split:]):
            x = results[-1]
            if number == 0 and self.extra_from == "input":
                x = inputs[self.in_levels[-1]]
            if number > 0 and self.relu_before_extra:
                x = ops.relu(x)
            results.append(output(x))
        return dict(zip(self.out_levels, results, strict=True))


def add_upsampled(fine, coarse):
    """`fine` plus `coarse`, each of whose cells is repeated to 2 x 2 cells.

    It is nearest-neighbour resizing, since each level is half the finer one, rounded up.
    """
    for size, half in zip(fine.shape[1:3], coarse.shape[1:3], strict=True):
        if None not in (size, half) and half != -(-size // 2):
            raise ValueError(
                "Each level must be half the finer one, rounded up. Received: maps of "
                f"the shapes {tuple(fine.shape)} and {tuple(coarse.shape)}"
            )
    height, width = sizes_of(fine)[1:3]
    upsampled = ops.repeat(ops.repeat(coarse, 2, axis=1), 2, axis=2)
    return fine + upsampled[:, :height, :width]
