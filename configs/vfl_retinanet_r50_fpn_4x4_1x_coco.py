"""RetinaNet ResNet-50, 1x, with the varifocal loss: Table 5.

Published AP: 37.4 on COCO val2017; 36.5 with `class_loss="focal"`, 37.3 with
`class_loss="quality_focal"`.
Recipe: 12 epochs, 16 images per step, images within 1333x800, flips. Cost: 8 GPUs for about
12 hours, as VFNet-R50.
"""

from vfnet_tf.config import Config, ModelConfig, TrainingConfig

config = Config(
    name="vfl_retinanet_r50_fpn_4x4_1x_coco",
    model=ModelConfig(
        detector="retinanet",
        head_convs=4,
        box_loss_weight=1.0,
        nms_iou_threshold=0.5,
    ),
    training=TrainingConfig(bias_lr_multiplier=1.0, bias_decay_multiplier=1.0),
)
