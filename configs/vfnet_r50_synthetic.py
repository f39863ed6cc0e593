"""VFNet ResNet-50 from scratch on generated shapes: what `make train` runs.

It is there to see all of the library work in a few minutes on two CPU cores, not for
its accuracy: small images, a narrow neck and head, AdamW.
"""

from vfnet_tf.config import (
    BackboneConfig,
    Config,
    DataConfig,
    ModelConfig,
    TrainingConfig,
)

config = Config(
    name="vfnet_r50_synthetic",
    model=ModelConfig(
        backbone=BackboneConfig(norm="batch_norm", frozen_stages=-1),
        neck_filters=128,
        head_filters=128,
        head_convs=2,
    ),
    data=DataConfig(image_size=(128, 160), keep_ratio=True, cache_decoded=True),
    training=TrainingConfig(
        epochs=6,
        batch_size=8,
        optimizer="adamw",
        base_learning_rate=1e-3,
        base_batch_size=8,
        weight_decay=0.01,
        warmup_steps=50,
        drop_epochs=(5,),
    ),
)
