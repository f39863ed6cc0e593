"""VFNet ResNet-50, 1x, without box refinement: Table 3, third row.

Published AP: 40.7 on COCO val2017.
Recipe: 12 epochs, 16 images per step, images within 1333x800, flips. Cost: 8 GPUs for about
12 hours, as VFNet-R50.
"""

from vfnet_tf.config import Config, ModelConfig

config = Config(
    name="vfnet_star_r50_fpn_1x_coco",
    model=ModelConfig(
        refine=False,
        box_loss_weight=2.0,
    ),
)
