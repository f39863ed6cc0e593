"""A dataset as every format is read into it: images with boxes, and a report.

Bad boxes are dropped and counted; bad images stop the reading with their names, or are
skipped and listed.
"""

import collections
import copy
import dataclasses
import typing

import numpy as np

from vfnet_tf.data.images.reasons import Reason
from vfnet_tf.data.text import printable
from vfnet_tf.foreign_text import one_line

# Official training leaves out smaller images and smaller boxes (docs/parity.md, S33).
MIN_IMAGE_SIDE = 32
MIN_BOX_SIDE = 1.0
BAD_BOX = "box is not four finite numbers"
BAD_SIZE = "box has a width or height <= 0"
BAD_AREA = "area is <= 0 or not finite"
OUTSIDE = "box lies outside the image"
UNKNOWN_CATEGORY = "category is not in the file"
UNKNOWN_LABEL = "class is not in the label map"
UNKNOWN_IMAGE = "image id is not in the file"
DUPLICATE = "annotation is repeated"
TINY = "box is narrower or lower than 1 pixel"
CLIPPED = "box reaches outside the image"
BAD_FLAG = "flag is neither true nor false"
OTHER_CLASS = "class is not among those asked for"
SKIPPED_IMAGE = "image was skipped"
# Boxes that are dropped by rule or by request; `strict` refuses all others.
_NO_MISTAKE = frozenset({TINY, OTHER_CLASS, SKIPPED_IMAGE})
MAX_LISTED = 20
_MAX_EXAMPLES = 3
# Shared by the many records without crowd regions or without boxes.
NO_BOXES = np.zeros((0, 4), "float32")
NO_LABELS = np.zeros(0, "int32")
NO_IDS = np.zeros(0, "int64")
NO_AREAS = np.zeros(0, "float64")


@dataclasses.dataclass(frozen=True, eq=False)
class ImageRecord:
    """One image of a dataset and its objects; the pixels stay on disk.

    Attributes:
        image_id: int, the id in the annotation file.
        path: str, the image file, or an image in a record, see `images.places`.
        height: int, pixels, with the EXIF orientation applied.
        width: int, pixels, with the EXIF orientation applied.
        boxes: float32 `[R, 4]`, `(x1, y1, x2, y2)` in pixels, inside the image.
        labels: int32 `[R]`, index into `DetectionDataset.class_names`.
        annotation_ids: int64 `[R]`, -1 where the file gives none.
        areas: float64 `[R]`, pixels, which metrics by size take: what the file states,
            such as that of a mask; NaN where it states none.
        crowd_boxes: float32 `[N, 4]`, as `boxes`: the crowd regions, which training
            leaves out and evaluation ignores.
        crowd_labels: int32 `[N]`.
        orientation: int in 1..8, the EXIF orientation that decoding must apply.
        needs_pil: bool, whether TensorFlow cannot decode the file (BMP, TIFF, WebP).
    """

    image_id: int
    path: str
    height: int
    width: int
    boxes: np.ndarray
    labels: np.ndarray
    annotation_ids: np.ndarray
    areas: np.ndarray = dataclasses.field(default_factory=lambda: NO_AREAS)
    crowd_boxes: np.ndarray = dataclasses.field(default_factory=lambda: NO_BOXES)
    crowd_labels: np.ndarray = dataclasses.field(default_factory=lambda: NO_LABELS)
    orientation: int = 1
    needs_pil: bool = False

    @property
    def num_crowd(self):
        """Number of crowd regions."""
        return len(self.crowd_boxes)


@dataclasses.dataclass(frozen=True)
class Problem:
    """One annotation that a reader dropped or changed.

    Attributes:
        reason: str, such as `BAD_SIZE`.
        text: str, names the annotation and its image and shows what is wrong.
        path: str, the image file; empty if it is not known.
        box: `(x1, y1, x2, y2)` in pixels as the file has it, may reach outside the image
            or be empty; None if it is not four finite numbers.
    """

    reason: str
    text: str
    path: str = ""
    box: tuple[float, ...] | None = None


class BadImage(typing.NamedTuple):
    """An image that cannot be used.

    Attributes:
        name: str, its file name in the annotation file.
        text: str, what is wrong, to stand behind the name.
        code: `Reason`.
    """

    name: str
    text: str
    code: Reason


