"""An image with its boxes, the input of all writers of formats.

A writer writes the labels of one split. Its arguments:

- `out`: `Path`, the new folder, which has the images already.
- `split`: str.
- `images`: list of `LabelledImage`, whose stems are distinct over all splits.
- `class_names`: sequence of str, index = label.

It returns an int, the number of objects that it changed or left out.
"""

import dataclasses

import numpy as np

# Of an area, for the rounding of corners.
_ROUNDING = 1e-3


@dataclasses.dataclass(frozen=True, eq=False)
class LabelledImage:
    """One image on its way into another format.

    Attributes:
        path: str, the image to copy or link, see `images.places`.
        name: str, its name in the new folder.
        image_id: int, the id in the annotation file that it comes from.
        height: int, pixels, with the EXIF orientation applied.
        width: int, pixels, likewise.
        boxes: float64 `[R, 4]`, `(x1, y1, x2, y2)` in pixels, inside the image.
        labels: int `[R]`.
        is_crowd: bool `[R]`.
        areas: float64 `[R]`, pixels; NaN for that of the box.
    """

    path: str
    name: str
    image_id: int
    height: int
    width: int
    boxes: np.ndarray
    labels: np.ndarray
    is_crowd: np.ndarray
    areas: np.ndarray

    @property
    def box_areas(self):
        """float64 `[R]`, areas of the boxes."""
        return np.prod(self.boxes[:, 2:] - self.boxes[:, :2], axis=1)

    @property
    def num_own_areas(self):
        """Number of objects whose area is not that of the box, such as of a mask."""
        areas = self.box_areas
        return int((np.abs(self.areas - areas) > _ROUNDING * areas).sum())

    def objects(self):
        """Yields `(box, label, is crowd)`, the box a list of four floats."""
        yield from zip(
            self.boxes.tolist(),
            self.labels.tolist(),
            self.is_crowd.tolist(),
            strict=True,
        )
