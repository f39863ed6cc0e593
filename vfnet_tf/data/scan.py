"""Looks for everything in a dataset that would stop, harm or mislead a training.

Files are read and decoded as the reader and the pipeline would do it, in threads, and
never written. What was found is a `ScanResult`; `vfnet scan` prints and draws it.
"""

import collections
import concurrent.futures
import dataclasses
import hashlib
import math
import os
import re

import numpy as np
from PIL import Image

from vfnet_tf.data import coco
from vfnet_tf.data.files import find_file
from vfnet_tf.data.images import inspect, numpy_decode
from vfnet_tf.data.images.reasons import Reason
from vfnet_tf.data.random_sizes import keep_ratio_sizes
from vfnet_tf.data.text import printable
from vfnet_tf.data.unread_files import find_unread_files

#: Levels of a finding, worst first.
LEVELS = ("error", "warning", "note")
#: Of the json; a new one when a key goes or changes its meaning, not when one is added.
JSON_VERSION = 1

# P3 has stride 8: what is smaller falls between its points.
SMALL_SIDE = 8
COMMONLY_SMALL = 0.25
# Longer side by shorter side: such a box covers few points of any level.
ELONGATED = 10
MANY_OBJECTS = 300
RARE_CLASS = 10
IMBALANCE = 20
# Of two boxes that are one object. True neighbours, such as a rider and a horse, stay
# below it with few exceptions.
SAME_BOX_IOU = 0.9
# Boxes listed of a kind that may be most of the data; their number is always exact.
MAX_LISTED_BOXES = 100
# Folders with files that are not read, each with a finding of its own.
MAX_LISTED_FOLDERS = 5

