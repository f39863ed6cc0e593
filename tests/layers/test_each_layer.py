"""Every layer, neck and head: config, dtypes, graphs, shapes and files."""

import keras
import numpy as np
import pytest
from keras import constraints, initializers, regularizers

from tests import contracts
from vfnet_tf.heads import DenseHead, RepPointsHead, VFNetHead
from vfnet_tf.heads.conv_tower import ConvTower
from vfnet_tf.layers import (
    ConvNormAct,
    DeformableConv2D,
    FoldedConv2D,
    FrozenBatchNorm,
    GroupNorm,
    Scale,
    StarDeformableConv2D,
)
from vfnet_tf.necks import FPN, PAFPN


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


MAP = noise(2, 6, 7, 8)
DISTANCES = np.random.default_rng(1).uniform(0, 3, (2, 6, 7, 4)).astype("float32")
STAGES = {"C3": noise(2, 9, 7, 12), "C4": noise(2, 5, 4, 16), "C5": noise(2, 3, 2, 20)}
LEVELS = {"P3": noise(2, 6, 5, 32), "P4": noise(2, 3, 3, 32)}
TWO = {"levels": tuple(LEVELS), "strides": (8, 16)}
#: The heads of FCOS and ATSS, of RetinaNet, and one with everything.
DENSE = {
    "FCOS": {"centerness": "box", "level_scales": True},
    "RetinaNet": {"norm": None, "anchors_per_cell": 9},
    "all": {"centerness": "class", "level_scales": True, "anchors_per_cell": 2},
}
#: name -> class, arguments, inputs
CASES = {
    "Scale": (Scale, {"initial_value": 1.5}, [MAP]),
    "FrozenBatchNorm": (FrozenBatchNorm, {}, [MAP]),
    "GroupNorm": (GroupNorm, {"groups": 2}, [MAP]),
    "FoldedConv2D": (
        FoldedConv2D,
        {"filters": 6, "kernel_size": 3, "padding": "same"},
        [MAP],
    ),
    **{
        f"ConvNormAct {norm}": (
            ConvNormAct,
            {"filters": 32, "kernel_size": 3, "strides": 2, "norm": norm},
            [MAP],
        )
        for norm in (None, "frozen_batch_norm", "batch_norm", "group_norm")
    },
    "DeformableConv2D v1": (
        DeformableConv2D,
        {"filters": 6, "modulated": False},
        [MAP],
    ),
    "DeformableConv2D v2": (
        DeformableConv2D,
        {"filters": 6, "strides": 2, "groups": 2, "use_bias": True},
        [MAP],
    ),
    "StarDeformableConv2D": (StarDeformableConv2D, {"filters": 3}, [MAP, DISTANCES]),
    "ConvTower": (ConvTower, {"num_convs": 2, "filters": 32}, [MAP]),
    "ConvTower 0": (ConvTower, {"num_convs": 0}, [MAP]),
    "FPN": (FPN, {"filters": 6}, [STAGES]),
    "FPN input": (FPN, {"filters": 6, "extra_from": "input"}, [STAGES]),
    "PAFPN": (PAFPN, {"filters": 32}, [STAGES]),
    "VFNetHead": (VFNetHead, {"filters": 32, "num_convs": 1, **TWO}, [LEVELS]),
    "RepPointsHead": (RepPointsHead, {"filters": 32, "num_convs": 1, **TWO}, [LEVELS]),
    **{
        f"DenseHead {kind}": (
            DenseHead,
            {"num_classes": 3, "filters": 32, "num_convs": 1, **TWO, **settings},
            [LEVELS],
        )
        for kind, settings in DENSE.items()
    },
}
each_case = pytest.mark.parametrize("case", CASES)
HEADS = (DenseHead, RepPointsHead, VFNetHead)


def make(case, **settings):
    cls, arguments, inputs = CASES[case]
    return cls(**arguments, **settings), inputs


def fill_of(case):
    """Heads have exponents: with large kernels their distances would be infinite."""
    is_head = CASES[case][0] in HEADS
    return contracts.randomise_kernels if is_head else contracts.randomise


def filled(case):
    layer, inputs = make(case)
    layer(*inputs)
    return fill_of(case)(layer), inputs


# The norms of PAFPN divide the single cell of P7 by nothing but its rounding.
@pytest.mark.parametrize("case", [case for case in CASES if case != "PAFPN"])
def test_half_precision_is_near_float32(case):
    cls, arguments, inputs = CASES[case]
    contracts.check_half_precision(
        lambda policy: cls(**arguments, dtype=policy),
        *inputs,
        # Offsets are float32, of a rounded map.
        tolerance=0.15 if cls is DeformableConv2D else 0.05,
        fill=fill_of(case),
        output="float32" if cls in HEADS else None,
    )


@contracts.on_tensorflow
@each_case
def test_it_runs_in_a_graph_of_unknown_sizes(case):
    layer, inputs = filled(case)
    contracts.check_graph(layer, *inputs)


@pytest.mark.backend
@each_case
def test_it_knows_the_shapes_of_its_outputs(case):
    layer, inputs = make(case)
    contracts.check_shape(layer, *inputs)


@each_case
def test_it_is_saved_and_loaded(tmp_path, case):
    layer, inputs = make(case)
    contracts.check_save_load(layer, *inputs, directory=tmp_path, fill=fill_of(case))


