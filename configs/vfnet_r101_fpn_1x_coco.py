"""VFNet ResNet-101, 1x: a model of the official repository.

Published AP: 43.0 on COCO val2017, 43.6 on test-dev, tested within 1333x800; 15.5
images per second on a V100. Recipe: 12 epochs, 16 images per step, images within
1333x800, flips.
"""

from vfnet_tf.config import BackboneConfig, Config, ModelConfig

config = Config(
    name="vfnet_r101_fpn_1x_coco",
    model=ModelConfig(
        backbone=BackboneConfig(name="resnet101"),
    ),
)
