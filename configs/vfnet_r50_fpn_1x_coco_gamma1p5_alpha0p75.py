"""VFNet ResNet-50, 1x: Table 2, gamma 1.5, alpha 0.75.

Published AP: 41.5 on COCO val2017.
Recipe: 12 epochs, 16 images per step, images within 1333x800, flips. Cost: 8 GPUs for about
12 hours, as VFNet-R50.
"""

from vfnet_tf.config import Config, ModelConfig

config = Config(
    name="vfnet_r50_fpn_1x_coco_gamma1p5_alpha0p75",
    model=ModelConfig(
        loss_alpha=0.75,
        loss_gamma=1.5,
    ),
)