_THUMB_SIDE = 16
# Grey levels of 255 by which almost equal pictures differ: root mean square, and at most
# in any of the 16x16 cells. JPEG quality 30 or another size made up to 3.1 and 14 on
# coco_mini; its closest different photographs differ by 28 and 60, those of bccd by 10
# and 43, but for one slide shot twice (2.9 and 9), in train and in val.
_SAME_RMS = 4.0
_SAME_CELL = 16
_SAME_RATIO = 0.02
# Of two pictures with little contrast, such as dark ones, all differ by little: part of
# the standard deviation of the cells that the root mean square stays below. Copies as
# above reach 0.06, the slide 0.16, different photographs 0.7.
_SAME_CONTRAST = 0.3
# Of 255. A picture of 12 bits in a file of 16 reaches 15.
_DIM = 32


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of finding.

    Attributes:
        level: one of `LEVELS`. An error stops the training or makes its metrics worth
            nothing; a warning costs labels or accuracy; a note is good to know.
        title: str, what it is.
        advice: str, what follows from it and what to do.
    """

    level: str
    title: str
    advice: str


_DROPPED = "Training goes on without this box."
#: Name of a kind, as in the json -> `Kind`.
KINDS = {
    "unreadable_data": Kind(
        "error", "the dataset cannot be read", "Every command stops with this message."
    ),
    "unreadable_split": Kind(
        "error",
        "annotations cannot be read",
        "Whatever needs this split stops with this message.",
    ),
    "no_usable_image": Kind(
        "error",
        "no image of the split can be used",
        "Whatever needs this split stops. The images are named below.",
    ),
    "no_train_split": Kind(
        "error", "no training images", "There is nothing to train on."
    ),
    "no_train_boxes": Kind(
        "error", "no usable box in the training images", "Training stops."
    ),
    "missing_image": Kind(
        "error",
        "image file does not exist",
        "Training stops; --skip-bad-images goes on without it.",
    ),
    "truncated_image": Kind(
        "error",
        "image file ends too early",
        "Copy it again; training stops, or --skip-bad-images goes on without it.",
    ),
    "undecodable_image": Kind(
        "error",
        "image file cannot be decoded",
        "Training stops; --skip-bad-images goes on without it.",
    ),
    "corrupt_image": Kind(
        "error",
        "image file is damaged inside",
        "Decoders fill or skip what is wrong without a word: part of the picture is grey "
        "or displaced. Copy it again, or take it out.",
    ),
    "tensorflow_cannot_decode": Kind(
        "error",
        "TensorFlow cannot decode the image",
        "Training would stop in the middle of an epoch. Save the image anew.",
    ),
    "unsupported_format": Kind(
        "error",
        "image format is not supported",
        "Save it as 8-bit JPEG or PNG; training stops, or --skip-bad-images leaves it "
        "out.",
    ),
    "size_conflict": Kind(
        "error",
        "image has another size than its annotation says",
        "Boxes would be in the wrong places. Often the labels were drawn before the "
        "image was resized, or on an image shown without its EXIF orientation.",
    ),
    "bad_image_entry": Kind(
        "error",
        "image entry of the annotations is wrong",
        "Training stops, or --skip-bad-images leaves it out.",
    ),
    "leakage": Kind(
        "error",
        "same or almost the same image in training and evaluation",
        "Metrics would be better than the detector is. Take it out of one split.",
    ),
    "shared_by_evaluations": Kind(
        "warning",
        "same or almost the same image in val and test",
        "A choice made by val is then partly made by test.",
    ),
    "duplicate_image": Kind(
        "warning",
        "same or almost the same image more than once in a split",
        "It weighs more than others, and its labels may contradict each other.",
    ),
    "no_validation_split": Kind(
        "warning",
        "no validation images",
        "No epoch can be measured, and the last weights are taken for the best.",
    ),
    "bad_box": Kind("warning", "box is not four finite numbers", _DROPPED),
    "degenerate_box": Kind("warning", "box without width, height or area", _DROPPED),
    "outside_box": Kind("warning", "box outside its image", _DROPPED),
    "clipped_box": Kind(
        "warning",
        "box reaches outside its image",
        "It is cut at the border. Many of them: are the sizes those of these files?",
    ),
    "subpixel_box": Kind("warning", "box narrower than a pixel", _DROPPED),
    "unknown_category": Kind("warning", "box of a category not listed", _DROPPED),
    "unknown_image": Kind("warning", "box of an image not listed", _DROPPED),
    "repeated_annotation": Kind("warning", "annotation listed twice", _DROPPED),
    "dropped_box": Kind("warning", "box that cannot be used", _DROPPED),
    "duplicate_box": Kind(
        "warning",
        "two boxes of a class on one object",
        "One of them is always a miss, or teaches two detections for one object.",
    ),
    "conflicting_box": Kind(
        "warning",
        "boxes of two classes on one object",
        "Each teaches against the other, unless an object can be both.",
    ),
    "small_image": Kind(
        "warning",
        f"image with a side below {coco.MIN_IMAGE_SIDE} pixels",
        "Training leaves it out.",
    ),
    "dim_image": Kind(
        "warning",
        "image is almost black",
        "Of 16 bits the high byte is used. Values of 10, 12 or 14 bits must be scaled to "
        "fill the 16, or saved as 8-bit images.",
    ),
    "many_objects": Kind(
        "warning",
        f"more than {MANY_OBJECTS} objects in an image",
        "A detector returns 100 by default (max_detections), and COCO metrics count "
        "100. Cut such images into tiles.",
    ),
    "class_without_boxes": Kind(
        "warning",
        "class without any box",
        "Without boxes in train it is never learned, without boxes in val never measured.",
    ),
    "similar_classes": Kind(
        "warning",
        "classes with names that look alike",
        "They differ only in blanks or case. Are they one class?",
    ),
    "class_not_in_train": Kind(
        "warning",
        "boxes of classes that the training annotations do not list",
        "They are left out of the evaluation.",
    ),
    "commonly_small_boxes": Kind(
        "warning",
        "many boxes are small at the training size",
        "Take a larger --image-size, or cut the images into tiles.",
    ),
    "unused_labels": Kind(
        "warning",
        "label file that is not read",
        "There is no image of its name, or no list names it.",
    ),
    "unread_image": Kind(
        "warning",
        "image file of an ending that folders are not searched for",
        f"Save it as JPEG or PNG; folders are searched for "
        f"{', '.join(sorted(coco.IMAGE_SUFFIXES))}.",
    ),
    "small_box": Kind(
        "note",
        "box is small at the training size",
        "Such objects are hard to find; a larger --image-size makes them larger.",
    ),
    "elongated_box": Kind(
        "note",
        f"box is more than {ELONGATED} times as long as wide",
        "Few points of the detector lie in it. Is it really one object?",
    ),
    "class_imbalance": Kind(
        "note",
        "classes differ much in their number of boxes",
        "Look at the AP of each class, not at the mean alone.",
    ),
    "image_without_objects": Kind(
        "note",
        "image without objects",
        "Training leaves it out, evaluation counts what is found in it as wrong. Was it "
        "labelled?",
    ),
    "exif_orientation": Kind(
        "note",
        "image is stored turned (EXIF orientation)",
        "It is turned upright when read. See below whether the boxes fit.",
    ),
    "converted_format": Kind(
        "note",
        "image is neither JPEG nor PNG",
        "It is decoded in Python, which is slower; save it as JPEG or PNG.",
    ),
    "unlisted_file": Kind(
        "note",
        "image file that no annotations list",
        "It is not used. Was it forgotten?",
    ),
    "unused_split": Kind(
        "note",
        "list, file or folder of annotations that is not read",
        "Splits are called train, val (valid, validation) and test; of two names for "
        "one the first is read.",
    ),
    "passed_over": Kind(
        "note",
        "file or link that is passed over",
        "It is no data: hidden, of the system or an archive, a pipe or a dead link.",
    ),
}

_PROBLEM_KINDS = {
    coco.BAD_BOX: "bad_box",
    coco.BAD_SIZE: "degenerate_box",
    coco.BAD_AREA: "degenerate_box",
    coco.OUTSIDE: "outside_box",
    coco.CLIPPED: "clipped_box",
    coco.TINY: "subpixel_box",
    coco.UNKNOWN_CATEGORY: "unknown_category",
    coco.UNKNOWN_IMAGE: "unknown_image",
    coco.DUPLICATE: "repeated_annotation",
}


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image that a finding is about, and the boxes in question.

    Attributes:
        path: str.
        boxes: tuple of `(x1, y1, x2, y2)`, pixels of the upright image, finite; they may
            reach outside.
        names: tuple of str, the class of each box; empty where it is not known.
    """

    path: str
    boxes: tuple = ()
    names: tuple = ()


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Attributes:
        kind: key of `KINDS`.
        split: str such as `"train"`, or `"train+val"`.
        text: str, one line that names image and annotation.
        count: int, how many boxes, images or classes it is about.
        pictures: tuple of `Picture`, worst first.
    """

    kind: str
    split: str
    text: str
    count: int = 1
    pictures: tuple = ()

    @property
    def level(self):
        """One of `LEVELS`."""
        return KINDS[self.kind].level


@dataclasses.dataclass(frozen=True, eq=False)
class SplitStatistics:
    """What a split holds, without what had to be left out.

    Attributes:
        annotation_file, image_dir: str.
        num_listed: int, images that the annotations list.
        num_crowd: int, crowd regions, which are not among the boxes.
        image_sizes: int `[N, 2]`, (height, width) of the good images, upright.
        box_sizes: float32 `[R, 2]`, (height, width) of the boxes in pixels of the
            training size.
        aspect_ratios: float32 `[R]`, width / height of the boxes in the original.
        objects_per_image: int `[N]`.
        class_counts: dict class name -> number of boxes.
    """

    annotation_file: str
    image_dir: str
    num_listed: int
    num_crowd: int
    image_sizes: np.ndarray
    box_sizes: np.ndarray
    aspect_ratios: np.ndarray
    objects_per_image: np.ndarray
    class_counts: dict

    @property
    def num_images(self):
        """Number of good images, N."""
        return len(self.image_sizes)

    @property
    def num_boxes(self):
        """Number of usable boxes, R."""
        return len(self.box_sizes)

    def to_json(self):
        """The numbers as a dict of what json knows."""
        return {
            "annotation_file": self.annotation_file,
            "image_dir": self.image_dir,
            "images_listed": self.num_listed,
            "images": self.num_images,
            "images_without_objects": int((self.objects_per_image == 0).sum()),
            "boxes": self.num_boxes,
            "crowd_regions": self.num_crowd,
            "boxes_by_class": dict(self.class_counts),
            "image_height": _spread(self.image_sizes[:, 0]),
            "image_width": _spread(self.image_sizes[:, 1]),
            "box_height_at_training_size": _spread(self.box_sizes[:, 0]),
            "box_width_at_training_size": _spread(self.box_sizes[:, 1]),
            "objects_per_image": _spread(self.objects_per_image),
        }


def _spread(values):
    """min, mean and max of numbers as a dict, None without any."""
    if len(values) == 0:
        return None
    return {
        "min": round(float(np.min(values)), 3),
        "mean": round(float(np.mean(values, dtype="float64")), 3),
        "max": round(float(np.max(values)), 3),
    }


@dataclasses.dataclass(frozen=True, eq=False)
class ScanResult:
    """What `scan_splits` found.

    Attributes:
        image_size: (short, long) sides, or (height, width), of the training.
        small_side: pixels, a box with a shorter side is a small one.
        splits: dict split -> `SplitStatistics`; without those that cannot be read.
        findings: list of `Finding`, worst level first, in the order of `KINDS`.
    """

    image_size: tuple[int, int]
    small_side: float
    splits: dict
    findings: list

    def by_kind(self):
        """Dict kind -> list of its findings, in the order of `KINDS`."""
        found = collections.defaultdict(list)
        for finding in self.findings:
            found[finding.kind].append(finding)
        return dict(found)

    def num_findings(self, level):
        """Number of findings of a level."""
        return sum(finding.level == level for finding in self.findings)

    def is_safe(self, strict=False):
        """Whether to train on it: no error, and if `strict` no warning either."""
        levels = LEVELS[: 1 + strict]
        return not any(self.num_findings(level) for level in levels)

    def verdict(self, strict=False):
        """A line that says whether it is safe, and the number of findings."""
        counts = {level: self.num_findings(level) for level in LEVELS}
        listed = ", ".join(
            f"{count} {level}{'' if count == 1 else 's'}"
            for level, count in counts.items()
        )
        word = "safe" if self.is_safe(strict) else "not safe"
        return f"{word} to train on{' (--strict)' if strict else ''}: {listed}"

    def to_json(self):
        """All of it as a dict of what json knows; docs/scan.md describes the keys."""
        return {
            "version": JSON_VERSION,
            "image_size": list(self.image_size),
            "small_side": self.small_side,
            "is_safe": self.is_safe(),
            "is_safe_strict": self.is_safe(strict=True),
            "num_findings": {level: self.num_findings(level) for level in LEVELS},
            "splits": {name: split.to_json() for name, split in self.splits.items()},
            "findings": [
                {
                    "level": finding.level,
                    "kind": finding.kind,
                    "split": finding.split,
                    "text": finding.text,
                    "count": finding.count,
                    "images": [
                        {
                            "path": picture.path,
                            "boxes": [list(box) for box in picture.boxes],
                            "classes": list(picture.names),
                        }
                        for picture in finding.pictures
                    ],
                }
                for finding in self.findings
            ],
        }


@dataclasses.dataclass(frozen=True)
class _File:
    """An image file as it was seen: head, hash of its bytes, thumbnail of its pixels.

    `brightest` is the largest value of all pixels, or of the thumbnail if that is not
    dark.
    """

    header: inspect.ImageHeader
    digest: bytes = b""
    thumb: bytes = b""
    brightest: int = 255


class _Files:
    """Looks at each image file once, in threads.

    Args:
        num_threads: int.
        decode: function of a path that raises if it cannot be decoded; None for none.
        progress: factory `total -> object with add() and close()`.
    """

    def __init__(self, num_threads, decode, progress):
        self.seen = {}
        self._num_threads = num_threads
        self._decode = decode
        self._progress = progress

    def inspect(self, paths):
        """What `read_coco` takes as `check_images`."""
        todo = [path for path in dict.fromkeys(paths) if path not in self.seen]
        if todo:
            progress = self._progress(len(todo))
            # Decoding, resizing and hashing release the interpreter lock.
            pool = concurrent.futures.ThreadPoolExecutor(self._num_threads)
            try:
                for path, file in zip(todo, pool.map(self._look, todo), strict=True):
                    self.seen[path] = file
                    progress.add()
            finally:
                # Interrupted, it must not go through all files first.
                pool.shutdown(cancel_futures=True)
                progress.close()
        return {path: self.seen[path].header for path in paths}

    def _look(self, path):
        looks = []
        header = inspect.inspect_image(
            path, look=lambda *image: looks.append(_look_at(*image)), find_damage=True
        )
        if header.error:
            return _File(header)
        if self._decode is not None and not header.needs_pil:
            try:
                self._decode(path)
            except Exception as error:  # Whatever the operation raises.
                # "{{node}} Invalid PNG data, size 13445 [Op:DecodeJpeg]"
                reason = re.sub(r"\{\{.*?\}\}\s*|\s*\[Op:.*?\].*", "", str(error))
                text = f"TensorFlow cannot decode it: {reason}"
                return _File(inspect.ImageHeader(error=text, code=Reason.TENSORFLOW))
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").digest()
        return _File(header, digest, *looks[0])


def _look_at(image, orientation):
    """Thumbnail of an open PIL image, upright, as bytes, and its brightest value.

    They are of the pixels that training gets.
    """
    image = numpy_decode.to_rgb(image)
    grey = image.convert("L")
    if orientation > 1:
        grey = numpy_decode.turn(np.asarray(grey), orientation)
        grey = Image.fromarray(np.ascontiguousarray(grey))
    size = (_THUMB_SIDE, _THUMB_SIDE)
    thumb = grey.resize(size, Image.Resampling.BOX).tobytes()
    brightest = max(thumb)
    if brightest < _DIM:  # of the means; then it is worth to look at all pixels
        brightest = max(high for _, high in image.getextrema())
    return thumb, brightest


def _tensorflow_decoder():
    """The function that the pipeline decodes with."""
    import tensorflow as tf

    from vfnet_tf.data.images.decode import load_image

    def decode(path):
        with tf.device("CPU"):
            load_image(path)

    return decode


class _Silent:
    def __init__(self, total):
        pass

    def add(self):
        pass

    def close(self):
        pass


def scan_splits(
    splits,
    *,
    image_size=(800, 1333),
    keep_ratio=True,
    small_side=SMALL_SIDE,
    use_tensorflow=True,
    num_threads=None,
    progress=_Silent,
):
    """Checks all images and boxes of a dataset.

    Args:
        splits: mapping `"train"`, `"val"`, `"test"` -> (annotation file, image folder),
            as `find_coco_splits` returns.
        image_size: (short, long) in pixels that images are fitted into for training, or
            (height, width) if not `keep_ratio`.
        keep_ratio: bool.
        small_side: number, pixels at that size: a box with a shorter side is small.
        use_tensorflow: bool, decode with TensorFlow too, as training will, not only with
            PIL, as the reader does.
        num_threads: int; by default as many as there are cores.
        progress: factory `total -> object` whose `add()` is called after each image,
            `close()` at the end, such as `cli.progress.Progress`.

    Returns:
        `ScanResult`.

    Raises:
        ValueError: for sizes or a number of threads that are none. What is wrong with
            the data is a finding.
    """
    num_threads = num_threads or os.cpu_count() or 1
    if num_threads < 1 or not 0 <= small_side < float("inf"):  # so NaN, too
        raise ValueError(
            "`num_threads` must be >= 1 and `small_side` >= 0. Received: "
            f"num_threads={num_threads}, small_side={small_side}"
        )
    is_size = len(image_size) == 2 and min(image_size) >= 1
    if not is_size or (keep_ratio and image_size[0] > image_size[1]):
        rule = "(short, long) with short <= long" if keep_ratio else "(height, width)"
        raise ValueError(
            f"`image_size` must be {rule}, pixels. Received: image_size={image_size}"
        )
    decode = _tensorflow_decoder() if use_tensorflow else None
    files = _Files(num_threads, decode, progress)
    findings, statistics, usable, listed = [], {}, [], {}
    if "train" not in splits:
        findings.append(Finding("no_train_split", "train", "there is no split train"))
    if "val" not in splits:
        findings.append(Finding("no_validation_split", "val", "there is no split val"))
    class_names, similar = None, collections.defaultdict(list)
    for split in splits:
        dataset = _read(split, splits, class_names, files, findings)
        if dataset is None:
            continue
        if split == "train":
            class_names = dataset.class_names or None
        findings += _reader_findings(split, dataset)
        listed[split] = [record.path for record in dataset] + [
            find_file(dataset.image_dir, name) for name, *_ in dataset.report.bad_images
        ]
        if not len(dataset):
            text = f"all {dataset.report.num_images} images are bad"
            findings.append(Finding("no_usable_image", split, text))
            continue
        found, statistics[split] = _examine(
            split, dataset, image_size, keep_ratio, small_side
        )
        findings += found
        findings += _dim_images(split, dataset, files.seen)
        usable += [(split, record.path) for record in dataset]
        for names in dataset.report.similar_classes:
            similar[names].append(split)
    findings += [
        Finding("similar_classes", "+".join(found), ", ".join(map(repr, names)))
        for names, found in similar.items()
    ]
    if usable:
        findings += _same_images(usable, files.seen)
    findings += _unread_findings(splits, listed)
    order = list(KINDS)
    findings = [
        dataclasses.replace(finding, text=printable(finding.text))
        for finding in findings
    ]
    findings.sort(
        key=lambda finding: (LEVELS.index(finding.level), order.index(finding.kind))
    )
    return ScanResult(tuple(image_size), small_side, statistics, findings)


def unreadable(error, image_size=(800, 1333), small_side=SMALL_SIDE):
    """The `ScanResult` of data that no split can be found in.

    Args:
        error: ValueError that says why.
        image_size, small_side: as of `scan_splits`.
    """
    finding = _stopped("unreadable_data", "data", error)
    return ScanResult(tuple(image_size), small_side, {}, [finding])


def _stopped(kind, split, error):
    """`Finding` of an error's message, on one line."""
    lines = str(error).splitlines()
    text = " ".join(lines[:20])
    if len(lines) > 20:
        text += f" ... and {len(lines) - 20} lines more"
    return Finding(kind, split, text)


