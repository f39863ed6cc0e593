"""VFNet Res2Net-101-DCN, multi-scale 2x: the row "R2-101-DCN" of Table 4.

Published AP: 51.1 on COCO val2017, 51.3 on test-dev, tested within 1333x800; 10.3
images per second on a V100. Recipe: 24 epochs, 16 images per step, images within
1333x480 to 1333x960, the short side a whole number drawn for each, flips.
"""

from vfnet_tf.config import (
    BackboneConfig,
    Config,
    DataConfig,
    ModelConfig,
    TrainingConfig,
)

config = Config(
    name="vfnet_r2_101_fpn_mdconv_c3-c5_mstrain_2x_coco",
    model=ModelConfig(
        backbone=BackboneConfig(
            name="res2net101_v1d_26w_4s", deformable=("C3", "C4", "C5")
        ),
        deformable_towers=True,
    ),
    data=DataConfig(scale_range=((480, 1333), (960, 1333)), max_canvas_shapes=8),
    training=TrainingConfig(epochs=24, drop_epochs=(16, 22)),
)
