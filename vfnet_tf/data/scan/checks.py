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

from vfnet_tf.data.canvases import keep_ratio_sizes
from vfnet_tf.data.dataset import MIN_IMAGE_SIDE, OTHER_CLASS
from vfnet_tf.data.folders import find_file
from vfnet_tf.data.formats import coco
from vfnet_tf.data.images import inspect, numpy_decode
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
# Of 255. A picture of 12 bits in a file of 16 reaches 15.
_DIM = 32


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
    size = (THUMB_SIDE, THUMB_SIDE)
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
        findings += find_lookalikes(usable, files.seen)
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
    of_images("small_image", sizes.min(axis=1) < MIN_IMAGE_SIDE)
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
    iou = pairwise_iou(boxes, boxes)
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
