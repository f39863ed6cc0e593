from vfnet_tf.necks.fpn import FPN
from vfnet_tf.necks.pafpn import PAFPN

__all__ = ["FPN", "PAFPN"]
