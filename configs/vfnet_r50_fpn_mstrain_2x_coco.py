"""VFNet ResNet-50, multi-scale 2x: the row "R-50" of Table 4.

Published AP: 44.5 on COCO val2017, 44.8 on test-dev, tested within 1333x800; 19.3
images per second on a V100. Recipe: 24 epochs, 16 images per step, images within
1333x480 to 1333x960, the short side a whole number drawn for each, flips.
"""

from vfnet_tf.config import Config, DataConfig, TrainingConfig

config = Config(
    name="vfnet_r50_fpn_mstrain_2x_coco",
    data=DataConfig(scale_range=((480, 1333), (960, 1333)), max_canvas_shapes=8),
    training=TrainingConfig(epochs=24, drop_epochs=(16, 22)),
)
