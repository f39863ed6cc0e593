"""VFNet ResNet-50, 1x: Table 2, gamma 2.0, alpha 0.75, no q weighting.

Published AP: 41.2 on COCO val2017.
Recipe: 12 epochs, 16 images per step, images within 1333x800, flips. Cost: 8 GPUs for about
12 hours, as VFNet-R50.
"""

from vfnet_tf.config import Config, ModelConfig

config = Config(
    name="vfnet_r50_fpn_1x_coco_gamma2p0_alpha0p75_unweighted",
    model=ModelConfig(
        iou_weighted=False,
    ),
)
