import keras
from keras import ops

from vfnet_tf.heads.conv_tower import ConvTower
from vfnet_tf.heads.level_head import LevelHead
from vfnet_tf.layers import Scale
from vfnet_tf.layers.conv_arguments import positive


@keras.saving.register_keras_serializable("vfnet_tf")
class DenseHead(LevelHead):
    """The head of FCOS, ATSS, RetinaNet and FoveaBox: two towers and their predictors.

    The detectors differ in these arguments, and in what the four numbers of a box mean,
    which the head need not know.

    Args:
        num_classes: int, K.
        filters: int, channels of the towers.
        num_convs: int, convolutions of each tower.
        norm: of the towers, as in `ConvNormAct`; with None their convolutions have biases.
        anchors_per_cell: int, A, predictions for each cell.
        centerness: `"box"` or `"class"`, the tower that predicts it, or None for none.
        level_scales: bool, a learned scalar for each level, times the box predictions.
        levels: names of the input levels, fine to coarse.
        strides: pixels per cell of each level; None: 2**n of a level named `"P<n>"`.
        prior_probability: score of every class before training.

    Input: dict of `[B, H, W, C]`. Output, in training and in inference alike: dict of
    dicts by level, all float32: `"class_logits"` `[B, H, W, A * K]`, anchor by anchor,
    `"box_predictions"` `[B, H, W, A * 4]` and, with `centerness`, `"centerness_logits"`
    `[B, H, W, A]`.
    """

    def __init__(
        self,
        num_classes=80,
        filters=256,
        num_convs=4,
        norm="group_norm",
        anchors_per_cell=1,
        centerness=None,
        level_scales=False,
        levels=("P3", "P4", "P5", "P6", "P7"),
        strides=None,
        prior_probability=0.01,
        **kwargs,
    ):
        super().__init__(num_classes, levels, strides, prior_probability, **kwargs)
        if centerness not in (None, "box", "class"):
            raise ValueError(
                "`centerness` must be 'box', 'class' or None. "
                f"Received: centerness={centerness!r}"
            )
        self.filters = filters
        self.num_convs = num_convs
        self.norm = norm
        self.anchors_per_cell = positive(anchors_per_cell, "anchors_per_cell")
        self.centerness = centerness
        self.level_scales = level_scales
        policy = {"dtype": self.dtype_policy}
        tower = {"num_convs": num_convs, "filters": filters, "norm": norm, **policy}
        self.class_tower = ConvTower(name="class_tower", **tower)
        self.box_tower = ConvTower(name="box_tower", **tower)

        self.class_predictor = self._class_predictor(anchors_per_cell * num_classes)
        self.box_predictor = self._conv(anchors_per_cell * 4, "box_predictor")
        if centerness is not None:
            self.centerness_predictor = self._conv(
                anchors_per_cell, "centerness_predictor"
            )
        self.scales = [
            Scale(name=f"scale_{level}", dtype="float32")
            for level in self.levels
            if level_scales
        ]

    def build(self, input_shapes):
        tower_shape = self._build_towers(input_shapes)
        self.class_predictor.build(tower_shape)
        self.box_predictor.build(tower_shape)
        if self.centerness is not None:
            self.centerness_predictor.build(tower_shape)
        for scale in self.scales:
            scale.build(())

    def level_scalars(self, index):
        return {"scale": self.scales[index].scale} if self.level_scales else {}

    def predict_level(self, features, scalars):
        towers = {"class": self.class_tower(features), "box": self.box_tower(features)}
        predictions = {
            "class_logits": self.class_predictor(towers["class"]),
            "box_predictions": self.box_predictor(towers["box"]),
        }
        if self.centerness is not None:
            logits = self.centerness_predictor(towers[self.centerness])
            predictions["centerness_logits"] = logits
        predictions = {n: ops.cast(p, "float32") for n, p in predictions.items()}
        if self.level_scales:
            predictions["box_predictions"] *= scalars["scale"]
        return predictions

    def channels(self):
        per_anchor = {"class_logits": self.num_classes, "box_predictions": 4}
        if self.centerness is not None:
            per_anchor["centerness_logits"] = 1
        return {name: self.anchors_per_cell * n for name, n in per_anchor.items()}
