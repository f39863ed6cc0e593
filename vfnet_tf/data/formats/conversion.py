"""Writes a dataset in another format."""

import dataclasses
import functools
import itertools
import os
import pathlib
import shutil
import unicodedata

import numpy as np

from vfnet_tf.data.dataset import listed
from vfnet_tf.data.formats.coco import read_coco
from vfnet_tf.data.formats.coco_content import CocoContent
from vfnet_tf.data.formats.csv_file import write_csv
from vfnet_tf.data.formats.labelled_image import LabelledImage
from vfnet_tf.data.formats.tfrecord import write_tfrecord
from vfnet_tf.data.formats.voc import LABEL_SUFFIXES, write_voc
from vfnet_tf.data.formats.yolo import write_yolo
from vfnet_tf.data.images.inspect import IMAGE_SUFFIXES
from vfnet_tf.data.images.places import find_place, open_image
from vfnet_tf.files import filling_folder, refuse_url
from vfnet_tf.foreign_text import clipped, one_line

# As COCO's own files round, and one more.
_DECIMALS = 3


def _write_coco(out, split, images, class_names, category_ids):
    content = CocoContent(class_names, category_ids)
    for image in images:
        size = (image.height, image.width)
        content.add_image(image.name, image_id=image.image_id, size=size)
        for (box, label, is_crowd), area in zip(
            image.objects(), image.areas.tolist(), strict=True
        ):
            x1, y1, x2, y2 = box
            bbox = [round(value, _DECIMALS) for value in (x1, y1, x2 - x1, y2 - y1)]
            if np.isnan(area):
                area = round(bbox[2] * bbox[3], _DECIMALS)
            flags = {"iscrowd": int(is_crowd)}
            content.add_box(image.image_id, label, bbox, flags=flags, area=area)
    (out / "annotations").mkdir(exist_ok=True)
    content.write(out / "annotations" / f"instances_{split}.json")


#: format -> (folder of the images of a split, writer as in `labelled_image`, message on the
#: number that it returns). COCO's writer takes category ids too and returns None; that of
#: TFRecords takes them too, and writes the images itself.
_WRITERS = {
    "coco": ("{split}", _write_coco, None),
    "voc": ("JPEGImages", write_voc, "{} boxes moved by rounding to whole pixels"),
    "yolo": (
        "images/{split}",
        write_yolo,
        "{} crowd regions left out, YOLO cannot mark them",
    ),
    "csv": ("images", write_csv, None),
    "tfrecord": (None, write_tfrecord, None),
}
TARGETS = tuple(_WRITERS)
# Formats that state the area of an object beside its box.
_WITH_AREAS = ("coco", "tfrecord")
# Rules for names of images, by format; COCO has none.
_IMAGE_RULES = {
    "csv": "not end with a blank, and have no carriage return",
    "yolo": f"not begin with a dot, and end with {', '.join(sorted(IMAGE_SUFFIXES))}",
    "voc": "have no dot or blank at the beginning, no blank at the end or before the "
    "suffix, no control character, and not end with "
    f"{', '.join(sorted(LABEL_SUFFIXES))}",
}


@dataclasses.dataclass(frozen=True)
class Conversion:
    """What `convert_dataset` did.

    Attributes:
        summaries: list of str, what was read, one of each split.
        faults: dict split -> str, why it could not be read and was left out.
        losses: list of str, what the new format does not have.
        notes: list of str, what to know of the images and names that were written.
        num_images: int.
        num_boxes: int, crowd regions not counted.
    """

    summaries: list
    faults: dict
    losses: list
    notes: list
    num_images: int
    num_boxes: int


