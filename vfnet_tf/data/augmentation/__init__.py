"""Augmentations: transforms of training images as dataclasses with settings.

`presets` has those that `DataConfig.augment` names, docs/augmentation.md a picture of
each.
"""

from vfnet_tf.data.augmentation.augmentation import Augmentation
from vfnet_tf.data.augmentation.copy_paste import CopyPaste
from vfnet_tf.data.augmentation.gaussian_blur import GaussianBlur
from vfnet_tf.data.augmentation.gaussian_noise import GaussianNoise
from vfnet_tf.data.augmentation.jpeg_quality import JpegQuality
from vfnet_tf.data.augmentation.large_scale_jitter import LargeScaleJitter
from vfnet_tf.data.augmentation.min_iou_crop import MinIoUCrop
from vfnet_tf.data.augmentation.mix_up import MixUp
from vfnet_tf.data.augmentation.mosaic import Mosaic
from vfnet_tf.data.augmentation.photometric_distortion import PhotometricDistortion
from vfnet_tf.data.augmentation.quarter_turn import QuarterTurn
from vfnet_tf.data.augmentation.random_affine import RandomAffine
from vfnet_tf.data.augmentation.vertical_flip import VerticalFlip

__all__ = [
    "Augmentation",
    "CopyPaste",
    "GaussianBlur",
    "GaussianNoise",
    "JpegQuality",
    "LargeScaleJitter",
    "MinIoUCrop",
    "MixUp",
    "Mosaic",
    "PhotometricDistortion",
    "QuarterTurn",
    "RandomAffine",
    "VerticalFlip",
]
