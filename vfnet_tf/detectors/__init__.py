from vfnet_tf.detectors.dense_detector import DenseDetector
from vfnet_tf.detectors.fcos import FCOS
from vfnet_tf.detectors.foveabox import FoveaBox
from vfnet_tf.detectors.reppoints import RepPoints
from vfnet_tf.detectors.retinanet import RetinaNet
from vfnet_tf.detectors.vfnet import VFNet

__all__ = ["FCOS", "DenseDetector", "FoveaBox", "RepPoints", "RetinaNet", "VFNet"]
