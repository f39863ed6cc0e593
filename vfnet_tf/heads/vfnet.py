import keras
from keras import ops

from vfnet_tf.heads.conv_tower import ConvTower
from vfnet_tf.heads.level_head import LevelHead
from vfnet_tf.layers import Scale, StarDeformableConv2D


@keras.saving.register_keras_serializable("vfnet_tf")
class VFNetHead(LevelHead):
    """The head of VarifocalNet (paper, Sec. 4.5 and Fig. 3).

    Two towers, shared by all levels. The localization branch predicts distances, then
    factors that refine them from the star of those distances; the classification branch
    predicts the IoU-aware classification score from the same star.

    Args:
        num_classes: int.
        filters: int, channels of the towers.
        num_convs: int, convolutions of each tower.
        deformable_towers: bool, the last convolution of each tower is a deformable one.
        levels: names of the input levels, fine to coarse.
        strides: pixels per cell of each level; None: 2**n of a level named `"P<n>"`.
        distance_units: pixels that the distance 1 stands for on each level. None: 8
            strides, the upper regress ranges of FCOS with the last one doubled.
        star_gradient: share of the gradient that passes from the star's sampling points
            to the initial distances (0.1 in the official code).
        prior_probability: score of every class before training.
        star: bool; without star convolutions a plain convolution with norm and ReLU
            takes the place of the one for the scores (the paper's raw VFNet).
        refine: bool, refine the distances, which needs the star.

    Input: dict of `[B, H, W, C]`. Output, in training and in inference alike: dict of
    dicts by level, all float32: `"class_logits"` `[B, H, W, K]`, `"distances"` and,
    with `refine`, `"refined_distances"` `[B, H, W, 4]`, `(left, top, right, bottom)` in
    pixels.
    """

    def __init__(
        self,
        num_classes=80,
        filters=256,
        num_convs=3,
        deformable_towers=False,
        levels=("P3", "P4", "P5", "P6", "P7"),
        strides=None,
        distance_units=None,
        star_gradient=0.1,
        prior_probability=0.01,
        star=True,
        refine=True,
        **kwargs,
    ):
        super().__init__(num_classes, levels, strides, prior_probability, **kwargs)
        if distance_units is None:
            distance_units = [8.0 * stride for stride in self.strides]
        if len(distance_units) != len(levels):
            raise ValueError(
                "`levels` and `distance_units` must be of one length. "
                f"Received: levels={levels}, distance_units={distance_units}"
            )
        if refine and not star:
            raise ValueError(
                "`refine` needs the star convolution. Received: star=False, refine=True"
            )
        self.filters = filters
        self.num_convs = num_convs
        self.deformable_towers = deformable_towers
        self.distance_units = tuple(distance_units)
        self.star_gradient = star_gradient
        self.star = star
        self.refine = refine
        policy = {"dtype": self.dtype_policy}

        tower = {"deformable_last": deformable_towers, **policy}
        self.class_tower = ConvTower(num_convs, filters, name="class_tower", **tower)
        self.box_tower = ConvTower(num_convs, filters, name="box_tower", **tower)
        # For the initial distances only; the star convolutions read the tower.
        normed = {"norm": "group_norm", "activation": "relu"}
        self.box_conv = self._conv(filters, "box_conv", **normed)
        self.box_predictor = self._conv(4, "box_predictor")
        if star:
            self.class_star = self._star("class_star")
        else:
            self.class_conv = self._conv(filters, "class_conv", **normed)
        if refine:
            self.box_star = self._star("box_star")
            self.refine_predictor = self._conv(4, "refine_predictor")
        self.class_predictor = self._class_predictor(num_classes)
        self.scales = [
            Scale(name=f"scale_{level}", dtype="float32") for level in self.levels
        ]
        self.refine_scales = [
            Scale(name=f"refine_scale_{level}", dtype="float32")
            for level in self.levels
            if refine
        ]

    def _star(self, name):
        return StarDeformableConv2D(
            self.filters,
            # Each layer has one of its own: an initialiser repeats its values.
            kernel_initializer=keras.initializers.RandomNormal(stddev=0.01),
            name=name,
            dtype=self.dtype_policy,
        )

    def build(self, input_shapes):
        tower_shape = self._build_towers(input_shapes)
        (self.class_star if self.star else self.class_conv).build(tower_shape)
        self.box_conv.build(tower_shape)
        last_shape = (*tower_shape[:-1], self.filters)
        self.box_predictor.build(last_shape)
        self.class_predictor.build(last_shape)
        if self.refine:
            self.box_star.build(tower_shape)
            self.refine_predictor.build(last_shape)
        for scale in self.scales + self.refine_scales:
            scale.build(())

    def level_scalars(self, index):
        scalars = {
            "unit": self.distance_units[index],
            "stride": self.strides[index],
            "scale": self.scales[index].scale,
        }
        if self.refine:
            scalars["refine_scale"] = self.refine_scales[index].scale
        return scalars

    def predict_level(self, features, scalars):
        class_features = self.class_tower(features)
        box_features = self.box_tower(features)

        # float32 before exp: float16 overflows at e^11, and bfloat16 has 3 digits.
        raw = ops.cast(self.box_predictor(self.box_conv(box_features)), "float32")
        distances = ops.exp(raw * scalars["scale"]) * scalars["unit"]
        results = {"distances": distances}

        if self.star:
            # The distances, with a tenth of their gradient.
            share = self.star_gradient
            star = (1 - share) * ops.stop_gradient(distances) + share * distances
            star = star / scalars["stride"]
            class_features = ops.relu(self.class_star(class_features, star))
        else:
            class_features = self.class_conv(class_features)
        if self.refine:
            raw = self.refine_predictor(ops.relu(self.box_star(box_features, star)))
            raw = ops.cast(raw, "float32")
            factors = ops.exp(raw * scalars["refine_scale"])
            results["refined_distances"] = factors * ops.stop_gradient(distances)
        logits = self.class_predictor(class_features)
        return {"class_logits": ops.cast(logits, "float32"), **results}

    def channels(self):
        channels = {"class_logits": self.num_classes, "distances": 4}
        if self.refine:
            channels["refined_distances"] = 4
        return channels
