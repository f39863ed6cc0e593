from vfnet_tf.assigners.assignment import Assignment
from vfnet_tf.assigners.atss import ATSSAssigner
from vfnet_tf.assigners.fcos import FCOSAssigner
from vfnet_tf.assigners.fovea import FoveaAssigner
from vfnet_tf.assigners.max_iou import MaxIoUAssigner
from vfnet_tf.assigners.point import PointAssigner

__all__ = [
    "ATSSAssigner",
    "Assignment",
    "FCOSAssigner",
    "FoveaAssigner",
    "MaxIoUAssigner",
    "PointAssigner",
]
