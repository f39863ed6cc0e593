"""VFNet Res2Net-101-DCN, multi-scale 2x: the row "R2-101-DCN" of Table 4.

Published AP: 51.1 on COCO val2017, 51.3 on test-dev, tested within 1333x800; 10.3
images per second on a V100. Recipe: 24 epochs, 16 images per step, short sides of 480
to 960 in steps of 32 (any whole number in the official recipe), long sides up to 1333,
flips.
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
    data=DataConfig(scales=tuple((short, 1333) for short in range(480, 961, 32))),
    training=TrainingConfig(epochs=24, drop_epochs=(16, 22)),
)
