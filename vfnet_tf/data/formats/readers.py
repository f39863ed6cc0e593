"""Opens labelled images in any format: recognises it and turns it into COCO's.

`read_coco` reads the result, with the same checks for all formats.
"""

import collections.abc
import os
import pathlib
import re

from vfnet_tf.data import synthetic
from vfnet_tf.data.folders import list_folder, list_folders
from vfnet_tf.data.formats.coco import coco_parts, is_coco_folder, read_coco, split_of
from vfnet_tf.data.formats.csv_file import find_csv_splits, is_csv
from vfnet_tf.data.formats.record_files import is_record_file, pattern_hint
from vfnet_tf.data.formats.tfds import find_tfds_splits
from vfnet_tf.data.formats.tfrecord import find_tfrecord_splits, is_tfrecord
from vfnet_tf.data.formats.voc import find_voc_splits, is_voc
from vfnet_tf.data.formats.yolo import find_yolo_splits, is_yolo
from vfnet_tf.data.images.places import is_remote
from vfnet_tf.data.splits import FoundSplits, by_split
from vfnet_tf.data.text import is_valid, printable

#: format -> its name in messages; in the order in which a folder is tried
FORMATS = {
    "coco": "COCO json",
    "yolo": "YOLO txt",
    "voc": "Pascal VOC xml",
    "csv": "CSV",
    "tfrecord": "TFRecord",
    "tfds": "TensorFlow Datasets",
}
_SUFFIXES = {".json": "coco", ".yaml": "yolo", ".yml": "yolo", ".csv": "csv"}
_IN_FOLDER = {
    "coco": is_coco_folder,
    "yolo": is_yolo,
    "voc": is_voc,
    "csv": is_csv,
    "tfrecord": is_tfrecord,
}
# Files that are not read: so many are named, the others are counted.
_MAX_UNUSED = 5
_PREFIXED = re.compile(rf"({'|'.join(FORMATS)}):(.+)")


class Splits(collections.abc.Mapping):
    """The splits of a dataset: a mapping to what `read_coco` reads.

    A value is `(annotation file, image folder)`; the folder is None where `read_coco` is
    to find it. For other formats than COCO's, the look-up of a value writes the file: look
    up only what is needed.

    Args:
        kind: str, key of `FORMATS`; the attribute `format`.
        description: str, one line that says what was found.
        found: `FoundSplits`; `unused`, `label_suffix` and `label_files` are attributes
            here too.
        is_file: bool, whether the data is a single COCO json or TFRecord.
        folder: str, the folder of the data; None where it is no folder.
    """

    def __init__(self, kind, description, found, is_file=False, folder=None):
        self.format = kind
        self.description = description
        self.folder = folder
        self.unused = found.unused
        self.label_suffix = found.label_suffix
        self.label_files = found.label_files
        self._parts = dict(found)
        self._is_file = is_file

    def __getitem__(self, split):
        part = self._parts[split]
        if callable(part):
            part = self._parts[split] = part()
        return part

    def __iter__(self):
        return iter(self._parts)

    def __contains__(self, split):
        return split in self._parts

    def __len__(self):
        return len(self._parts)

    def locate(self, split):
        """The value of a split; a single COCO json or TFRecord stands for every one.

        Args:
            split: str, train, val or test.

        Raises:
            ValueError: if there is no such split.
        """
        if self._is_file:
            return self[next(iter(self))]
        if split not in self:
            raise ValueError(
                f"The data must have the split {split!r}. Received: {self.description} "
                "(--split)"
            )
        return self[split]


def find_format(data):
    """Recognises the format of a dataset.

    Args:
        data: str or path: a folder, a file (.json, .yaml, .csv, .tfrecord), or either
            after a prefix that names the format, `coco:`, `voc:`, `yolo:`, `csv:`,
            `tfrecord:`; or `tfds:NAME[/CONFIG]`. TFRecords may be remote, `gs://...`.

    Returns:
        (format, str path or name without prefix, list of formats that a folder could
        be as well).

    Raises:
        ValueError: if there is no such folder or file, or none of the formats in it.
    """
    data = os.fspath(data)
    if not is_valid(data):
        raise ValueError(
            "--data must have a name in UTF-8: rename it. "
            f"Received: --data {printable(data)}"
        )
    match = _PREFIXED.fullmatch(data)
    kind, name = match.groups() if match else (None, data)
    if kind == "tfds":
        return kind, name, []
    if is_remote(name):
        if kind not in (None, "tfrecord"):
            raise ValueError(
                f"Only TFRecords are read from other file systems. Received: --data {data}"
            )
        return "tfrecord", name, []
    path = pathlib.Path(name).expanduser()
    if not path.exists():
        raise ValueError(
            f"--data must be an existing folder or file, or tfds:NAME{pattern_hint(name)}. "
            f"Received: --data {data}"
        )
    if kind is not None:
        return kind, str(path), []
    if path.is_dir():
        kinds = [kind for kind, is_kind in _IN_FOLDER.items() if is_kind(path)]
    else:
        suffix = path.suffix.lower()
        kinds = [_SUFFIXES[suffix]] if suffix in _SUFFIXES else []
        kinds += ["tfrecord"] if not kinds and is_record_file(path.name) else []
    if kinds:
        return kinds[0], str(path), kinds[1:]
    present = sorted(os.listdir(path))[:20] if path.is_dir() else path.name
    files = path.is_dir() and list_folder(path, set(_SUFFIXES))
    hint = f" To see what is wrong with it, give --data {files[0]}." if files else ""
    raise ValueError(
        "--data must be in one of the formats of docs/data.md: COCO (annotations/"
        "instances_{train,val,test}[year].json, {train,valid,test}/_annotations.coco.json, "
        "or one json), YOLO (a data.yaml with names and train or val), Pascal VOC (xml "
        "files in Annotations/, in train/, valid/, test/ or "
        "beside the images), CSV (with the columns image,x1,y1,x2,y2,label), TFRecord "
        f"(train.tfrecord, train-00000-of-00010, ...), or tfds:NAME.{hint} "
        f"Received: --data {data}, which holds {present}"
    )


