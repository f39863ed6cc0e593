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
    """

    path: str
    name: str
    image_id: int
    height: int
    width: int
    boxes: np.ndarray
    labels: np.ndarray
    is_crowd: np.ndarray

    def objects(self):
        """Yields `(box, label, is crowd)`, the box a list of four floats."""
        yield from zip(
            self.boxes.tolist(),
            self.labels.tolist(),
            self.is_crowd.tolist(),
            strict=True,
        )
