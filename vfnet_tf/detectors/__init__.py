from vfnet_tf.detectors.dense_detector import DenseDetector
from vfnet_tf.detectors.vfnet import VFNet

__all__ = ["DenseDetector", "VFNet"]
