from vfnet_tf.heads.dense import DenseHead
from vfnet_tf.heads.reppoints import RepPointsHead
from vfnet_tf.heads.vfnet import VFNetHead

__all__ = ["DenseHead", "RepPointsHead", "VFNetHead"]
