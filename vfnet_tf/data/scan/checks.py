"""Checks every image and box of a dataset before a training."""

import collections
import concurrent.futures
import dataclasses
import hashlib
import math
import os
import re

import numpy as np
from PIL import Image

from vfnet_tf.data.canvases import check_image_size, resized_sizes
from vfnet_tf.data.dataset import MIN_IMAGE_SIDE, OTHER_CLASS
from vfnet_tf.data.folders import find_file
from vfnet_tf.data.formats import coco
from vfnet_tf.data.images import inspect, numpy_decode
from vfnet_tf.data.images.places import file_of, open_image
from vfnet_tf.data.images.reasons import Reason
from vfnet_tf.data.scan.findings import Finding, Picture, ScanResult, SplitStatistics
from vfnet_tf.data.scan.kinds import (
    COMMONLY_SMALL,
    ELONGATED,
    IMBALANCE,
    KINDS,
    LEVELS,
    MANY_OBJECTS,
    PROBLEM_KINDS,
    RARE_CLASS,
    SAME_BOX_IOU,
    SMALL_SIDE,
)
from vfnet_tf.data.scan.lookalikes import THUMB_SIDE, find_lookalikes
from vfnet_tf.data.text import printable
from vfnet_tf.data.unread_files import find_unread_files
from vfnet_tf.ops.numpy_boxes import pairwise_iou

# Boxes listed of a kind that may be most of the data; their number is always exact.
MAX_LISTED_BOXES = 100
# Folders with files that are not read, each with a finding of its own.
MAX_LISTED_FOLDERS = 5
# Of 255: an image whose pixels are all below it is almost black. A picture of 12 bits in
# a file of 16 reaches 15.
_DARK = 32


@dataclasses.dataclass(frozen=True)
class _CheckedImage:
    """What is known of an image file after its check.

    `digest` is a hash of its bytes, `thumb` its 16x16 grey levels. `brightest` is the
    largest value of all pixels, or of the thumbnail if that is not dark.
    """

    header: inspect.ImageHeader
    digest: bytes = b""
    thumb: bytes = b""
    brightest: int = 255


class _ImageChecker:
    """Checks each image file once, in threads.

    Args:
        num_threads: int.
        decode: function of a path that raises if it cannot be decoded; None for none.
        progress: factory `total -> object with add() and close()`.
    """

    def __init__(self, num_threads, decode, progress):
        self.checked = {}
        self._num_threads = num_threads
        self._decode = decode
        self._progress = progress

    def inspect(self, paths):
        """Dict path -> `ImageHeader`; `read_coco` takes this as `check_images`."""
        todo = [path for path in dict.fromkeys(paths) if path not in self.checked]
        if todo:
            progress = self._progress(len(todo))
            # Decoding, resizing and hashing release the interpreter lock.
            pool = concurrent.futures.ThreadPoolExecutor(self._num_threads)
            try:
                for path, image in zip(todo, pool.map(self._check, todo), strict=True):
                    self.checked[path] = image
                    progress.add()
            finally:
                # After an interrupt the pool would go through all files first.
                pool.shutdown(cancel_futures=True)
                progress.close()
        return {path: self.checked[path].header for path in paths}

    def _check(self, path):
        thumbs = []
        header = inspect.inspect_image(
            path,
            look=lambda *image: thumbs.append(_thumbnail(*image)),
            find_damage=True,
        )
        if header.error:
            return _CheckedImage(header)
        if self._decode is not None and not header.needs_pil:
            try:
                self._decode(path)
            except Exception as error:  # Whatever the operation raises.
                # "{{node}} Invalid PNG data, size 13445 [Op:DecodeJpeg]"
                reason = re.sub(r"\{\{.*?\}\}\s*|\s*\[Op:.*?\].*", "", str(error))
                text = f"TensorFlow cannot decode it: {reason}"
                header = inspect.ImageHeader(error=text, code=Reason.TENSORFLOW)
                return _CheckedImage(header)
        with open_image(path) as file:
            digest = hashlib.file_digest(file, "sha256").digest()
        return _CheckedImage(header, digest, *thumbs[0])


