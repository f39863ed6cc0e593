import math
import re

import keras

from vfnet_tf.layers import ConvNormAct
from vfnet_tf.layers.configs import ArgumentConfig
from vfnet_tf.layers.conv_arguments import positive
from vfnet_tf.layers.pyramid_levels import check_given, level_names, shapes_of
from vfnet_tf.layers.trainable_parts import TrainableParts
from vfnet_tf.ops.shared_trace import shared_trace


class LevelHead(ArgumentConfig, TrainableParts, keras.layers.Layer):
    """What all heads share: the same layers predict for every level of a pyramid.

    A subclass gives `channels` and `predict_level`, and `level_scalars` if the levels
    differ.

    Args:
        num_classes: int, K.
        levels: names of the input levels, fine to coarse.
        strides: pixels per cell of each level; None: 2**n of a level named `"P<n>"`.
        prior_probability: score of every class before training.

    Input: dict of `[B, H, W, C]`. Output, in training and in inference alike: dict of
    dicts by level, all float32.

    Raises:
        ValueError: for levels that are missing, doubled or of different channels, and
            for other arguments out of range.
    """

    def __init__(self, num_classes, levels, strides, prior_probability, **kwargs):
        super().__init__(**kwargs)
        self.num_classes = positive(num_classes, "num_classes")
        self.levels = level_names(levels, "levels")
        if not 0 < prior_probability < 1:
            raise ValueError(
                "`prior_probability` must be between 0 and 1. "
                f"Received: prior_probability={prior_probability}"
            )
        if strides is None:
            if not all(re.fullmatch(r"P\d+", level) for level in levels):
                raise ValueError(
                    "Levels of other names than 'P3', 'P4', ... need `strides`. "
                    f"Received: levels={levels}, strides=None"
                )
            strides = [2 ** int(level[1:]) for level in levels]
        if len(levels) != len(strides):
            raise ValueError(
                "`levels` and `strides` must be of one length. "
                f"Received: levels={levels}, strides={strides}"
            )
        self.strides = tuple(strides)
        if not all(stride > 0 for stride in self.strides):
            raise ValueError(f"`strides` must be > 0. Received: strides={strides}")
        self.prior_probability = prior_probability

    def channels(self):
        """Channels of each output, a dict by name."""
        raise NotImplementedError

    def level_scalars(self, index):
        """Scalars that level number `index` has for itself, a dict by name.

        Floats, or float32 variables without autocast, since the head reads them.
        """
        return {}

    def predict_level(self, features, scalars):
        """Outputs by name for one map `[B, H, W, C]` with the scalars of its level."""
        raise NotImplementedError

    def one_shape(self, input_shapes):
        """The shape of the finest level; all levels have its number of channels.

        Raises:
            ValueError: for levels that are missing, or of different channels.
        """
        shapes = shapes_of(input_shapes, self.levels, self)
        if len({shape[-1] for shape in shapes}) > 1:
            raise ValueError(
                f"{self.name} ({type(self).__name__}) must be given levels of one number "
                f"of channels. Received: {dict(zip(self.levels, shapes, strict=True))}"
            )
        return shapes[0]

    def call(self, inputs):
        check_given(inputs, self.levels, self)
        results = {name: {} for name in self.channels()}
        predict = shared_trace(self.predict_level, inputs[self.levels[0]])
        for index, level in enumerate(self.levels):
            outputs = predict(inputs[level], self.level_scalars(index))
            for name, value in outputs.items():
                results[name][level] = value
        return results

    def compute_output_shape(self, input_shapes):
        self.one_shape(input_shapes)
        return {
            name: {level: (*input_shapes[level][:-1], size) for level in self.levels}
            for name, size in self.channels().items()
        }

    def compute_output_spec(self, inputs, **kwargs):
        check_given(inputs, self.levels, self)
        shapes = {level: tuple(inputs[level].shape) for level in self.levels}
        return {
            name: {
                level: keras.KerasTensor(shape, "float32")
                for level, shape in by_level.items()
            }
            for name, by_level in self.compute_output_shape(shapes).items()
        }

    def _build_towers(self, input_shapes):
        """Builds `class_tower` and `box_tower`; returns the shape of their outputs."""
        input_shape = self.one_shape(input_shapes)
        self.class_tower.build(input_shape)
        self.box_tower.build(input_shape)
        return self.box_tower.compute_output_shape(input_shape)

    def _conv(self, filters, name, kernel_size=3, **settings):
        """A convolution drawn from N(0, 0.01), with a bias unless it has a norm."""
        return ConvNormAct(
            filters,
            kernel_size,
            # Each layer has one of its own: an initialiser repeats its values.
            kernel_initializer=keras.initializers.RandomNormal(stddev=0.01),
            name=name,
            dtype=self.dtype_policy,
            **settings,
        )

    def _class_predictor(self, filters, kernel_size=3):
        """A `_conv` whose scores are `prior_probability` before training."""
        odds = self.prior_probability / (1 - self.prior_probability)
        return self._conv(
            filters,
            "class_predictor",
            kernel_size,
            bias_initializer=keras.initializers.Constant(math.log(odds)),
        )