def _read(split, splits, class_names, files, findings):
    """Reads a split; what stops that is appended to `findings`, and None returned."""
    try:
        annotation_file, image_dir = splits[split]
    except (ValueError, OSError) as error:
        findings.append(_stopped("unreadable_split", split, error))
        return None
    stop = None
    # With classes of its own where those of the training stop it: to see the rest.
    for names in dict.fromkeys((class_names, None)):
        try:
            return coco.read_coco(
                annotation_file,
                image_dir,
                class_names=names,
                skip_bad_images=True,
                check_images=files.inspect,
                training=False,
                allow_empty=True,
            )
        except (ValueError, OSError) as error:
            if stop is None:
                stop = _stopped("unreadable_split", split, error)
                findings.append(stop)
    return None


def _reader_findings(split, dataset):
    """What the reader has dropped, changed or skipped."""
    report, findings = dataset.report, []
    for name, reason, kind in report.bad_images:
        path = os.path.join(dataset.image_dir, name)
        pictures = (Picture(path),) if os.path.isfile(path) else ()
        findings.append(Finding(str(kind), split, f"{name} {reason}", 1, pictures))
    for problem in report.problems:
        kind = _PROBLEM_KINDS.get(problem.reason, "dropped_box")
        box = problem.box
        boxes = (box,) if box is not None and all(map(math.isfinite, box)) else ()
        pictures = (Picture(problem.path, boxes),) if problem.path else ()
        text = f"{problem.text}: {problem.reason}"
        findings.append(Finding(kind, split, text, 1, pictures))
    others = report.dropped.get(coco.OTHER_CLASS, 0)
    if others:
        examples = "; ".join(report.examples[coco.OTHER_CLASS])
        findings.append(Finding("class_not_in_train", split, examples, others))
    return findings


