"""VFNet on the BCCD blood cells, with the settings of the official code's run on it.

keras.applications' ResNet-50 (caffe style) whose first three stages are pretrained, images
stretched to 320x240, batch 4, 18 epochs. The official code reaches val AP .525 there;
`docs/results.md` has ours.
"""

from vfnet_tf.config import (
    BackboneConfig,
    Config,
    DataConfig,
    ModelConfig,
    TrainingConfig,
)
from vfnet_tf.data.normalization import CAFFE_BGR

config = Config(
    name="vfnet_r50_bccd",
    model=ModelConfig(backbone=BackboneConfig(name="keras:ResNet50")),
    data=DataConfig(
        image_size=(240, 320),
        keep_ratio=False,
        normalization=CAFFE_BGR,
        cache_decoded=True,
    ),
    training=TrainingConfig(
        epochs=18, batch_size=4, warmup_steps=100, drop_epochs=(12, 16.5)
    ),
)
