from vfnet_tf.backbones.resnet import ResNet

__all__ = ["ResNet"]