def _examine(split, dataset, image_size, keep_ratio, small_side):
    """Findings on what the reader accepts, and the `SplitStatistics`."""
    records = dataset.records
    sizes = np.asarray(dataset.sizes, "int64").reshape(-1, 2)
    counts = np.array([len(record.boxes) for record in records], "int64")
    owners = np.repeat(np.arange(len(records)), counts)
    boxes = np.concatenate([record.boxes for record in records])
    labels = np.concatenate([record.labels for record in records])
    if keep_ratio:
        resized = keep_ratio_sizes(sizes, *image_size)
    else:
        resized = np.tile(np.asarray(image_size, "int64"), (len(sizes), 1))
    extents = boxes[:, [3, 2]] - boxes[:, [1, 0]]  # (height, width)
    at_training = (extents * (resized / sizes)[owners]).astype("float32")
    elongation = extents.max(axis=1) / extents.min(axis=1)
    by_class = np.bincount(labels, minlength=dataset.num_classes)
    class_counts = dict(zip(dataset.class_names, by_class.tolist(), strict=True))
    findings = []

    def of_images(kind, mask):
        rows = np.flatnonzero(mask)
        if len(rows):
            pictures = tuple(_picture(dataset, row) for row in rows)
            names = ", ".join(os.path.basename(p.path) for p in pictures[:3])
            more = ", ..." if len(rows) > 3 else ""
            text = f"{_share(len(rows), len(records), 'images')}: {names}{more}"
            findings.append(Finding(kind, split, text, len(rows), pictures))

    def of_boxes(kind, mask, goodness, text):
        rows = np.flatnonzero(mask)
        if len(rows):
            worst = rows[np.argsort(goodness[rows], kind="stable")][:MAX_LISTED_BOXES]
            firsts = np.cumsum(counts) - counts
            pictures = tuple(
                _picture(dataset, owners[row], [row - firsts[owners[row]]])
                for row in worst
            )
            text = f"{_share(len(rows), len(boxes), 'boxes')} {text}"
            findings.append(Finding(kind, split, text, len(rows), pictures))

    if split == "train" and not len(boxes):
        text = dataset.report.annotation_file
        findings.append(Finding("no_train_boxes", split, text))
    findings += _class_findings(split, class_counts)
    of_images("small_image", sizes.min(axis=1) < coco.MIN_IMAGE_SIDE)
    of_images("many_objects", counts > MANY_OBJECTS)
    # The images of COCO's test split come without annotations on purpose.
    if split != "test" or dataset.report.num_annotations:
        crowds = np.array([record.num_crowd for record in records])
        of_images("image_without_objects", (counts == 0) & (crowds == 0))
    of_images("exif_orientation", [record.orientation > 1 for record in records])
    of_images("converted_format", [record.needs_pil for record in records])
    size_text = f"{image_size[0]}x{image_size[1]}"
    shorter = at_training.min(axis=1)
    is_small = shorter < small_side
    text = f"have a side below {small_side:g} pixels at the training size {size_text}"
    of_boxes("small_box", is_small, shorter, text)
    if len(boxes) and is_small.mean() > COMMONLY_SMALL:
        share = _share(int(is_small.sum()), len(boxes), "boxes")
        findings.append(Finding("commonly_small_boxes", split, f"{share} {text}"))
    text = f"are more than {ELONGATED} times as long as wide"
    of_boxes("elongated_box", elongation > ELONGATED, -elongation, text)
    for record in records:
        findings += _coinciding_boxes(split, record, dataset.class_names)
    statistics = SplitStatistics(
        dataset.report.annotation_file,
        dataset.image_dir,
        dataset.report.num_images,
        dataset.report.num_crowd,
        sizes,
        at_training,
        extents[:, 1] / extents[:, 0],
        counts,
        class_counts,
    )
    return findings, statistics


