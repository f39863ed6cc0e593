from vfnet_tf.necks.fpn import FPN

__all__ = ["FPN"]