def convert_dataset(
    splits, target, out, *, link=False, skip_bad_images=False, progress=None
):
    """Writes all splits of a dataset in another format; the source stays as it is.

    Bad boxes are dropped and boxes are clipped as in training; images without boxes stay. A
    split that cannot be read is left out. Images keep their names; where two have the same
    name, the split or a number is added to one.

    Args:
        splits: `Splits` of `readers.find_splits`.
        target: str, one of `TARGETS`.
        out: str or path, a folder that is absent or empty. It is complete or absent.
        link: bool, make symbolic links to the images in place of copies; not to or from
            TFRecords, which hold the images.
        skip_bad_images: bool, leave out images that cannot be used.
        progress: see `tfds.find_tfds_splits`; it counts images that are copied.

    Returns:
        `Conversion`.

    Raises:
        ValueError: if `out` holds something or is a URL, the target is unknown, images are
            bad or cannot be linked, or no split can be read.
    """
    if target not in TARGETS:
        raise ValueError(
            f"The format must be one of {', '.join(TARGETS)}. Received: {target!r}"
        )
    if link and "tfrecord" in (target, splits.format):
        raise ValueError(
            "Images in TFRecords cannot be linked: copy them (--images copy). "
            f"Received: link=True from {splits.format} to {target}"
        )
    refuse_url("out", out)
    out = pathlib.Path(out).expanduser().absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(
            f"The target must be a folder that is absent or empty. Received: {out}"
        )
    read, faults = _read_all(splits, skip_bad_images)
    names, losses = next(iter(read.values())).class_names, []
    images = _labelled_images(read)
    _check_names(target, names, images)
    num_masks = sum(dataset.report.num_masks for dataset in read.values())
    num_turned = sum(
        record.orientation > 1 for dataset in read.values() for record in dataset
    )
    folder, write, loss = _WRITERS[target]
    num_lost, total = 0, sum(map(len, images.values()))
    with filling_folder(out) as aside:
        shown = None if progress is None else progress(total)
        done = (lambda: None) if shown is None else functools.partial(shown.add, 1)
        for split, entries in images.items():
            if target == "tfrecord":
                ids = _category_ids(next(iter(read.values())))
                write(aside, split, entries, names, ids, done)
                continue
            place = aside / folder.format(split=split)
            place.mkdir(parents=True, exist_ok=True)
            for image in entries:
                if link:
                    (place / image.name).symlink_to(os.path.abspath(image.path))
                else:
                    _copy_image(image.path, place / image.name)
                done()
            if target == "coco":
                write(aside, split, entries, names, _category_ids(read[split]))
            else:
                num_lost += write(aside, split, entries, names)
        if shown is not None:
            shown.close()
    if num_masks:
        losses.append(f"{num_masks} masks")
    num_areas = sum(one.num_own_areas for entries in images.values() for one in entries)
    if num_areas and target not in _WITH_AREAS:
        losses.append(
            f"{num_areas} areas that are not those of the boxes, such as areas of masks: "
            "AP by size changes"
        )
    if num_lost:
        losses.append(loss.format(num_lost))
    if num_turned:
        losses.append(
            f"{num_turned} images are turned by their EXIF orientation, the boxes are of "
            "the upright image: read them with a program that turns them"
        )
    return Conversion(
        [dataset.summary() for dataset in read.values()],
        faults,
        losses,
        [*_outside(splits, read, link), *_formulas(target, names)],
        total,
        sum(dataset.num_boxes for dataset in read.values()),
    )


def _copy_image(path, target):
    if find_place(path) is None:
        shutil.copyfile(path, target)
    else:
        with open_image(path) as image:
            target.write_bytes(image.read())


def _outside(splits, read, link):
    """A note on images that annotations name by an absolute path or by `..`."""
    found = []
    for dataset in read.values():
        folder = os.path.abspath(splits.folder or dataset.image_dir)
        paths = [os.path.abspath(record.path) for record in dataset]
        found += [
            path for path in paths if os.path.commonpath([path, folder]) != folder
        ]
    if not found or splits.format in ("tfds", "tfrecord"):
        return []
    done = "linked" if link else "copied"
    return [
        f"{len(found)} images lie outside of the dataset's folder, where its annotations "
        f"name them, and were {done} too, such as {clipped(found[0])}"
    ]


def _formulas(target, names):
    """A note on what spreadsheets run."""
    found = [name for name in names if name.startswith(tuple("=+-@"))]
    if target != "csv" or not found:
        return []
    return [
        f"a spreadsheet may take {clipped(found)} for formulas: import annotations.csv "
        "with all columns as text"
    ]


