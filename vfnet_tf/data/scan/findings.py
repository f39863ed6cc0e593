"""What `vfnet scan` returns: findings and statistics of each split."""

import collections
import dataclasses

import numpy as np

from vfnet_tf.data.scan.kinds import KINDS, LEVELS

#: Version of the json: a new one when a key is removed or changes its meaning, not when
#: one is added.
JSON_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image of a finding, and the boxes that it is about.

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
    """Numbers on the usable images and boxes of a split.

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
        """The numbers as a dict of JSON types."""
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
        """Whether there is no error, and if `strict` no warning either."""
        levels = LEVELS[: 1 + strict]
        return not any(self.num_findings(level) for level in levels)

    def verdict(self, strict=False):
        """A line with the result of `is_safe` and the number of findings."""
        counts = {level: self.num_findings(level) for level in LEVELS}
        listed = ", ".join(
            f"{count} {level}{'' if count == 1 else 's'}"
            for level, count in counts.items()
        )
        word = "safe" if self.is_safe(strict) else "not safe"
        return f"{word} to train on{' (--strict)' if strict else ''}: {listed}"

    def to_json(self):
        """The result as a dict of JSON types; docs/scan.md describes the keys."""
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
