from vfnet_tf.losses.focal import FocalLoss, focal_loss
from vfnet_tf.losses.giou import GIoULoss, giou_loss
from vfnet_tf.losses.quality_focal import QualityFocalLoss, quality_focal_loss
from vfnet_tf.losses.smooth_l1 import SmoothL1Loss, smooth_l1_loss
from vfnet_tf.losses.varifocal import VarifocalLoss, varifocal_loss

__all__ = [
    "FocalLoss",
    "GIoULoss",
    "QualityFocalLoss",
    "SmoothL1Loss",
    "VarifocalLoss",
    "focal_loss",
    "giou_loss",
    "quality_focal_loss",
    "smooth_l1_loss",
    "varifocal_loss",
]
