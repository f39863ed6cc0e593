"""FCOS ResNet-50 with ATSS, 1x: the baseline of Tables 1 and 3.

Published AP: 39.2 on COCO val2017.
Recipe: 12 epochs, 16 images per step, images within 1333x800, flips. Cost: 8 GPUs for about
12 hours, as VFNet-R50.
"""

from vfnet_tf.config import Config, ModelConfig

config = Config(
    name="fcos_atss_r50_fpn_1x_coco",
    model=ModelConfig(
        detector="fcos",
        assigner="atss",
        head_convs=4,
        class_loss="focal",
        box_loss_weight=1.0,
    ),
)
