"""Raw VFNet ResNet-50, 1x, with the varifocal loss: Table 3, second row.

Published AP: 40.1 on COCO val2017.
Recipe: 12 epochs, 16 images per step, images within 1333x800, flips. Cost: 8 GPUs for about
12 hours, as VFNet-R50.
"""

from vfnet_tf.config import Config, ModelConfig

config = Config(
    name="vfnet_raw_vfl_r50_fpn_1x_coco",
    model=ModelConfig(
        star=False,
        refine=False,
        box_loss_weight=2.0,
    ),
)