def _dim_images(split, dataset, seen):
    """Images that are almost black."""
    findings = []
    for row, record in enumerate(dataset):
        brightest = seen[record.path].brightest
        if brightest < _DIM:
            text = (
                f"{os.path.basename(record.path)}: no pixel is brighter than {brightest} "
                "of 255"
            )
            pictures = (_picture(dataset, row),)
            findings.append(Finding("dim_image", split, text, 1, pictures))
    return findings


def _share(count, total, what):
    return f"{count} of {total} {what} ({100 * count / total:.1f} %)"


def _picture(dataset, row, boxes=slice(None)):
    """`Picture` of a record with some of its boxes."""
    record = dataset[row]
    names = tuple(dataset.class_names[label] for label in record.labels[boxes])
    return Picture(record.path, tuple(map(tuple, record.boxes[boxes].tolist())), names)


def _class_findings(split, class_counts):
    """Classes without boxes, and classes with few."""
    findings, total = [], sum(class_counts.values())
    if split == "test" and not total:
        return findings
    empty = [name for name, count in class_counts.items() if not count]
    if empty:
        text = f"{len(empty)} of {len(class_counts)} classes: {', '.join(empty)}"
        findings.append(Finding("class_without_boxes", split, text, len(empty)))
    found = {name: count for name, count in class_counts.items() if count}
    if split != "train" or not found:
        return findings
    most, least = max(found, key=found.get), min(found, key=found.get)
    rare = [f"{name} ({count})" for name, count in found.items() if count < RARE_CLASS]
    if found[most] >= IMBALANCE * found[least] or rare:
        text = (
            f"{found[most]} boxes of {most}, {found[least]} of {least}"
            if most != least
            else f"{found[most]} boxes of {most}"
        )
        if rare:
            text += f"; fewer than {RARE_CLASS} boxes: {', '.join(rare)}"
        number = len(rare) or 1
        findings.append(Finding("class_imbalance", split, text, number))
    return findings