def _read_all(splits, skip_bad_images):
    """Reads all splits, whether or not others can be read.

    Returns:
        (dict split -> `DetectionDataset`, dict split -> why it cannot be read).
    """
    read, faults, bad, names = {}, {}, [], None
    for split in splits:
        try:
            dataset = read_coco(
                *splits[split],
                class_names=names,
                skip_bad_images=True,
                training=False,
                allow_empty=True,
            )
        except (ValueError, OSError) as error:
            faults[split] = str(error)
            continue
        bad_images = dataset.report.bad_images
        bad += [f"{split}: {name}: {reason}" for name, reason, _ in bad_images]
        if not len(dataset):
            name, reason, _ = bad_images[0]
            faults[split] = f"no image can be used, such as {name}: {reason}"
            continue
        if not dataset.class_names:
            faults[split] = "it has no object, and no class is named"
            continue
        names = dataset.class_names
        read[split] = dataset
    of_splits = [f"{split}: {fault}" for split, fault in faults.items()]
    if bad and not skip_bad_images:
        raise ValueError(
            "All images must be readable; repair or remove the bad ones, or go on "
            "without them by skip_bad_images=True (--skip-bad-images). Received: "
            f"{len(bad)} bad images:" + listed(bad + of_splits)
        )
    if not read:
        raise ValueError(
            "At least one split must be readable. Received:" + listed(of_splits)
        )
    return read, faults


def _category_ids(dataset):
    """Ids of the source; where those count from 0, from 1, as many programs want it."""
    ids = dataset.category_ids
    return ids if min(ids) >= 1 else range(1, len(ids) + 1)


def _labelled_images(read):
    """Dict split -> list of `LabelledImage`, of a dict split -> `DetectionDataset`."""
    taken = set()

    def labelled(split, record):
        boxes = np.concatenate([record.boxes, record.crowd_boxes], dtype="float64")
        labels = np.concatenate([record.labels, record.crowd_labels], dtype="int64")
        return LabelledImage(
            record.path,
            _free_name(record.path, split, taken),
            record.image_id,
            record.height,
            record.width,
            boxes,
            labels,
            is_crowd=np.repeat([False, True], [len(record.boxes), record.num_crowd]),
            areas=np.concatenate([record.areas, np.full(record.num_crowd, np.nan)]),
        )

    return {
        split: [labelled(split, record) for record in dataset]
        for split, dataset in read.items()
    }


def _has_controls(name):
    controls = "\ufeff\ufffe\uffff"
    return any(unicodedata.category(c) == "Cc" or c in controls for c in name)


def _check_names(target, class_names, images):
    """Refuses names that the reader of the new format would not read as they are."""
    if target in ("voc", "csv"):
        wrong = [n for n in class_names if n != n.strip() or _has_controls(n)]
        if wrong:
            shown = [
                clipped(n)
                + (f" beside {clipped(n.strip())}" if n.strip() in class_names else "")
                for n in wrong
            ]
            raise ValueError(
                f"Names of classes in {target} must not begin or end with blanks and "
                "must have no line break or control character: rename them, or write "
                f"coco or yolo. Received: {one_line(', '.join(shown), 2000)}"
            )
    names = [image.name for entries in images.values() for image in entries]
    wrong = [name for name in names if _is_lost(target, name)]
    if wrong:
        more = f" and {len(wrong) - 10} more" if len(wrong) > 10 else ""
        raise ValueError(
            f"Names of images in {target} must {_IMAGE_RULES[target]}: rename them, or "
            f"write coco. Received: {', '.join(map(clipped, wrong[:10]))}{more}"
        )


def _is_lost(target, name):
    """Whether the reader of a format would not find an image of that name."""
    stem, suffix = os.path.splitext(name)
    if target == "csv":
        return name != name.rstrip() or "\r" in name  # csv.writer leaves it unquoted
    if target == "yolo":
        return name.startswith(".") or suffix.lower() not in IMAGE_SUFFIXES
    return target == "voc" and (
        name.startswith(".")
        or stem != stem.strip()
        or name != name.strip()
        or suffix.lower() in LABEL_SUFFIXES
        or _has_controls(name)
    )


def _free_name(path, split, taken):
    """A file name whose stem is not taken yet; case does not count."""
    stem, suffix = os.path.splitext(os.path.basename(path))
    numbered = (f"{split}_{stem}_{number}" for number in itertools.count(2))
    candidates = itertools.chain([stem, f"{split}_{stem}"], numbered)
    free = next(name for name in candidates if name.lower() not in taken)
    taken.add(free.lower())
    return free + suffix
