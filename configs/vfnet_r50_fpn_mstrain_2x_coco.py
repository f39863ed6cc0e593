"""VFNet ResNet-50, multi-scale 2x: the row "R-50" of Table 4.

Published AP: 44.5 on COCO val2017, 44.8 on test-dev, tested within 1333x800; 19.3
images per second on a V100. Recipe: 24 epochs, 16 images per step, short sides of 480
to 960 in steps of 32 (any whole number in the official recipe), long sides up to 1333,
flips.
"""

from vfnet_tf.config import Config, DataConfig, TrainingConfig

config = Config(
    name="vfnet_r50_fpn_mstrain_2x_coco",
    data=DataConfig(scales=tuple((short, 1333) for short in range(480, 961, 32))),
    training=TrainingConfig(epochs=24, drop_epochs=(16, 22)),
)