def _thumbnail(image, orientation):
    """Upright 16x16 grey levels of a PIL image, as bytes, and its brightest value.

    Both are of the pixels that training gets.
    """
    image = numpy_decode.to_rgb(image)
    grey = image.convert("L")
    if orientation > 1:
        grey = numpy_decode.turn(np.asarray(grey), orientation)
        grey = Image.fromarray(np.ascontiguousarray(grey))
    size = (THUMB_SIDE, THUMB_SIDE)
    thumb = grey.resize(size, Image.Resampling.BOX).tobytes()
    brightest = max(thumb)
    if brightest < _DARK:  # The means are dark: are all pixels?
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


class _NoProgress:
    def __init__(self, total):
        pass

    def add(self):
        pass

    close = add


def scan_splits(
    splits,
    *,
    image_size=(800, 1333),
    keep_ratio=True,
    small_side=SMALL_SIDE,
    use_tensorflow=True,
    num_threads=None,
    progress=_NoProgress,
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
            `close()` at the end, such as `progress.Progress`.

    Returns:
        `ScanResult`.

    Raises:
        ValueError: for a size or a number of threads out of range. What is wrong with
            the data is a finding.
    """
    num_threads = num_threads or os.cpu_count() or 1
    if num_threads < 1 or not 0 <= small_side < float("inf"):  # NaN too
        raise ValueError(
            "`num_threads` must be >= 1 and `small_side` >= 0. Received: "
            f"num_threads={num_threads}, small_side={small_side}"
        )
    image_size = check_image_size(image_size, keep_ratio)
    decode = _tensorflow_decoder() if use_tensorflow else None
    checker = _ImageChecker(num_threads, decode, progress)
    findings, statistics, usable, listed = [], {}, [], {}
    if "train" not in splits:
        findings.append(Finding("no_train_split", "train", "there is no split train"))
    if "val" not in splits:
        findings.append(Finding("no_validation_split", "val", "there is no split val"))
    class_names, similar = None, collections.defaultdict(list)
    for split in splits:
        dataset = _read(split, splits, class_names, checker, findings)
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
        statistics[split] = _statistics(dataset, image_size, keep_ratio)
        findings += _image_findings(split, dataset, checker.checked)
        findings += _class_findings(split, statistics[split].class_counts)
        findings += _box_findings(
            split, dataset, statistics[split].box_sizes, image_size, small_side
        )
        usable += [(split, record.path) for record in dataset]
        for names in dataset.report.similar_classes:
            similar[names].append(split)
    findings += [
        Finding("similar_classes", "+".join(found), ", ".join(map(repr, names)))
        for names, found in similar.items()
    ]
    if usable:
        findings += find_lookalikes(usable, checker.checked)
    findings += _unread_findings(splits, listed)
    order = list(KINDS)
    findings = [
        dataclasses.replace(finding, text=printable(finding.text))
        for finding in findings
    ]
    findings.sort(key=lambda one: (LEVELS.index(one.level), order.index(one.kind)))
    return ScanResult(image_size, small_side, statistics, findings)


def unreadable(error, image_size=(800, 1333), small_side=SMALL_SIDE):
    """The `ScanResult` of data in which no split can be found.

    Args:
        error: ValueError that says why.
        image_size, small_side: see `scan_splits`.
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


def _read(split, splits, class_names, checker, findings):
    """Reads a split. An error is appended to `findings`, and None is returned."""
    try:
        annotation_file, image_dir = splits[split]
    except (ValueError, OSError) as error:
        findings.append(_stopped("unreadable_split", split, error))
        return None
    is_reported = False
    # Where the classes of the training stop it, its own classes show what else is wrong.
    for names in dict.fromkeys((class_names, None)):
        try:
            return coco.read_coco(
                annotation_file,
                image_dir,
                class_names=names,
                skip_bad_images=True,
                check_images=checker.inspect,
                training=False,
                allow_empty=True,
            )
        except (ValueError, OSError) as error:
            if not is_reported:
                findings.append(_stopped("unreadable_split", split, error))
                is_reported = True
    return None


def _reader_findings(split, dataset):
    """What the reader has dropped, changed or skipped."""
    report = dataset.report
    findings = [Finding(kind, split, text) for kind, text in report.notes]
    for name, reason, kind in report.bad_images:
        path = os.path.join(dataset.image_dir, name)
        pictures = (Picture(path),) if os.path.isfile(file_of(path)) else ()
        findings.append(Finding(str(kind), split, f"{name} {reason}", 1, pictures))
    for problem in report.problems:
        kind = PROBLEM_KINDS.get(problem.reason, "dropped_box")
        box = problem.box
        boxes = (box,) if box is not None and all(map(math.isfinite, box)) else ()
        pictures = (Picture(problem.path, boxes),) if problem.path else ()
        text = f"{problem.text}: {problem.reason}"
        findings.append(Finding(kind, split, text, 1, pictures))
    others = report.dropped.get(OTHER_CLASS, 0)
    if others:
        examples = "; ".join(report.examples[OTHER_CLASS])
        findings.append(Finding("class_not_in_train", split, examples, others))
    return findings


def _extents(dataset):
    """(height, width) of all boxes in pixels, float32 `[R, 2]`."""
    boxes = np.concatenate([record.boxes for record in dataset])
    return boxes[:, [3, 2]] - boxes[:, [1, 0]]


def _statistics(dataset, image_size, keep_ratio):
    """`SplitStatistics` of a dataset."""
    report, sizes = dataset.report, np.asarray(dataset.sizes, "int64")
    counts = np.array([len(record.boxes) for record in dataset], "int64")
    labels = np.concatenate([record.labels for record in dataset])
    factors = resized_sizes(sizes, image_size, keep_ratio) / sizes
    extents = _extents(dataset)
    by_class = np.bincount(labels, minlength=dataset.num_classes).tolist()
    return SplitStatistics(
        report.annotation_file,
        dataset.image_dir,
        report.num_images,
        report.num_crowd,
        image_sizes=sizes,
        box_sizes=(extents * np.repeat(factors, counts, axis=0)).astype("float32"),
        aspect_ratios=extents[:, 1] / extents[:, 0],
        objects_per_image=counts,
        class_counts=dict(zip(dataset.class_names, by_class, strict=True)),
    )


def _image_findings(split, dataset, checked):
    """Findings on the images that the reader accepts."""
    counts = np.array([len(record.boxes) for record in dataset])
    crowds = np.array([record.num_crowd for record in dataset])
    masks = {
        "small_image": np.min(dataset.sizes, axis=1) < MIN_IMAGE_SIDE,
        "many_objects": counts > MANY_OBJECTS,
        "image_without_objects": (counts == 0) & (crowds == 0),
        "exif_orientation": [record.orientation > 1 for record in dataset],
        "converted_format": [record.needs_pil for record in dataset],
    }
    if split == "test" and not dataset.report.num_annotations:
        # The images of COCO's test split come without annotations on purpose.
        del masks["image_without_objects"]
    findings = []
    for kind, mask in masks.items():
        rows = np.flatnonzero(mask)
        if len(rows):
            pictures = tuple(_picture(dataset, row) for row in rows)
            names = ", ".join(os.path.basename(p.path) for p in pictures[:3])
            more = ", ..." if len(rows) > 3 else ""
            text = f"{_part_of(len(rows), len(dataset), 'images')}: {names}{more}"
            findings.append(Finding(kind, split, text, len(rows), pictures))
    for row, record in enumerate(dataset):
        brightest = checked[record.path].brightest
        if brightest < _DARK:
            name = os.path.basename(record.path)
            text = f"{name}: no pixel is brighter than {brightest} of 255"
            pictures = (_picture(dataset, row),)
            findings.append(Finding("dim_image", split, text, 1, pictures))
    return findings


def _box_findings(split, dataset, box_sizes, image_size, small_side):
    """Findings on the boxes that the reader accepts.

    `box_sizes` is float32 `[R, 2]`, (height, width) in pixels at the training size.
    """
    findings, num_boxes = [], len(box_sizes)
    if split == "train" and not num_boxes:
        file = dataset.report.annotation_file
        findings.append(Finding("no_train_boxes", split, file))
    # Of each box the record, and its row in that.
    places = [
        (i, j) for i, record in enumerate(dataset) for j in range(len(record.boxes))
    ]

    def add(kind, mask, goodness, text):
        rows = np.flatnonzero(mask)
        if len(rows):
            worst = rows[np.argsort(goodness[rows], kind="stable")][:MAX_LISTED_BOXES]
            pictures = tuple(
                _picture(dataset, owner, [row])
                for owner, row in (places[n] for n in worst)
            )
            text = f"{_part_of(len(rows), num_boxes, 'boxes')} {text}"
            findings.append(Finding(kind, split, text, len(rows), pictures))

    shorter = box_sizes.min(axis=1)
    is_small = shorter < small_side
    text = (
        f"have a side below {small_side:g} pixels at the training size "
        f"{image_size[0]}x{image_size[1]}"
    )
    add("small_box", is_small, shorter, text)
    if num_boxes and is_small.mean() > COMMONLY_SMALL:
        text = f"{_part_of(int(is_small.sum()), num_boxes, 'boxes')} {text}"
        findings.append(Finding("commonly_small_boxes", split, text))
    extents = _extents(dataset)
    elongation = extents.max(axis=1) / extents.min(axis=1)
    text = f"are more than {ELONGATED} times as long as wide"
    add("elongated_box", elongation > ELONGATED, -elongation, text)
    for row in range(len(dataset)):
        findings += _coinciding_boxes(split, dataset, row)
    return findings


def _part_of(count, total, what):
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
        text = f"{found[most]} boxes of {most}"
        if most != least:
            text += f", {found[least]} of {least}"
        if rare:
            text += f"; fewer than {RARE_CLASS} boxes: {', '.join(rare)}"
        findings.append(Finding("class_imbalance", split, text, len(rare) or 1))
    return findings


def _coinciding_boxes(split, dataset, row):
    """Findings on pairs of boxes of a record that are almost the same box."""
    record, findings = dataset[row], []
    if len(record.boxes) < 2:
        return findings
    iou = pairwise_iou(record.boxes, record.boxes)
    for first, second in np.argwhere(np.triu(iou >= SAME_BOX_IOU, k=1)):
        picture = _picture(dataset, row, [first, second])
        ids = record.annotation_ids[[first, second]].tolist()
        listed = " and ".join(
            f"{name} (annotation {number})" if number >= 0 else name
            for name, number in zip(picture.names, ids, strict=True)
        )
        name, overlap = os.path.basename(record.path), iou[first, second]
        text = f"{name}: {listed} overlap by IoU {overlap:.2f}"
        is_one_class = picture.names[0] == picture.names[1]
        kind = "duplicate_box" if is_one_class else "conflicting_box"
        findings.append(Finding(kind, split, text, 1, (picture,)))
    return findings


def _unread_findings(splits, listed):
    """Findings on files beside the data that are not read.

    `splits` is that of `scan_splits`; more is found for a `readers.Splits`. `listed` is a
    dict split -> list of the images in its annotations.
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
    if len(listed) < len(splits):  # Images of unreadable splits are not unlisted.
        found = {kind: found[kind] for kind in found.keys() & {"passed_over"}}
    splits_of = collections.defaultdict(dict)  # those that have images in a folder
    for split, paths in listed.items():
        for path in paths:
            splits_of[os.path.dirname(os.path.abspath(path))][split] = True
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
            names = [os.path.relpath(path, place or None) for path in paths[:3]]
            names += ["..."] if len(paths) > 3 else []
            text = f"{len(paths)} files in {place or 'several folders'}: "
            text += ", ".join(names) + (f" ({reason})" if reason else "")
            where = "+".join(splits_of.get(os.path.abspath(place), ())) or "data"
            is_image = kind in ("unlisted_file", "unread_image")
            pictures = tuple(Picture(path) for path in paths) if is_image else ()
            findings.append(Finding(kind, where, text, len(paths), pictures))
    return findings