CONV = {
    "filters": 32,
    "use_bias": True,
    "groups": 4,
    "activation": keras.activations.relu,
    "kernel_initializer": initializers.RandomNormal(stddev=0.3),
    "bias_initializer": initializers.Constant(0.2),
    "offset_initializer": initializers.RandomNormal(stddev=0.4),
    "padding": "valid",
    "kernel_regularizer": regularizers.L2(0.1),
    "bias_regularizer": regularizers.L1(0.2),
    "kernel_constraint": constraints.MaxNorm(3),
    "bias_constraint": constraints.NonNeg(),
    "data_format": "channels_last",
}
NORMED = {**CONV, "kernel_size": (3, 5), "norm": "group_norm", "deformable": True}
DEFORMABLE = {**CONV, "kernel_size": 5, "deform_groups": 4, "modulated": False}
PYRAMID = {
    "filters": 8,
    "in_levels": ("C4", "C5"),
    "out_levels": ("P4", "P5", "P6"),
}
HEAD = {
    "num_classes": 7,
    "filters": 32,
    "num_convs": 2,
    "levels": tuple(LEVELS),
    "strides": (4, 8),
    "prior_probability": 0.1,
}
#: class -> sets of all its arguments; each is off its default in one of them
CONFIGS = {
    Scale: [{"initial_value": 0.5}],
    FrozenBatchNorm: [{"epsilon": 0.1}],
    GroupNorm: [{"groups": 4, "epsilon": 0.1}],
    FoldedConv2D: [{"epsilon": 0.1}],
    # Keras's convolution cannot have both strides and dilation.
    ConvNormAct: [
        {**NORMED, "strides": (2, 1), "dilation_rate": 1},
        {**NORMED, "strides": 1, "dilation_rate": (1, 2)},
    ],
    DeformableConv2D: [
        {**DEFORMABLE, "strides": 2, "dilation_rate": 1},
        {**DEFORMABLE, "strides": 1, "dilation_rate": 3},
    ],
    StarDeformableConv2D: [
        {"filters": 8, "kernel_initializer": initializers.RandomNormal(stddev=0.3)}
    ],
    ConvTower: [{"num_convs": 2, "filters": 8, "norm": None, "deformable_last": True}],
    FPN: [
        {
            **PYRAMID,
            "norm": "group_norm",
            "relu_before_extra": False,
            "extra_from": "input",
        }
    ],
    PAFPN: [{**PYRAMID, "norm": None, "deformable": False}],
    DenseHead: [
        {
            **HEAD,
            "norm": None,
            "anchors_per_cell": 3,
            "centerness": "class",
            "level_scales": True,
        }
    ],
    RepPointsHead: [{**HEAD, "point_gradient": 0.5, "moment_gradient": 0.2}],
    VFNetHead: [
        {
            **HEAD,
            "deformable_towers": True,
            "distance_units": (32.0, 64.0),
            "star_gradient": 0.5,
            "star": False,
            "refine": False,
        }
    ],
}


@pytest.mark.parametrize("cls", CONFIGS)
def test_its_config_keeps_every_argument(cls):
    base = {"name": "other", "dtype": "mixed_bfloat16"}
    if cls is FoldedConv2D:  # Keras's own arguments
        base.update(filters=6, kernel_size=(3, 3), strides=(2, 2))
    contracts.check_config(cls, *CONFIGS[cls], base=base)


#: What one class alone refuses: how it is built, and what the message must have.
REFUSED = [
    (lambda: ConvNormAct(4, 3, norm="layer_norm"), "norm=layer_norm"),
    (lambda: DeformableConv2D(4, groups=3), "groups=3, filters=4"),
    (
        lambda: DeformableConv2D(6, deform_groups=3).build(MAP.shape),
        "deform_groups=3, channels=8",
    ),
    (lambda: DeformableConv2D(6, groups=3).build(MAP.shape), "groups=3, channels=8"),
    (lambda: GroupNorm(groups=3).build(MAP.shape), "groups=3, channels=8"),
    (lambda: ConvTower(num_convs=-1), "num_convs=-1"),
    (lambda: FPN(extra_from="C5"), "extra_from='C5'"),
    (lambda: DenseHead(3, centerness="both"), "centerness='both'"),
    (lambda: DenseHead(3, anchors_per_cell=0), "anchors_per_cell=0"),
    (lambda: VFNetHead(3, star=False), "star=False, refine=True"),
    (lambda: VFNetHead(3, distance_units=(64,)), r"distance_units=\(64,\)"),
]


@pytest.mark.parametrize(("build", "message"), REFUSED, ids=[m for _, m in REFUSED])
def test_wrong_arguments_are_refused_by_name(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@contracts.on_tensorflow
@pytest.mark.parametrize("case", ["DeformableConv2D v2", "StarDeformableConv2D"])
def test_xla_compiles_it(case):
    import tensorflow as tf

    layer, inputs = filled(case)
    compiled = tf.function(layer, jit_compile=True)(*map(tf.constant, inputs))
    expected = contracts.to_numpy(layer(*inputs))
    contracts.assert_close_to_max(contracts.to_numpy(compiled), expected, 1e-5)
