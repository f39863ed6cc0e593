"""FCOS with ATSS on coco_mini, for Table 1 of the paper in `docs/results.md`."""

from vfnet_tf.config import load_config, override

config = override(
    load_config("vfnet_r50_bccd"),
    name="fcos_atss_r50_coco_mini",
    model__detector="fcos",
    model__assigner="atss",
    model__class_loss="focal",
    model__box_loss_weight=1.0,
    model__neck_filters=128,
    model__head_filters=128,
    data__image_size=(240, 320),
    data__keep_ratio=True,
    training__optimizer="adamw",
    training__base_learning_rate=0.002,
    training__warmup_steps=10,
    training__epochs=70,
    training__drop_epochs=(56,),
)
