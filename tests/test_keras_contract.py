"""Keras's own contract for layers, losses and all that it saves."""

import keras
import pytest
from keras.src.testing import TestCase

import vfnet_tf
from vfnet_tf import assigners, box_coders, layers, losses
from vfnet_tf.backbones.res2net import _ScaleSplit, _SymmetricAveragePool
from vfnet_tf.backbones.resnet import SymmetricMaxPool
from vfnet_tf.heads.conv_tower import ConvTower

MAP = (2, 5, 6, 4)
OF_6 = (2, 5, 6, 6)

#: class, arguments, shape of the input, shape of the output, trained weights, others
LAYERS = [
    (layers.ConvNormAct, {"filters": 6, "kernel_size": 3}, MAP, OF_6, 2, 0),
    (
        layers.ConvNormAct,
        {
            "filters": 32,
            "kernel_size": (3, 1),
            "strides": (2, 1),
            "norm": "group_norm",
            "activation": "relu",
            "deformable": True,
            "padding": "same",
            "kernel_regularizer": "l2",
        },
        MAP,
        (2, 3, 6, 32),
        5,
        0,
    ),
    *(
        (layers.ConvNormAct, {"filters": 6, "kernel_size": 1, "norm": norm})
        + (MAP, OF_6, 3, 2)
        for norm in ("frozen_batch_norm", "batch_norm")
    ),
    (layers.DeformableConv2D, {"filters": 6, "use_bias": True}, MAP, OF_6, 4, 0),
    (
        layers.StarDeformableConv2D,
        {"filters": 6},
        {"features_shape": MAP, "distances_shape": MAP},
        OF_6,
        1,
        0,
    ),
    (
        layers.FoldedConv2D,
        {"filters": 6, "kernel_size": 3, "padding": "same"},
        MAP,
        OF_6,
        3,
        2,
    ),
    (layers.FrozenBatchNorm, {}, MAP, MAP, 2, 2),
    (layers.GroupNorm, {"groups": 2}, MAP, MAP, 2, 0),
    (layers.Scale, {"initial_value": 2.0}, MAP, MAP, 1, 0),
    (ConvTower, {"num_convs": 2, "filters": 32}, MAP, (2, 5, 6, 32), 6, 0),
    (SymmetricMaxPool, {}, MAP, (2, 3, 3, 4), 0, 0),
    (_SymmetricAveragePool, {}, MAP, (2, 3, 3, 4), 0, 0),
]


@pytest.mark.backend
@pytest.mark.parametrize("row", LAYERS, ids=lambda row: row[0].__name__)
def test_layers_keep_keras_contract(row):
    cls, arguments, given, expected, trained, others = row
    TestCase().run_layer_test(
        cls,
        arguments,
        input_shape=given,
        expected_output_shape=expected,
        expected_num_trainable_weights=trained,
        expected_num_non_trainable_weights=others,
        expected_num_seed_generators=0,
        expected_num_losses=int("kernel_regularizer" in arguments),
        # Without weights there are no gradients; the check supports one input only.
        run_training_check=trained > 0 and not isinstance(given, dict),
    )


def test_a_split_keeps_keras_contract():
    TestCase().run_layer_test(
        _ScaleSplit,
        {"scales": 2},
        input_shape=MAP,
        expected_output_shape=[(2, 5, 6, 2)] * 2,
        run_training_check=False,
    )


LEVELS = {"levels": ("P3", "P4"), "strides": (8, 16)}
SMALL = {"filters": 32, "num_convs": 1}
#: What is saved and made again from its config: classes -> arguments.
SAVED = {
    losses.FocalLoss: {"alpha": 0.3, "dtype": "bfloat16"},
    losses.GIoULoss: {"epsilon": 1e-3, "reduction": "mean"},
    losses.QualityFocalLoss: {"beta": 1.0, "from_logits": False},
    losses.SmoothL1Loss: {"beta": 0.1, "name": "other"},
    losses.VarifocalLoss: {"iou_weighted": False, "reduction": "none"},
    assigners.ATSSAssigner: {"top_k": 5, "strides": (4, 8)},
    assigners.FCOSAssigner: {"center_radius": None},
    assigners.FoveaAssigner: {"sigma": 0.3},
    assigners.MaxIoUAssigner: {"min_iou": 0.1},
    assigners.PointAssigner: {"scale": 8},
    box_coders.DistanceCoder: {"activation": "exp", "limits": (0.1, 16.0)},
    box_coders.DeltaCoder: {"stds": (0.1, 0.1, 0.2, 0.2), "anchor_scale": 8},
    vfnet_tf.FPN: {"filters": 32, "in_levels": ["C4", "C5"], "norm": "group_norm"},
    vfnet_tf.PAFPN: {"filters": 32, "deformable": False},
    vfnet_tf.DenseHead: {**LEVELS, **SMALL, "centerness": "box", "level_scales": True},
    vfnet_tf.RepPointsHead: {**LEVELS, **SMALL, "moment_gradient": 0.1},
    vfnet_tf.VFNetHead: {**LEVELS, **SMALL, "distance_units": (64, 128)},
}


@pytest.mark.backend
@pytest.mark.parametrize("cls", SAVED, ids=lambda cls: cls.__name__)
def test_objects_are_made_again_from_their_configs(cls):
    instance = cls(**SAVED[cls])
    before = keras.saving.serialize_keras_object(instance)
    TestCase().run_class_serialization_test(instance)
    assert keras.saving.serialize_keras_object(instance) == before


def test_the_tables_have_every_public_class():
    public = {getattr(layers, name) for name in layers.__all__}
    assert public <= {row[0] for row in LAYERS}
    for module in (losses, assigners):
        for name in module.__all__:
            value = getattr(module, name)
            is_saved = isinstance(value, type) and hasattr(value, "get_config")
            assert value in SAVED or not is_saved
