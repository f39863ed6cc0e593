"""The detections in one image."""

import collections
import dataclasses
import os
import pathlib

import numpy as np

from vfnet_tf import drawing
from vfnet_tf.data.images.inspect import IMAGE_SUFFIXES
from vfnet_tf.evaluation.coco import xyxy_to_xywh
from vfnet_tf.inference import video
from vfnet_tf.inference.sources import is_url, load_file

#: Pictures show scores above this unless the caller gives a threshold. Most detections
#: above the detector's own threshold (0.05), which is for average precision, are wrong.
DRAW_THRESHOLD = 0.3

# As in evaluation: a thousandth of a pixel moves no metric and keeps a json short.
_BOX_DECIMALS = 3


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Prediction:
    """The detections in one image, best first.

    Attributes:
        boxes: float32 `[N, 4]`, `(x1, y1, x2, y2)` in pixels of the original image.
        scores: float32 `[N]` in [0, 1], descending.
        labels: int32 `[N]` in [0, K).
        names: N strings, the class of each detection.
        height, width: int, pixels of the original image, upright.
        source: str, path or URL; None for an image that came as an array.
        index: int, place of the image among all of the call, from 0.
        class_names: K strings by label.
        category_ids: K ints by label, for COCO-format files.
        draw_threshold: float, the score above which `draw` shows a detection.
        pixels: uint8 `[height, width, 3]` RGB, or None for a file, which `image` reads
            again.
        frame: int, place of the frame in its video, from 0; None for an image.
        time: float, seconds from the video's first frame; None for an image.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    names: list
    height: int
    width: int
    source: str | None
    index: int
    class_names: tuple
    category_ids: tuple
    draw_threshold: float = DRAW_THRESHOLD
    pixels: np.ndarray | None = None
    frame: int | None = None
    time: float | None = None

    def __len__(self):
        return len(self.scores)

    def __repr__(self):
        counts = collections.Counter(self.names)
        found = ", ".join(f"{count} {name}" for name, count in counts.most_common())
        source = self.source or f"image {self.index}"
        if self.frame is not None:
            source += f" frame {self.frame} at {self.time:.2f} s"
        size = f"{self.height}x{self.width}"
        return f"Prediction({source}, {size}: {found or 'nothing'})"

    @property
    def image(self):
        """uint8 `[height, width, 3]` RGB; a file, or its frame, is read again."""
        if self.pixels is not None:
            return self.pixels
        if self.time is not None:
            return video.read_frame(self.source, self.time)
        return self._read_file(self.source)

    def _read_file(self, path):
        return load_file(path)

    def draw(self, score_threshold=None, **style):
        """Draws the detections on a copy of the image.

        Args:
            score_threshold: float, weaker detections are not drawn. None takes the
                threshold that the predictor was called with, 0.3 if with none.
            **style: further arguments of `drawing.draw_detections`.

        Returns:
            uint8 `[h, w, 3]`; a small image is enlarged to make captions readable.
        """
        if score_threshold is None:
            score_threshold = self.draw_threshold
        return drawing.draw_detections(
            self.image,
            self.boxes,
            self.labels,
            self.scores,
            self.class_names,
            score_threshold=score_threshold,
            **style,
        )

    def save(self, path, score_threshold=None, **style):
        """Writes the picture of `draw`; the path's ending says the format.

        Returns:
            The path, a `pathlib.Path`.

        Raises:
            ValueError: if the ending is not that of an image, or the path is the image
                itself.
        """
        path = pathlib.Path(path)
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            raise ValueError(
                f"`path` must end in one of {', '.join(sorted(IMAGE_SUFFIXES))}. "
                f"Received: path={path}"
            )
        is_file = self.source is not None and not is_url(self.source)
        if is_file:
            check_is_another(path, self.source)
        drawing.save_image(path, self.draw(score_threshold, **style))
        return path

    def to_coco(self, image_id=None):
        """Lists the detections in COCO's results format.

        Args:
            image_id: int, the image's id; its place in the call counted from 1 if None.

        Returns:
            list of dicts with `image_id`, `category_id`, `bbox`, `[x, y, width,
            height]`, and `score`, boxes in pixels of the original image to a thousandth.
        """
        image_id = self.index + 1 if image_id is None else image_id
        return [
            {
                "image_id": image_id,
                "category_id": int(self.category_ids[label]),
                "bbox": [round(value, _BOX_DECIMALS) for value in box],
                # str of a float32 is the shortest text that gives it back
                "score": float(str(score)),
            }
            for box, score, label in zip(
                xyxy_to_xywh(self.boxes).tolist(), self.scores, self.labels, strict=True
            )
        ]

    def to_supervision(self):
        """The detections for the library supervision, with its trackers and zones.

        Returns:
            `supervision.Detections`: `xyxy`, `confidence`, `class_id`, and the names as
            `data["class_name"]`, where its annotators look for them.

        Raises:
            ImportError: without supervision.
        """
        try:
            import supervision
        except ImportError as error:
            raise ImportError(
                "`to_supervision` needs supervision: pip install 'vfnet_tf[supervision]'"
            ) from error
        return supervision.Detections(
            xyxy=self.boxes,
            confidence=self.scores,
            class_id=self.labels,
            data={"class_name": np.array(self.names, dtype=str)},
        )


def without_pixels(prediction):
    """A copy that reads its image from the file again."""
    return dataclasses.replace(prediction, pixels=None)


def check_is_another(path, source):
    """Refuses to write over the image or video that was read."""
    if os.path.realpath(path) == os.path.realpath(source):
        raise ValueError(
            "`path` must not be the image or video itself, which would be lost. "
            f"Received: path={path}"
        )