def find_splits(data, progress=None):
    """Finds the splits of a dataset in any format.

    Args:
        data: see `find_format`.
        progress: see `find_tfds_splits`.

    Returns:
        `Splits`.

    Raises:
        ValueError: if there is no dataset, or it breaks a rule of its format.
        ImportError: the extra of the format is not installed.
    """
    kind, name, others = find_format(data)
    is_file = kind in ("coco", "tfrecord") and os.path.isfile(name)
    if kind == "coco" and is_file:
        found = FoundSplits({split_of(name) or "train": (name, None)})
    elif kind in ("tfds", "tfrecord"):
        find = find_tfds_splits if kind == "tfds" else find_tfrecord_splits
        found = find(name, progress)
    else:
        find = {
            "coco": coco_parts,
            "yolo": find_yolo_splits,
            "voc": find_voc_splits,
            "csv": find_csv_splits,
        }[kind]
        found = find(name)
    folder = name if kind != "tfds" and os.path.isdir(name) else None
    if folder is not None:
        found.unused += _unused_folders(pathlib.Path(folder), found)
    shown = f"tfds:{name}" if kind == "tfds" else name
    description = f"{FORMATS[kind]}, {shown}: {', '.join(found)}"
    if found.unused:
        listed = ", ".join(found.unused[:_MAX_UNUSED])
        more = len(found.unused) - _MAX_UNUSED
        listed += f" and {more} more" if more > 0 else ""
        description += f" (not read: {listed})"
    if others:
        forced = ", ".join(f"{other}:{name}" for other in others)
        description += f" (it could be read as {forced} too)"
    return Splits(kind, description, found, is_file, folder)


def _unused_folders(root, found):
    """Folders named for a split that was not found."""
    inside = list_folders(root)
    folders = list(inside.values())
    for name, path in inside.items():
        if name.lower() == "images":
            folders += list_folders(path).values()
    named = by_split(folders, lambda path: path.name)
    return [
        os.path.join(os.path.relpath(path, root), "")
        for split, paths in named.items()
        if split not in found
        for path in paths
    ]


def open_dataset(data, *, skip_bad_images=False, keep_empty=False, progress=None):
    """Reads the splits of a dataset in any format.

    Args:
        data: folder or file in COCO, Pascal VOC, YOLO, CSV or TFRecord format, or
            `tfds:NAME`.
        skip_bad_images: bool, go on without unreadable images; `report.bad_images` of a
            dataset lists them. Otherwise they are an error.
        keep_empty: bool, keep training images without objects.
        progress: factory `total -> object with add() and close()`, such as
            `vfnet_tf.progress.Progress`.

    Returns:
        dict from those of `"train"`, `"val"` and `"test"` that exist to
        `DetectionDataset`. All have the classes of the training images.

    Raises:
        ValueError: if there is no data, or something in it is wrong; it is named.

    >>> splits = open_dataset("cells")  # doctest: +SKIP
    >>> print(splits["train"].summary())  # doctest: +SKIP
    """
    found = find_splits(data, progress)
    reading = {"skip_bad_images": skip_bad_images}
    datasets, class_names = {}, None
    for split in sorted(found, key=("train", "val", "test").index):
        if split == "train":
            dataset = read_coco(*found[split], keep_empty=keep_empty, **reading)
            class_names = dataset.class_names
        else:
            dataset = read_coco(
                *found[split], class_names=class_names, training=False, **reading
            )
        datasets[split] = dataset
    return datasets


def read_split(
    data,
    split="val",
    *,
    image_dir=None,
    class_names=None,
    skip_bad_images=False,
    limit=None,
    progress=None,
    log=None,
):
    """Reads one split with all its images, to evaluate on.

    Args:
        data: see `open_dataset`; None takes the generated images.
        skip_bad_images, progress: see `open_dataset`.
        split: `"train"`, `"val"` or `"test"`; of a single COCO json it is not used.
        image_dir: folder of the images, where it is not found beside the annotations.
        class_names: the detector's classes in the order of its labels, None for all of
            the annotation file.
        limit: int, the first so many images only.
        log: function of a line that says what was found, such as `print`.

    Returns:
        `DetectionDataset`.
    """
    if data is None:
        data = synthetic.make_synthetic_dataset()
        if log is not None:
            log(f"data       none given (--data): the generated images in {data}")
    found = find_splits(data, progress)
    if log is not None:
        log(f"format     {found.description}")
    annotations, beside = found.locate(split)
    dataset = read_coco(
        annotations,
        image_dir or beside,
        class_names=class_names,
        skip_bad_images=skip_bad_images,
        training=False,
    )
    return dataset if limit is None else dataset.subset(min(limit, len(dataset)))
