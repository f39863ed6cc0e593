from vfnet_tf.backbones.keras_backbone import KerasBackbone
from vfnet_tf.backbones.resnet import ResNet

__all__ = ["KerasBackbone", "ResNet"]
