"""VFNet ResNet-101, 2x: a model of the official repository.

Published AP: 43.5 on COCO val2017, 43.9 on test-dev, tested within 1333x800; 15.6
images per second on a V100. Recipe: 24 epochs, 16 images per step, images within
1333x800, flips.
"""

from vfnet_tf.config import BackboneConfig, Config, ModelConfig, TrainingConfig

config = Config(
    name="vfnet_r101_fpn_2x_coco",
    model=ModelConfig(
        backbone=BackboneConfig(name="resnet101"),
    ),
    training=TrainingConfig(epochs=24, drop_epochs=(16, 22)),
)
