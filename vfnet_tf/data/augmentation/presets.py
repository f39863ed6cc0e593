"""What `DataConfig.augment` names, and the transforms of a training that follow."""

import dataclasses

from vfnet_tf.data import augmentation
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
from vfnet_tf.data.transforms import cut_out, flip_horizontal
from vfnet_tf.foreign_text import did_you_mean

#: Name -> the transforms besides those that `flip`, `random_crop` and `cut_out` ask for.
#: "flip" is the paper's; "none" leaves out these three too. Where a probability is 0, the
#: transform is there to be turned on.
PRESETS = {
    "none": (),
    "flip": (),
    "light": (
        LargeScaleJitter(scale=(0.8, 1.25)),
        PhotometricDistortion(brightness=16.0, contrast=0.25, saturation=0.25, hue=6.0),
    ),
    "strong": (
        CopyPaste(probability=0.3),
        Mosaic(probability=0.5),
        MixUp(probability=0.0),
        LargeScaleJitter(scale=(0.5, 2.0)),
        PhotometricDistortion(),
    ),
}

#: Where `with_settings` adds one: other images come first, then what moves pixels, then
#: the light, the lens, the sensor and the file.
ORDER = (
    CopyPaste,
    Mosaic,
    MixUp,
    LargeScaleJitter,
    RandomAffine,
    MinIoUCrop,
    VerticalFlip,
    QuarterTurn,
    PhotometricDistortion,
    GaussianBlur,
    GaussianNoise,
    JpegQuality,
)


def augmentations(augment):
    """The tuple of `Augmentation` that a preset names, or the tuple itself.

    Raises:
        ValueError: another name, or a tuple that holds something else, also a subclass of
            `Augmentation` outside this library, which a config cannot keep.
    """
    if isinstance(augment, str):
        if augment not in PRESETS:
            raise ValueError(
                f"`augment` must be one of {', '.join(PRESETS)}, or a tuple of "
                f"augmentations. Received: augment={augment!r}."
                + did_you_mean(augment, PRESETS)
            )
        return PRESETS[augment]
    others = [each for each in augment if type(each) not in ORDER]
    if others:
        raise ValueError(
            "`augment` must hold augmentations of `vfnet_tf.data.augmentation`, such as "
            "VerticalFlip(), which a config can keep. `transforms=[...]` of `Trainer` and "
            f"`build_pipeline` takes functions and own classes. Received: {others[0]!r}"
        )
    return tuple(augment)


def augmentation_class(name):
    """The class of that name; the error lists all names."""
    known = augmentation_names()
    if name not in known:
        raise ValueError(
            f"An augmentation is one of {', '.join(known)}. Received: {name!r}."
            + did_you_mean(name, known)
        )
    return getattr(augmentation, name)


def augmentation_names():
    """The names of all augmentations, sorted."""
    return sorted(kind.__name__ for kind in ORDER)


def to_list(augment):
    """A tuple of augmentations as dicts of JSON types: `name`, and the settings."""
    return [
        {"name": type(each).__name__, **vars(each)} for each in augmentations(augment)
    ]


def with_settings(augment, settings):
    """Changes single settings of a preset or a tuple, and adds what it lacks.

    An augmentation that is added comes before the first one that follows it in `ORDER`.

    Args:
        augment: as in `DataConfig`.
        settings: dict of name of the class -> dict of setting -> value.

    Returns:
        Tuple of `Augmentation`.

    Raises:
        ValueError: a name that no augmentation has.
    """
    found = list(augmentations(augment))
    for name in settings:
        kind = augmentation_class(name)
        if not any(type(each) is kind for each in found):
            later = ORDER[ORDER.index(kind) + 1 :]
            places = [i for i, each in enumerate(found) if type(each) in later]
            found.insert(min(places, default=len(found)), kind())
    return tuple(
        dataclasses.replace(each, **settings.get(type(each).__name__, {}))
        for each in found
    )


def training_transforms(data):
    """The transforms of resized training images that a `DataConfig` asks for.

    Raises:
        ValueError: `augment="none"` with `cut_out` or `random_crop`.
    """
    added = list(augmentations(data.augment))
    if data.augment != "none":
        return [*added, cut_out(probability=data.cut_out), flip_horizontal(data.flip)]
    if data.cut_out or data.random_crop:
        raise ValueError(
            '`augment="none"` leaves images as they are: take "flip" with `cut_out` or '
            f"`random_crop`. Received: cut_out={data.cut_out}, "
            f"random_crop={data.random_crop}"
        )
    return []
