from vfnet_tf.layers.conv_norm_act import ConvNormAct
from vfnet_tf.layers.deform_conv2d import DeformableConv2D
from vfnet_tf.layers.folded_conv2d import FoldedConv2D
from vfnet_tf.layers.frozen_batch_norm import FrozenBatchNorm
from vfnet_tf.layers.group_norm import GroupNorm
from vfnet_tf.layers.scale import Scale
from vfnet_tf.layers.star_deform_conv import StarDeformableConv2D

__all__ = [
    "ConvNormAct",
    "DeformableConv2D",
    "FoldedConv2D",
    "FrozenBatchNorm",
    "GroupNorm",
    "Scale",
    "StarDeformableConv2D",
]