def _coinciding_boxes(split, record, class_names):
    """Pairs of boxes of a record that are almost the same box."""
    boxes = record.boxes
    if len(boxes) < 2:
        return []
    top_left = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    bottom_right = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    overlap = np.maximum(bottom_right - top_left, 0).prod(axis=-1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=-1)
    iou = overlap / (areas[:, None] + areas[None] - overlap)
    findings = []
    for first, second in np.argwhere(np.triu(iou >= SAME_BOX_IOU, k=1)):
        pair = [first, second]
        names = tuple(class_names[label] for label in record.labels[pair])
        ids = [int(number) for number in record.annotation_ids[pair]]
        listed = " and ".join(
            f"{name} (annotation {number})" if number >= 0 else name
            for name, number in zip(names, ids, strict=True)
        )
        text = (
            f"{os.path.basename(record.path)}: {listed} overlap by IoU "
            f"{iou[first, second]:.2f}"
        )
        kind = "duplicate_box" if names[0] == names[1] else "conflicting_box"
        picture = Picture(record.path, tuple(map(tuple, boxes[pair].tolist())), names)
        findings.append(Finding(kind, split, text, 1, (picture,)))
    return findings


def _same_images(usable, seen):
    """Findings on images that occur more than once.

    Args:
        usable: list of (split, path).
        seen: dict path -> `_File`.
    """
    by_digest = collections.defaultdict(list)
    for split, path in usable:
        by_digest[seen[path].digest].append((split, path))
    contents = list(by_digest.values())
    files = [seen[places[0][1]] for places in contents]
    thumbs = np.frombuffer(b"".join(file.thumb for file in files), "uint8")
    ratios = np.array([file.header.width / file.header.height for file in files])
    findings = []
    for group in group_lookalikes(thumbs.reshape(len(files), -1), ratios):
        places = [place for row in group for place in contents[row]]
        if len(places) < 2:
            continue
        splits = list(dict.fromkeys(split for split, _ in places))
        if len(splits) == 1:
            kind = "duplicate_image"
        else:
            kind = "leakage" if "train" in splits else "shared_by_evaluations"
        how = "the same file" if len(group) == 1 else "almost the same pixels"
        # One of each split first, so that a long list shows what leaks.
        firsts = {split: (split, path) for split, path in reversed(places)}
        shown = [firsts[split] for split in splits]
        shown += [place for place in places if place not in shown]
        listed = " = ".join(
            f"{split}: {os.path.basename(path)}" for split, path in shown[:4]
        )
        more = f" and {len(places) - 4} more" if len(places) > 4 else ""
        pictures = tuple(Picture(path) for _, path in shown)
        text = f"{listed}{more} ({how})"
        findings.append(Finding(kind, "+".join(splits), text, len(places), pictures))
    return findings


