import keras
from keras import ops

from vfnet_tf.heads.conv_tower import ConvTower
from vfnet_tf.heads.level_head import LevelHead
from vfnet_tf.ops.boxes import points_to_moment_boxes
from vfnet_tf.ops.deform_conv import deform_conv


@keras.saving.register_keras_serializable("vfnet_tf")
class RepPointsHead(LevelHead):
    """The head of RepPoints (Yang et al., ICCV 2019, Sec. 3.3), with moment boxes.

    Two towers, shared by all levels. The localization branch predicts nine points about
    each cell; deformable convolutions on these points give the class scores and shifts
    that refine the points. The box of a set of points is its mean and, each way, its
    standard deviation times a learned factor.

    Args:
        num_classes: int, K.
        filters: int, channels of the towers and the convolutions on points.
        num_convs: int, convolutions of each tower.
        point_gradient: share of the gradient that passes from the deformable
            convolutions to the first points.
        moment_gradient: share of the gradient that the learned factors get.
        levels: names of the input levels, fine to coarse.
        strides: pixels per cell of each level; None: 2**n of a level named `"P<n>"`.
        prior_probability: score of every class before training.

    Input: dict of `[B, H, W, C]`. Output, in training and in inference alike: dict of
    dicts by level, all float32: `"class_logits"` `[B, H, W, K]`; `"point_shifts"` and
    `"refined_point_shifts"` `[B, H, W, 18]`, `(dy, dx)` of nine points from the cell's
    own, in strides; `"box_shifts"` and `"refined_box_shifts"` `[B, H, W, 4]`,
    `(x1, y1, x2, y2)` of their boxes from the same point, in strides.
    """

    def __init__(
        self,
        num_classes=80,
        filters=256,
        num_convs=3,
        point_gradient=0.1,
        moment_gradient=0.01,
        levels=("P3", "P4", "P5", "P6", "P7"),
        strides=None,
        prior_probability=0.01,
        **kwargs,
    ):
        super().__init__(num_classes, levels, strides, prior_probability, **kwargs)
        self.filters = filters
        self.num_convs = num_convs
        self.point_gradient = point_gradient
        self.moment_gradient = moment_gradient
        policy = {"dtype": self.dtype_policy}
        self.class_tower = ConvTower(num_convs, filters, name="class_tower", **policy)
        self.box_tower = ConvTower(num_convs, filters, name="box_tower", **policy)

        self.class_predictor = self._class_predictor(num_classes, 1)
        self.point_conv = self._conv(filters, "point_conv", activation="relu")
        self.point_predictor = self._conv(18, "point_predictor", 1)
        self.refine_predictor = self._conv(18, "refine_predictor", 1)

    def build(self, input_shapes):
        tower_shape = self._build_towers(input_shapes)
        shape = (3, 3, tower_shape[-1], self.filters)
        # Kernels of two deformable convolutions that share the predicted points.
        self.class_kernel, self.refine_kernel = (
            self.add_weight(
                shape, keras.initializers.RandomNormal(stddev=0.01), name=name
            )
            for name in ("class_kernel", "refine_kernel")
        )
        # Logarithms of the factors (x, y), float32 in half precision, too.
        self.moment_transfer = self.add_weight(
            (2,), "zeros", dtype="float32", name="moment_transfer", autocast=False
        )
        self.point_conv.build(tower_shape)
        last_shape = (*tower_shape[:-1], self.filters)
        for predictor in (
            self.point_predictor,
            self.refine_predictor,
            self.class_predictor,
        ):
            predictor.build(last_shape)

    def predict_level(self, features, scalars):
        class_features = self.class_tower(features)
        box_features = self.box_tower(features)
        shifts = self.point_predictor(self.point_conv(box_features))
        shifts = ops.cast(shifts, "float32")

        share = self.point_gradient
        samples = (1 - share) * ops.stop_gradient(shifts) + share * shifts
        offsets = samples - ops.convert_to_tensor(_GRID, dtype="float32")

        def on_points(features, kernel):
            kernel = ops.cast(kernel, self.compute_dtype)
            return ops.relu(deform_conv(features, offsets, kernel, padding=1))

        refined = self.refine_predictor(on_points(box_features, self.refine_kernel))
        refined = ops.cast(refined, "float32") + ops.stop_gradient(shifts)
        logits = self.class_predictor(on_points(class_features, self.class_kernel))
        return {
            "class_logits": ops.cast(logits, "float32"),
            "point_shifts": shifts,
            "refined_point_shifts": refined,
            "box_shifts": self._boxes(shifts),
            "refined_box_shifts": self._boxes(refined),
        }

    def _boxes(self, shifts):
        share = self.moment_gradient
        transfer = ops.convert_to_tensor(self.moment_transfer)
        transfer = (1 - share) * ops.stop_gradient(transfer) + share * transfer
        return points_to_moment_boxes(shifts, ops.exp(transfer))

    def channels(self):
        return {
            "class_logits": self.num_classes,
            "point_shifts": 18,
            "refined_point_shifts": 18,
            "box_shifts": 4,
            "refined_box_shifts": 4,
        }


#: `(dy, dx)` of the nine taps of a 3x3 convolution, row by row.
_GRID = [shift for y in (-1, 0, 1) for x in (-1, 0, 1) for shift in (y, x)]
