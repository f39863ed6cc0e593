"""VFNet ResNeXt-101-64x4d-DCN, multi-scale 2x: the row "X-101-64x4d-DCN" of Table 4.

Published AP: 50.4 on COCO val2017, 50.8 on test-dev, tested within 1333x800; 6.7 images
per second on a V100. Recipe: 24 epochs, 16 images per step, images within 1333x480 to
1333x960, the short side a whole number drawn for each, flips.
"""

from vfnet_tf.config import (
    BackboneConfig,
    Config,
    DataConfig,
    ModelConfig,
    TrainingConfig,
)

config = Config(
    name="vfnet_x101_64x4d_fpn_mdconv_c3-c5_mstrain_2x_coco",
    model=ModelConfig(
        backbone=BackboneConfig(name="resnext101_64x4d", deformable=("C3", "C4", "C5")),
        deformable_towers=True,
    ),
    data=DataConfig(scale_range=((480, 1333), (960, 1333)), max_canvas_shapes=8),
    training=TrainingConfig(epochs=24, drop_epochs=(16, 22)),
)
