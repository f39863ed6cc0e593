from vfnet_tf.heads.vfnet import VFNetHead

__all__ = ["VFNetHead"]