@dataclasses.dataclass
class ReadReport:
    """What a reader found, dropped and kept.

    Attributes:
        annotation_file: str, or what it was made from, where that is another format.
        num_images: int, images that the file lists.
        num_annotations: int, annotations that the file lists.
        dropped: dict reason -> number of boxes dropped for it.
        examples: dict reason -> up to three texts naming annotation and image.
        num_clipped: int, boxes cut at the image border by more than one pixel.
        num_crowd: int, crowd regions, not counted in `dropped`.
        num_masks: int, annotations that have a mask.
        similar_classes: list of tuples of class names that differ only in blanks or
            case, or in how their letters are composed.
        num_without_objects: int, good images without a usable box.
        keep_empty: bool, whether those were kept.
        num_small_images: int, images dropped for a side below 32 pixels.
        bad_images: list of `BadImage` that were skipped.
        notes: list of (kind, text), what is doubtful of the data as a whole; kinds are
            those of `scan.kinds`.
        problems: list of `Problem`: what was dropped or clipped, except boxes of classes
            that were not asked for and boxes on bad images.
    """

    annotation_file: str
    num_images: int = 0
    num_annotations: int = 0
    dropped: dict = dataclasses.field(default_factory=collections.Counter)
    examples: dict = dataclasses.field(default_factory=dict)
    num_clipped: int = 0
    num_crowd: int = 0
    num_masks: int = 0
    similar_classes: list = dataclasses.field(default_factory=list)
    num_without_objects: int = 0
    keep_empty: bool = False
    num_small_images: int = 0
    bad_images: list = dataclasses.field(default_factory=list)
    notes: list = dataclasses.field(default_factory=list)
    problems: list = dataclasses.field(default_factory=list)

    def drop(self, reason, example, path="", box=None):
        """Counts one dropped box; for `example`, `path` and `box` see `Problem`."""
        self.dropped[reason] += 1
        self._note(reason, reason, example, path, box)

    def clip(self, example, path="", box=None):
        """Counts one box cut at the border; for the arguments see `drop`."""
        self.num_clipped += 1
        self._note("clipped", CLIPPED, example, path, box)

    def _note(self, key, reason, example, path, box):
        example = one_line(printable(example))
        examples = self.examples.setdefault(key, [])
        if len(examples) < _MAX_EXAMPLES:
            examples.append(example)
        # Of these two a large file can have a great many.
        if reason not in (OTHER_CLASS, SKIPPED_IMAGE):
            self.problems.append(Problem(reason, example, path, box))

    @property
    def mistakes(self):
        """Texts on what `strict` refuses, in the order of the file."""
        found = (p for p in self.problems if p.reason not in _NO_MISTAKE)
        return [f"{problem.text}: {problem.reason}" for problem in found]

    def _shown(self, key, count):
        more = "; ..." if count > _MAX_EXAMPLES else ""
        return "; ".join(self.examples.get(key, ())) + more

    def summary(self):
        """Returns a text of several lines, without a trailing newline."""
        lines = [
            f"{self.annotation_file}: {self.num_images} images, "
            f"{self.num_annotations} annotations"
        ]
        lines += [f"  {one_line(printable(text), 1000)}" for _, text in self.notes]
        if self.num_crowd:
            lines.append(f"  {self.num_crowd} crowd regions set aside")
        for names in self.similar_classes:
            listed = ", ".join(map(repr, names))
            lines.append(f"  classes that look alike, are they one? {listed}")
        for reason, count in sorted(self.dropped.items()):
            lines.append(f"  {count} dropped, {reason}: {self._shown(reason, count)}")
        if self.num_clipped:
            shown = self._shown("clipped", self.num_clipped)
            lines.append(f"  {self.num_clipped} boxes clipped to their image: {shown}")
        if self.num_small_images:
            lines.append(
                f"  {self.num_small_images} images dropped, a side is below "
                f"{MIN_IMAGE_SIDE} pixels"
            )
        if self.num_without_objects:
            verb = "kept" if self.keep_empty else "dropped (keep_empty=False)"
            lines.append(f"  {self.num_without_objects} images without objects {verb}")
        if self.bad_images:
            lines.append(f"  {len(self.bad_images)} bad images skipped:")
            lines.extend(f"    {name}: {text}" for name, text, _ in self.bad_images)
        return "\n".join(lines)


class DetectionDataset:
    """Images with boxes, read from a dataset of any format.

    Args:
        records: sequence of `ImageRecord`.
        class_names: K strings, index = label.
        category_ids: K ints, index = label: the ids in the annotation file, and so in
            results that are sent to an evaluation.
        annotation_file: str, where evaluation reads the ground truth and the crowds.
        image_dir: str, the folder that file names are relative to.
        report: `ReadReport`.
    """

    def __init__(
        self, records, class_names, category_ids, annotation_file, image_dir, report
    ):
        self.records = list(records)
        self.class_names = tuple(class_names)
        self.category_ids = tuple(category_ids)
        self.annotation_file = str(annotation_file)
        self.image_dir = str(image_dir)
        self.report = report

    @property
    def num_classes(self):
        """Number of classes, K."""
        return len(self.class_names)

    @property
    def num_boxes(self):
        """Number of boxes of all records."""
        return sum(len(record.boxes) for record in self.records)

    @property
    def sizes(self):
        """List of (height, width) of all images, pixels."""
        return [(record.height, record.width) for record in self.records]

    def __len__(self):
        return len(self.records)

    def __iter__(self):
        return iter(self.records)

    def __getitem__(self, index):
        return self.records[index]

    def subset(self, count):
        """Returns a dataset of the first `count` records, for overfit runs and tests.

        Raises:
            ValueError: if `count` is not between 1 and the number of records.
        """
        if not 1 <= count <= len(self.records):
            raise ValueError(
                f"`count` must be between 1 and {len(self.records)}. "
                f"Received: count={count}"
            )
        part = copy.copy(self)
        part.records = self.records[:count]
        return part

    def summary(self):
        """Returns a text that says what the dataset holds and what was dropped."""
        names = ", ".join(self.class_names[:10])
        more = ", ..." if self.num_classes > 10 else ""
        head = (
            f"{len(self)} images with {self.num_boxes} boxes of {self.num_classes} "
            f"classes ({names}{more})"
        )
        return f"{head}\nread from {self.report.summary()}"


def listed(texts):
    """Texts one a line, at most twenty and then how many more."""
    lines = [f"\n  {one_line(text, 1000)}" for text in texts[:MAX_LISTED]]
    if len(texts) > MAX_LISTED:
        lines.append(f"\n  and {len(texts) - MAX_LISTED} more")
    return "".join(lines)
