"""RepPoints ResNet-50 (moment boxes), 1x, with the varifocal loss: Table 5.

Published AP: 39.7 on COCO val2017; 38.3 with `class_loss="focal"`, 39.2 with
`class_loss="quality_focal"`. Group norm in neck and head.
Recipe: 12 epochs, 16 images per step, images within 1333x800, flips. Cost: 8 GPUs for about
12 hours, as VFNet-R50.
"""

from vfnet_tf.config import Config, ModelConfig, TrainingConfig

config = Config(
    name="vfl_reppoints_moment_r50_fpn_gn-neck+head_4x4_1x_coco",
    model=ModelConfig(
        detector="reppoints",
        box_loss_weight=0.5,
        refined_box_loss_weight=1.0,
        nms_iou_threshold=0.5,
    ),
    training=TrainingConfig(bias_lr_multiplier=1.0, bias_decay_multiplier=1.0),
)
