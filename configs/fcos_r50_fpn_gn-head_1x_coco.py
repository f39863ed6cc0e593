"""FCOS ResNet-50, 1x, with its own assignment, as its official code improved it.

Centre sampling, GIoU loss, distances in strides, centerness beside the boxes. Published AP:
38.7 on COCO val2017, with another variant of ResNet-50.
Recipe: 12 epochs, 16 images per step, images within 1333x800, flips. Cost: 8 GPUs for about
12 hours, as VFNet-R50.
"""

from vfnet_tf.config import Config, ModelConfig

config = Config(
    name="fcos_r50_fpn_gn-head_1x_coco",
    model=ModelConfig(
        detector="fcos",
        head_convs=4,
        class_loss="focal",
        box_loss_weight=1.0,
    ),
)
