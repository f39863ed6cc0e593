"""Every detector overfits eight real images (slow tests, some minutes each)."""

import dataclasses
import pathlib

import keras
import numpy as np
import pytest

from vfnet_tf.config import load_config, override

SHARED = pathlib.Path(__file__).parents[3] / "shared"
WEIGHTS = SHARED / "weights" / "resnet50_imagenet_keras_conv1_to_conv4.npz"
IMAGES = SHARED / "data" / "coco_mini"
# Stem -> (epochs of two steps, learning rate for 16 images, filters). Towers without a
# norm, started from N(0, 0.01) for 256 filters, lose the signal with fewer, and RepPoints'
# first points learn slowly.
SETTINGS = {
    "vfnet_r50_fpn_1x_coco": (60, 0.002, 128),
    "vfnet_raw_vfl_r50_fpn_1x_coco": (60, 0.002, 128),
    "fcos_r50_fpn_gn-head_1x_coco": (60, 0.002, 128),
    "fcos_atss_r50_fpn_1x_coco": (60, 0.002, 128),
    "vfl_atss_r50_fpn_1x_coco": (60, 0.002, 128),
    "vfl_retinanet_r50_fpn_4x4_1x_coco": (150, 0.001, 256),
    "vfl_fovea_r50_fpn_4x4_1x_coco": (150, 0.001, 256),
    "vfl_reppoints_moment_r50_fpn_gn-neck+head_4x4_1x_coco": (240, 0.002, 128),
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        keras.backend.backend() != "tensorflow", reason="training is TensorFlow's"
    ),
    pytest.mark.skipif(
        not (WEIGHTS.is_file() and IMAGES.is_dir()),
        reason="needs ../shared: COCO images and ImageNet weights",
    ),
]


@pytest.fixture(scope="module")
def eight_images():
    """The wide training images whose smallest object is largest for its image."""
    from vfnet_tf.data.dataset import DetectionDataset
    from vfnet_tf.data.formats.coco import find_coco_splits, read_coco

    dataset = read_coco(*find_coco_splits(IMAGES)["train"])

    def smallest_side(record):
        sides = record.boxes[:, 2:] - record.boxes[:, :2]
        return np.sqrt(sides.prod(axis=1).min()) / record.width

    wide = [record for record in dataset.records if record.width > record.height]
    return DetectionDataset(
        sorted(wide, key=smallest_side)[-8:],
        dataset.class_names,
        dataset.category_ids,
        dataset.annotation_file,
        dataset.image_dir,
        dataset.report,
    )


@pytest.mark.parametrize("stem", SETTINGS)
def test_it_overfits_eight_images(eight_images, tmp_path, stem):
    from vfnet_tf.training.strategies import make_strategy
    from vfnet_tf.training.trainer import Trainer

    epochs, learning_rate, filters = SETTINGS[stem]
    base, model = load_config("vfnet_r50_bccd"), load_config(stem).model
    backbone = dataclasses.replace(base.model.backbone, weights=str(WEIGHTS))
    model = dataclasses.replace(
        model, backbone=backbone, neck_filters=filters, head_filters=filters
    )
    config = override(
        dataclasses.replace(base, name=stem, model=model),
        data__image_size=(256, 320),
        training__epochs=epochs,
        training__drop_epochs=(0.8 * epochs,),
        training__warmup_steps=10,
        training__optimizer="adamw",
        training__base_learning_rate=learning_rate,
        training__precision="mixed_bfloat16",
    )
    trainer = Trainer(
        config,
        eight_images,
        eight_images,
        tmp_path / "run",
        strategy=make_strategy("one_device"),
        evaluate_every=epochs,
    )
    metrics = trainer.fit(verbose=0)
    print(f"{stem}: AP {metrics['AP']:.3f}, AP50 {metrics['AP50']:.3f}")
    assert metrics["AP50"] > 0.9
