from vfnet_tf.backbones.keras_backbone import KerasBackbone
from vfnet_tf.backbones.res2net import Res2Net
from vfnet_tf.backbones.resnet import ResNet

__all__ = ["KerasBackbone", "Res2Net", "ResNet"]
