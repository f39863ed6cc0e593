"""VFNet ResNet-50, 1x: the row "VFNet R-50" of the paper's ablations (Tables 2 and 3).

Published AP: 41.6 on COCO val2017. Recipe: 12 epochs, 16 images per step, images within
1333x800, flips. Cost: 8 GPUs for about 12 hours (the paper used V100s).
"""

from vfnet_tf.config import Config

config = Config(name="vfnet_r50_fpn_1x_coco")