def group_lookalikes(thumbs, ratios):
    """Groups pictures that differ by little more than an encoder's noise.

    A hash of the pixels would miss a copy that was saved as JPEG again or shrunk, and a
    perceptual hash of 64 bits joins different frames of a camera that does not move. So
    16x16 grey levels are compared as they are. The search is exhaustive: a product of
    matrices of their 4x4 means, whose distance is never the larger one, leaves few pairs.
    Pictures without contrast, such as white pages, are like no other.

    Args:
        thumbs: uint8 `[N, 256]`, grey levels of 16x16 cells.
        ratios: float `[N]`, width / height.

    Returns:
        list of lists of row numbers, each row in one; those alone are groups of one.
    """
    num_rows = len(thumbs)
    leaders = np.arange(num_rows)  # the lowest row of each group
    cells = thumbs.reshape(num_rows, 4, 4, 4, 4)
    coarse = cells.mean(axis=(2, 4), dtype="float32").reshape(num_rows, 16) - 128
    norms = np.square(coarse).sum(axis=1)
    contrasts = thumbs.std(axis=1, dtype="float32")
    block = max(1, (1 << 22) // max(num_rows, 1))  # 16 MB of distances at a time
    for start in range(0, num_rows, block):
        rows = slice(start, start + block)
        products = coarse[rows] @ coarse[start:].T
        distances = norms[rows, None] + norms[None, start:] - 2 * products
        # One more for the rounding of large norms.
        firsts, seconds = np.nonzero(distances <= 16 * _SAME_RMS**2 + 1)
        keep = seconds > firsts
        firsts, seconds = firsts[keep] + start, seconds[keep] + start
        for part in range(0, len(firsts), 1 << 15):
            a, b = firsts[part : part + (1 << 15)], seconds[part : part + (1 << 15)]
            difference = thumbs[a].astype("int32") - thumbs[b]
            is_same = np.abs(difference).max(axis=1) <= _SAME_CELL
            squares = np.square(difference).mean(axis=1)
            is_same &= squares <= _SAME_RMS**2
            contrast = np.minimum(contrasts[a], contrasts[b])
            is_same &= squares < (_SAME_CONTRAST * contrast) ** 2
            is_same &= np.abs(ratios[a] / ratios[b] - 1) <= _SAME_RATIO
            leaders = _joined(leaders, a[is_same], b[is_same])
    groups = collections.defaultdict(list)
    for row, leader in enumerate(leaders.tolist()):
        groups[leader].append(row)
    return list(groups.values())


def _joined(leaders, firsts, seconds):
    """`leaders` with the groups of each pair of rows made one, all pairs at a time."""
    while len(firsts):
        firsts, seconds = leaders[firsts], leaders[seconds]
        is_open = firsts != seconds
        firsts, seconds = firsts[is_open], seconds[is_open]
        higher = np.maximum(firsts, seconds)
        np.minimum.at(leaders, higher, np.minimum(firsts, seconds))
        while (leaders != leaders[leaders]).any():
            leaders = leaders[leaders]
    return leaders


def _unread_findings(splits, listed):
    """Findings on what lies beside the data and is not read.

    Args:
        splits: as of `scan_splits`; what `readers.Splits` knows more is used.
        listed: dict split -> list of the images that its annotations list.
    """
    findings = []
    unused = getattr(splits, "unused", ())
    if unused:
        text = f"{len(unused)} not read: {', '.join(unused)}"
        findings.append(Finding("unused_split", "data", text, len(unused)))
    images = [path for paths in listed.values() for path in paths]
    folder = getattr(splits, "folder", None)
    label_files = getattr(splits, "label_files", None)
    found = find_unread_files(
        images,
        folder=folder,
        label_suffix=getattr(splits, "label_suffix", ""),
        labels=label_files(images) if label_files else (),
    )
    if len(listed) < len(splits):  # or images of the others would seem to be unlisted
        found = {kind: found[kind] for kind in found.keys() & {"passed_over"}}
    owners = collections.defaultdict(dict)
    for split, paths in listed.items():
        for path in paths:
            owners[os.path.dirname(os.path.abspath(path))][split] = True
    for kind, entries in found.items():
        groups = collections.defaultdict(list)
        for path, reason in entries:
            groups[os.path.dirname(path), reason].append(path)
        if len(groups) > MAX_LISTED_FOLDERS:
            # Of many folders one line for each reason.
            groups = collections.defaultdict(list)
            for path, reason in entries:
                groups[folder or "", reason].append(path)
        for (place, reason), paths in groups.items():
            names = ", ".join(
                os.path.relpath(path, place or None) for path in paths[:3]
            )
            text = f"{len(paths)} files in {place or 'several folders'}: {names}"
            text += ", ..." if len(paths) > 3 else ""
            text += f" ({reason})" if reason else ""
            where = "+".join(owners.get(os.path.abspath(place), ())) or "data"
            is_image = kind in ("unlisted_file", "unread_image")
            pictures = tuple(Picture(path) for path in paths) if is_image else ()
            findings.append(Finding(kind, where, text, len(paths), pictures))
    return findings
