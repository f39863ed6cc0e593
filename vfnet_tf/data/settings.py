"""How images become network inputs: the `data` of a `Config`."""

import dataclasses

from vfnet_tf.data.normalization import Normalization


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The input.

    Attributes:
        image_size: (short, long) side of the resized images in pixels, or (height,
            width) if `keep_ratio` is False.
        keep_ratio: bool.
        scales: (short, long) sides, one of which each training batch draws in place of
            `image_size` (multi-scale training); empty for none.
        scale_range: smallest and largest (short, long): each training image draws whole
            numbers from it independently, in place of `image_size`; empty for none. The
            paper's 1333x[640:800] is `((640, 1333), (800, 1333))`.
        augment: what else is drawn in training: `"flip"`, nothing but `flip`,
            `random_crop` and `cut_out` (the paper); `"light"` or `"strong"`, see
            `data.augmentation.presets`; a tuple of `data.augmentation.Augmentation`, in
            their order before `cut_out` and `flip`; or `"none"`, not even the flip.
        partners_off: share of the epochs, the last ones, in which augmentations that
            take several images (mosaic, mixup) rest.
        oversample: share of the images, 0 for none: images with a class that fewer images
            have are repeated sqrt(`oversample` / their share) times an epoch (the repeat
            factor of LVIS).
        flip: probability of a horizontal flip in training.
        random_crop: probability of a crop in training, see `data.random_sizes`.
        cut_out: probability of holes in training, see `data.transforms.cut_out`.
        max_canvas_shapes: padded shapes at most; a graph is traced once for each.
            `scales` has one for each scale and orientation instead.
        normalization: see `Normalization`.
        cache_decoded: keep resized images in memory (for sets of a few thousand).
    """

    image_size: tuple[int, int] = (800, 1333)
    keep_ratio: bool = True
    scales: tuple[tuple[int, int], ...] = ()
    scale_range: tuple[tuple[int, int], ...] = ()
    augment: str | tuple = "flip"
    partners_off: float = 0.1
    oversample: float = 0.0
    flip: float = 0.5
    random_crop: float = 0.0
    cut_out: float = 0.0
    max_canvas_shapes: int = 4
    normalization: Normalization = Normalization()
    cache_decoded: bool = False
