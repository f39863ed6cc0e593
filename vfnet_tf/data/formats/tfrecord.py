"""TFRecords of TensorFlow's Object Detection API.

A record is a `tf.train.Example` with the features `image/encoded`,
`image/object/bbox/{xmin,xmax,ymin,ymax}` in parts of the upright image and
`image/object/class/{text,label}`. The images stay in the records: an index, made once and
kept in the cache, says where each one begins.
"""

import collections
import contextlib
import functools
import hashlib
import itertools
import json
import os
import re
import typing
import unicodedata

import numpy as np

from vfnet_tf.data.dataset import BAD_BOX, UNKNOWN_CATEGORY, UNKNOWN_LABEL
from vfnet_tf.data.folders import list_folders
from vfnet_tf.data.formats.coco_content import CocoContent
from vfnet_tf.data.formats.label_map import (
    MAX_BYTES,
    LabelMap,
    format_label_map,
    parse_label_map,
)
from vfnet_tf.data.formats.record_files import (
    RECORD_END,
    find_records,
    find_sets,
    is_record_file,
    list_names,
    pattern_hint,
    sets_by_split,
)
from vfnet_tf.data.images import containers
from vfnet_tf.data.images.inspect import inspect_image
from vfnet_tf.data.images.places import (
    RECORD_HEAD,
    RecordPlace,
    file_stamp,
    find_place,
    is_remote,
    open_file,
    open_image,
    record_path,
)
from vfnet_tf.data.images.reasons import Reason
from vfnet_tf.data.splits import FoundSplits, split_named
from vfnet_tf.data.text import decode_text, is_valid, printable
from vfnet_tf.data.values import CROWD_FLAGS, read_integer, read_number, read_size
from vfnet_tf.files import cache_directory, write_file

#: Bytes of images in a shard that is written.
SHARD_BYTES = 150 * 2**20

NO_FRACTIONS = "corners are not in parts of the image's sides"
NO_CLASS = "object has neither a label nor a class text"
NO_LABEL_MAP = "object has no class text, and there is no label map"
CONTRADICTION = "class text and label map disagree"

# Part of the name of a cached index: a new one when the same records give another index.
_VERSION = 2
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_OBJECT = "image/object/"
# Where a corner is no fraction, but pixels by mistake.
_LOWEST, _HIGHEST = -1.0, 2.0
_DECIMALS = 3
# Folders beside the records, or in the folder of them, that a label map may lie in.
_MAP_FOLDERS = frozenset({"annotations", "data", "labels", "label_map", "label_maps"})
# Names of files and classes in a message; the others are counted.
_MAX_SHOWN = 5
_SUFFIXES = {containers.PNG: ".png", containers.BMP: ".bmp", containers.TIFF: ".tif"}
_SUFFIXES |= {containers.WEBP: ".webp"}


class _Object(typing.NamedTuple):
    """An object as a record has it: corners in parts, label or None, text, flags, area."""

    corners: list
    label: object
    text: str
    flags: dict
    area: object


class _Record(typing.NamedTuple):
    """A record: the name of its image for messages, what it holds, or what is wrong.

    `file_name` is the path of the image, see `places`; `stated` is the size that the
    record has, and `sides` is (width, height) of the image itself. `may_be_turned`: it is
    turned by EXIF, and no size tells whether its boxes are those of the upright image.
    """

    shown: str
    file_name: str
    source_id: str = ""
    stated: tuple | None = None
    sides: tuple = (0, 0)
    may_be_turned: bool = False
    objects: list = ()
    error: str = ""
    code: Reason = Reason.BAD_ENTRY


def is_tfrecord(directory):
    """Whether a folder has TFRecords by their names; cheap, without TensorFlow."""
    folders = [directory, *list_folders(directory).values()]
    return any(find_sets(str(folder)) for folder in folders)


def find_tfrecord_splits(path, progress=None):
    """Finds the splits of TFRecords of the Object Detection API.

    Splits are named by a word of the file's name (`coco_train.record-00000-of-00010`), or
    by the folder (`train/Cells.tfrecord`, as Roboflow exports). All files that one word
    names are one split; a set of shards must be whole. Classes are those of the label map,
    a `.pbtxt` beside the files, in the folder above that of a split, in that of another
    split, or the only one near by; without one they are the texts of all splits in
    alphabetical order. Where all `source_id`s of a split are different numbers, they are
    the ids of its images.

    Args:
        path: str, a folder or file, local or remote as `gs://bucket/folder`. A shard
            stands for all shards of its name.
        progress: function of the number of records that returns an object with
            `add(count)` and `close()`, which counts records that are indexed.

    Returns:
        `FoundSplits`; its functions write the index, unless the cache has it.

    Raises:
        ValueError: if there are no such files, or the folder cannot be read.
    """
    path = os.fspath(path)
    if is_remote(path):
        path = path.rstrip("/")
    else:
        path = os.path.abspath(os.path.expanduser(path))
    root, name = os.path.split(path)
    sets = find_sets(root) if is_record_file(name) else []
    sets = [one for one in sets if name in one.names]
    if not sets:
        root = path
        if not is_remote(root) and not os.path.isdir(root):
            raise ValueError(
                "A TFRecord must have a name such as train.tfrecord, train.record or "
                f"train-00000-of-00010. Received: {path}"
            )
        try:
            files, folders = list_names(root)
        except OSError as error:
            raise ValueError(
                "TFRecords must be in an existing folder that can be "
                f"read{pattern_hint(root)}. "
                f"Received: {path} ({error})"
            ) from error
        if "dataset_info.json" in files:
            raise ValueError(
                "Records that TensorFlow Datasets made have features of their own: give "
                f"them as tfds:{root}. Received: {root}"
            )
        folders = [root, *(f"{root}/{folder}" for folder in folders)]
        sets = [one for folder in folders for one in find_sets(folder)]
    used, others = sets_by_split(root, sets)
    if not used:
        raise ValueError(
            "There must be one file or set of shards of TFRecords, or some whose names or "
            "folders say train, val or test: rename them. "
            f"Received: {path} with {[one.shown for one in sets]}"
        )
    dataset = _Dataset(root, used, progress)
    faults = {split: _fault(sets) for split, sets in used.items()}
    faults = {split: ValueError(text) for split, text in faults.items() if text}
    parts = {split: functools.partial(dataset.annotations, split) for split in used}
    unused = [os.path.relpath(file, root) for one in others for file in one.paths]
    return FoundSplits(parts, unused, faults=faults)


def _fault(sets):
    """Why the files of a split cannot be the whole of it; empty if they can."""
    totals = {}
    for one in sets:
        if one.missing:
            more = ", ..." if len(one.missing) > 5 else ""
            return (
                f"All shards of a set must be there, 0 to {max(one.total - 1, 0)}: copy "
                "those that are missing, or remove the others. Received: "
                f"{one.folder}/{one.shown} with {len(one.names)} of {one.total} files; "
                f"wrong: {', '.join(one.missing[:5])}{more}"
            )
        other = totals.setdefault(one.stem, one)
        if other is not one:
            return (
                "There must be one set of files of a name: remove the older one. "
                f"Received: {one.folder} with {other.shown} ({len(other.names)} files) "
                f"and {one.shown} ({len(one.names)} files)"
            )
    return ""


class _Dataset:
    """The splits of a folder; their records are read when they are needed."""

    def __init__(self, root, used, progress):
        self._root, self._used, self._progress = root, used, progress
        self._records = functools.cache(self._read_records)

    def annotations(self, split):
        """(annotation file, image folder) of a split."""
        map_file = self._label_map_file(split)
        # Without a label map the classes are those of all splits.
        splits = [split] if map_file else list(self._used)
        files = [path for one in splits for path in self._paths(one)]
        files += [map_file] if map_file else []
        stamps = [(file, file_stamp(file)) for file in files]
        key = json.dumps([_VERSION, self._root, split, stamps])
        key = hashlib.sha256(key.encode()).hexdigest()[:24]
        path = cache_directory() / "tfrecord" / f"instances_{split}-{key}.json"
        if not path.is_file():
            content = self._content(split, map_file)
            write_file(path, json.dumps(content.content))
        return str(path), self._root

    def _paths(self, split):
        return [path for one in self._used[split] for path in one.paths]

    def _map_folders(self, split):
        """Folders in which a label map is that of a split, the best first."""
        own = [one.folder for one in self._used[split]]
        others = [one.folder for sets in self._used.values() for one in sets]
        above, name = os.path.split(self._root)
        others += [above] if split_named(name) else []
        return list(dict.fromkeys([*own, self._root, *others]))

    def _label_map_file(self, split):
        """The label map of a split; None without one."""
        names = tuple(one.stem.lower() for one in self._used[split])
        for folder in self._map_folders(split):
            found = _label_maps(folder)
            of_name = [file for file in found if _base(file).startswith(names)]
            plain = [file for file in found if _base(file) == "label_map.pbtxt"]
            for chosen in (of_name, plain, found):
                if len(chosen) == 1:
                    return chosen[0]
            if found:
                raise ValueError(
                    "There must be one label map, or one that begins with the name of "
                    f"the records: remove the others. Received: {', '.join(found)}"
                )
        near = self._near_label_maps()
        return near[0] if len(near) == 1 else None

    def _near_label_maps(self):
        """Label maps in the folder above, and in folders with names such as annotations."""
        above = os.path.dirname(self._root)
        places = [self._root]
        if is_remote(above) == is_remote(self._root):
            places.append(above)
        folders = places[1:]
        for place in places:
            with contextlib.suppress(OSError):  # a remote folder that may not be listed
                folders += [
                    f"{place}/{name}"
                    for name in list_names(place)[1]
                    if name.lower() in _MAP_FOLDERS
                ]
        found = [file for one in dict.fromkeys(folders) for file in _label_maps(one)]
        plain = [file for file in found if _base(file) == "label_map.pbtxt"]
        return plain if len(plain) == 1 else found

    def _read_records(self, split):
        return _read_files(self._root, self._paths(split), self._progress)

    def _texts(self):
        """`LabelMap` of the class texts of all splits, and what their labels contradict.

        A split that cannot be read is left out.
        """
        pairs, has_objects = set(), False
        for split in self._used:
            try:
                records = self._records(split)
            except (ValueError, OSError):  # It is said where that split is asked for.
                continue
            for record in records:
                has_objects |= bool(record.objects)
                pairs.update(
                    (one.text, read_integer(one.label)) for one in record.objects
                )
        pairs = {pair for pair in pairs if pair[0].strip() and is_valid(pair[0])}
        texts = {text for text, _ in pairs}
        if has_objects and not texts:
            raise ValueError(
                "TFRecords must have a label map, a .pbtxt beside them with an "
                "`item { id: 1 name: 'cat' }` for each class, or the text of each "
                "object's class (image/object/class/text): add label_map.pbtxt. "
                f"Received: {self._root} with neither{self._several_maps()}"
            )
        names = tuple(sorted(texts))
        labels_of = {name: label for label, name in enumerate(names)}
        return LabelMap(names, None, labels_of), _contradictions(pairs)

    def _several_maps(self):
        """Text on label maps near by of which none is chosen; empty without."""
        near = self._near_label_maps()
        if len(near) < 2:
            return ""
        return f", and several label maps near by, {_first(near)}: copy the right one"

    def _content(self, split, map_file):
        records, paths = self._records(split), self._paths(split)
        empty = [path for path in paths if not file_stamp(path)[0]]
        if not records:
            raise ValueError(
                "TFRecords must have at least one record: copy or write them anew. "
                f"Received: {_first(empty)} with 0 bytes"
            )
        shown = os.path.relpath(map_file, self._root) if map_file else "no label map"
        files = "one file" if len(paths) == 1 else f"{len(paths)} files"
        source = f"{self._root} ({split}, {files}, {shown})"
        notes = [
            ("file_without_records", f"{os.path.basename(path)} has 0 bytes, no record")
            for path in empty
        ]
        if map_file:
            label_map = _read_label_map(map_file)
            doubts = _check_labels(records, label_map, source)
            if os.path.dirname(map_file) not in self._map_folders(split):
                text = f"the label map is taken from {map_file}, none is beside the records"
                notes.append(("distant_label_map", text))
            if label_map.has_background:
                text = f"{shown}: the item 0, background, is taken for no class"
                notes.append(("background_item", text))
        else:
            label_map, doubts = self._texts()
            looked = _first(self._map_folders(split))
            text = (
                f"no label map (.pbtxt) in {looked}{self._several_maps()}; classes are "
            )
            text += f"the texts of the objects: {_first(label_map.names)}"
            notes.append(("no_label_map", text))
        notes += [("doubtful_labels", text) for text in doubts]
        turned = [record.shown for record in records if record.may_be_turned]
        if turned:
            text = (
                f"{len(turned)} images are turned by EXIF, and image/height and "
                "image/width do not tell whether their boxes are of the upright image, as "
                f"is assumed: {_first(turned)}"
            )
            notes.append(("doubtful_orientation", text))
        _check_fractions(records)
        content = CocoContent(label_map.names, label_map.ids, source=source)
        for kind, text in notes:
            content.note(kind, text)
        for record, image_id in zip(records, _image_ids(records), strict=True):
            image_id = content.add_image(
                record.file_name,
                image_id=image_id,
                size=record.stated,
                error=record.error or None,
                code=record.code,
            )
            for number, one in enumerate(record.objects, 1):
                source = f"{record.shown} object {number}"
                _add_object(content, image_id, record.sides, one, source, label_map)
        return content


def _image_ids(records):
    """Ids of the images; None to count them, where a source id is no number of its own."""
    ids = [read_integer(record.source_id) for record in records if not record.error]
    numbers = {number for number in ids if number is not None and number >= 0}
    if len(numbers) < len(ids):
        return [None] * len(records)
    ids, free = iter(ids), itertools.count(max(numbers, default=0) + 1)
    return [next(free if record.error else ids) for record in records]


def _first(texts):
    """The first texts, for a message."""
    more = len(texts) - _MAX_SHOWN
    shown = ", ".join(map(printable, texts[:_MAX_SHOWN]))
    return f"{shown} and {more} more" if more > 0 else shown


def _contradictions(pairs):
    """Texts on labels with several class texts and class texts with several labels.

    `pairs` are (text, label or None).
    """
    texts, labels = collections.defaultdict(set), collections.defaultdict(set)
    for text, label in pairs:
        if label is not None:
            texts[label].add(text)
            labels[text].add(label)
    found = [
        f"label {label} has the class texts {_first(sorted(texts[label]))}"
        for label in sorted(texts)
        if len(texts[label]) > 1
    ]
    found += [
        f"the class text {text} has the labels {_first(sorted(map(str, labels[text])))}"
        for text in sorted(labels)
        if len(labels[text]) > 1
    ]
    more = len(found) - _MAX_SHOWN
    return found[:_MAX_SHOWN] + ([f"and {more} more such labels"] if more > 0 else [])


def _check_labels(records, label_map, source):
    """Texts on labels that seem to count from 0, of a label map that begins with 1.

    Raises:
        ValueError: if they would all be one class too low.
    """
    ids = label_map.ids
    found = {read_integer(one.label) for record in records for one in record.objects}
    if 0 not in found or min(ids) < 1 or label_map.has_background:
        return []
    if ids == tuple(range(1, len(ids) + 1)) and ids[-1] not in found:
        labels = sorted(found - {None})
        raise ValueError(
            "Labels must be ids of the label map. These seem to count from 0 and the map "
            "from 1, so that each object would be of the class before its own: add 1 to "
            "the labels, or take 1 from the ids of the map. If 0 marks what is no object, "
            "say it in the map: item { id: 0 name: 'background' }. Received: "
            f"{source} with the labels {_first(list(map(str, labels)))} and the ids 1 to "
            f"{ids[-1]}"
        )
    return [f"the label 0 occurs, the ids of the label map begin with {min(ids)}"]


def _check_fractions(records):
    """Refuses files with boxes in pixels, most of them visibly."""
    files = collections.defaultdict(list)
    for record in records:
        for number, one in enumerate(record.objects, 1):
            corners = list(map(read_number, one.corners))
            if None not in corners:
                file = find_place(record.file_name).file
                files[file].append((f"{record.shown} object {number}", corners))
    for file, boxes in files.items():
        wrong = [box for box in boxes if not _are_fractions(box[1])]
        # Of boxes in pixels a few lie in the first pixels, and could be taken for parts.
        if 2 * len(wrong) > len(boxes):
            shown, corners = wrong[0]
            raise ValueError(
                "Corners of boxes must be in parts of the image's sides, from 0 to 1: "
                "divide xmin and xmax by its width, ymin and ymax by its height. Received: "
                f"{len(wrong)} of {len(boxes)} boxes of {file} in pixels, such as {shown} "
                f"({', '.join(f'{corner:g}' for corner in corners)})"
            )


def _are_fractions(corners):
    return min(corners) >= _LOWEST and max(corners) <= _HIGHEST


def _base(file):
    return os.path.basename(file).lower()


def _label_maps(folder):
    """Files in a folder that may be label maps, by their ending and by a word in them."""
    try:
        names = list_names(folder)[0]
    except OSError:  # a remote folder above that may not be listed
        return []
    files = [f"{folder}/{name}" for name in names if name.lower().endswith(".pbtxt")]
    return [file for file in files if _may_be_label_map(file)]


def _may_be_label_map(path):
    """A graph of TensorFlow, and a pipeline's settings, have the ending too."""
    if re.search("label[-_ ]?map", _base(path)):  # Also if it is empty or broken.
        return True
    try:
        return bool(re.search(r"\bitem\b", _read_text(path)))
    except ValueError:  # It is said where the file is read.
        return True


def _read_text(path):
    with open_file(path) as file:
        return decode_text(file.read(MAX_BYTES))


def _read_label_map(path):
    try:
        return parse_label_map(_read_text(path))
    except ValueError as error:
        raise ValueError(
            "A label map must be a list of `item { id: 1 name: 'cat' }`. "
            f"Received: {path} {error}"
        ) from error


def _add_object(content, image_id, sides, one, source, label_map):
    label, reason = _label_of(one, label_map)
    if reason:
        content.drop(reason, f"{source} (label {one.label}, text {one.text!r})")
        return
    corners = [read_number(corner) for corner in one.corners]
    if None in corners:
        content.drop(BAD_BOX, f"{source} ({one.corners})")
        return
    if not _are_fractions(corners):
        shown = ", ".join(f"{corner:g}" for corner in corners)
        content.drop(NO_FRACTIONS, f"{source} ({shown})")
        return
    x1, y1, x2, y2 = map(_pixels, corners, sides * 2)
    area = read_number(one.area)
    content.add_box(
        image_id,
        label,
        # The difference of two decimals is one again.
        [x1, y1, round(x2 - x1, 9), round(y2 - y1, 9)],
        source=source,
        flags=one.flags,
        # Areas of masks are whole numbers: that of a small mask may be 0.
        area=area if area is not None and area > 0 else None,
    )


def _label_of(one, label_map):
    """(label, why there is none; empty where there is one) of an `_Object`."""
    by_text = label_map.labels_of.get(one.text)
    has_text = bool(one.text.strip())
    if label_map.ids is None and not has_text:
        return None, NO_LABEL_MAP
    if label_map.ids is None or one.label is None:
        unknown = UNKNOWN_CATEGORY if label_map.ids is None else UNKNOWN_LABEL
        reason = unknown if has_text else NO_CLASS
        return by_text, reason if by_text is None else ""
    number = read_integer(one.label)
    if number not in label_map.ids:
        return None, UNKNOWN_LABEL
    label = label_map.ids.index(number)
    return label, CONTRADICTION if has_text and by_text != label else ""


def _pixels(part, side):
    """A part of a side, which was a float32, in pixels.

    Of all numbers that the float32 may stand for, a multiple of a thousandth is taken:
    boxes of whole pixels, or of COCO's decimals, come back as they were.
    """
    pixels = part * side
    plain = round(pixels, _DECIMALS)
    # A writer may round twice, the pixels and the quotient.
    uncertainty = 2 * float(np.spacing(np.float32(abs(part)))) * side
    return plain if abs(plain - pixels) <= uncertainty else pixels


def _read_files(root, paths, progress):
    """List of `_Record` of some files."""
    found = {path: find_records(path) for path in paths}
    total = sum(len(places) for places, _ in found.values())
    shown = None if progress is None else progress(total)
    records = []
    for path, (places, problem) in found.items():
        file = os.path.relpath(path, root) if not is_remote(path) else path
        file = file.removeprefix(f"{root}/")
        end = sum(places[-1], RECORD_HEAD + RECORD_END) if places else 0
        for number, ((start, _), data) in enumerate(
            zip(places, _read_data(path, places), strict=True), 1
        ):
            records.append(_read_record(root, file, number, start, data))
            if shown is not None:
                shown.add(1)
        if problem:
            text = f"cannot be read, nor what follows: {problem}. Copy the file again"
            number = len(places) + 1
            records.append(_bad(file, number, end, text, Reason.TRUNCATED))
    if shown is not None:
        shown.close()
    return records


def _read_data(path, places):
    """Yields the data of each record; None where its checksum is wrong."""
    import tensorflow as tf

    done = 0
    try:
        dataset = tf.data.TFRecordDataset(path)
        for data in dataset.take(len(places)).as_numpy_iterator():
            yield data
            done += 1
    except tf.errors.DataLossError:
        # It cannot go on behind a wrong checksum.
        for start, _ in places[done:]:
            try:
                data = _read_one(path, start)
            except tf.errors.DataLossError:
                data = None
            yield data


def _read_one(path, start):
    """The data of the record that begins at a byte."""
    import tensorflow as tf

    # `tf.data.TFRecordDataset` has no argument for the place where it begins.
    kind = {"output_types": [tf.string], "output_shapes": [[]]}
    with tf.device("CPU:0"):
        records = tf.raw_ops.TFRecordDatasetV2(
            filenames=[path],
            compression_type="",
            buffer_size=0,
            byte_offsets=tf.constant([start], "int64"),
        )
        record = tf.raw_ops.TakeDataset(
            input_dataset=records, count=tf.constant(1, "int64"), **kind
        )
        return tf.raw_ops.DatasetToSingleElement(dataset=record, **kind)[0].numpy()


def _bad(file, number, start, text, code=Reason.BAD_ENTRY):
    place = RecordPlace(file, start, 0, 0, f"record-{number}")
    path = record_path(number, place)
    return _Record(f"{file} record {number}", path, error=text, code=code)


def _read_record(root, file, number, start, data):
    import tensorflow as tf

    if data is None:
        text = "has a wrong checksum: copy the file again"
        return _bad(file, number, start, text, Reason.CORRUPT)
    try:
        features = tf.train.Example.FromString(data).features.feature
    except Exception as error:  # protobuf has a class of its own
        return _bad(file, number, start, f"is no tf.train.Example: {error}")
    encoded = _values(features, "image/encoded")
    if len(encoded) != 1 or not isinstance(encoded[0], bytes) or not encoded[0]:
        listed = ", ".join(sorted(features)[:10])
        text = (
            "has no image in image/encoded, which records of the Object Detection API "
            f"have; its features are {printable(listed) or 'none'}"
        )
        return _bad(file, number, start, text)
    (encoded,) = encoded
    name = _image_name(features, encoded, number)
    place = RecordPlace(file, start, data.index(encoded), len(encoded), name)
    record = _Record(f"{file} record {number}", record_path(number, place))
    try:
        stated = read_size(_one(features, "height"), _one(features, "width"))
        objects = _read_objects(features)
    except ValueError as error:
        return record._replace(error=str(error))
    header = inspect_image(os.path.join(root, record.file_name), full=False)
    if header.error:
        return record._replace(error=header.error, code=header.code)
    return record._replace(
        source_id=_joined(features, "image/source_id"),
        stated=stated,
        sides=(header.width, header.height),
        # 5 to 8 exchange the sides.
        may_be_turned=header.orientation > 1
        and (stated is None or header.orientation < 5 or header.width == header.height),
        objects=objects,
    )


def _values(features, name):
    """The list of a feature; empty without it."""
    kind = features[name].WhichOneof("kind") if name in features else None
    return list(getattr(features[name], kind).value) if kind else []


def _text(value):
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    return str(value)


def _joined(features, name):
    return "".join(map(_text, _values(features, name)))


def _one(features, name):
    """The value of `image/height` or the like; None without one."""
    values = _values(features, f"image/{name}")
    if len(values) > 1:
        raise ValueError(f"has {len(values)} values of image/{name}, must have one")
    return _plain(values[0]) if values else None


def _plain(value):
    return _text(value) if isinstance(value, bytes) else value


def _image_name(features, encoded, number):
    """The name of an image, without folders."""
    # Also without the folders of Windows.
    name = re.split(r"/|^[A-Za-z]:.*\\", _joined(features, "image/filename"))[-1]
    name = printable(name).replace("\0", "")
    if not name:
        name = _joined(features, "image/source_id")
        name = name if name.isalnum() else f"record-{number}"
        name += _SUFFIXES.get(containers.format_of(encoded), ".jpg")
    return name


def _read_objects(features):
    """List of `_Object`; a ValueError for lists of different lengths."""
    corners = [_values(features, _OBJECT + f"bbox/{corner}") for corner in _CORNERS]
    count = len(corners[0])
    columns = {f"bbox/{name}": v for name, v in zip(_CORNERS, corners, strict=True)}
    for name in ("class/label", "class/text", "area", *CROWD_FLAGS):
        values = _values(features, _OBJECT + name)
        if values:
            columns[name] = values
    wrong = [f"{len(v)} of {name}" for name, v in columns.items() if len(v) != count]
    if wrong:
        raise ValueError(
            f"has lists of different lengths in {_OBJECT}: {count} values of "
            f"bbox/{_CORNERS[0]}, {', '.join(wrong)}"
        )
    columns = {name: list(map(_plain, values)) for name, values in columns.items()}
    none = [None] * count
    return [
        _Object(
            [columns[f"bbox/{corner}"][row] for corner in _CORNERS],
            columns.get("class/label", none)[row],
            unicodedata.normalize(
                "NFC", str(columns.get("class/text", none)[row] or "")
            ),
            {name: columns[name][row] for name in CROWD_FLAGS if name in columns},
            columns.get("area", none)[row],
        )
        for row in range(count)
    ]


def write_tfrecord(out, split, images, class_names, category_ids, done):
    """Writes one split as shards of about `SHARD_BYTES`, and the label map.

    Args:
        out, split, images, class_names: see `labelled_image`; no image lies in `out`.
        category_ids: ints, index = label, from 1.
        done: function that is called after each image.

    Returns:
        0: the format has all.
    """
    import tensorflow as tf

    sizes = [_num_bytes(image.path) for image in images]
    num_shards = max(1, -(-sum(sizes) // SHARD_BYTES))
    # An image belongs to the shard that has its middle byte.
    middles = np.cumsum(sizes) - np.asarray(sizes) // 2 - 1
    shards = middles * num_shards // sum(sizes)
    for shard in range(num_shards):
        name = f"{split}-{shard:05d}-of-{num_shards:05d}.tfrecord"
        with tf.io.TFRecordWriter(str(out / name)) as writer:
            for row in np.flatnonzero(shards == shard):
                example = _example(images[row], class_names, category_ids)
                writer.write(example.SerializeToString(deterministic=True))
                done()
    text = format_label_map(class_names, category_ids)
    (out / "label_map.pbtxt").write_text(text, encoding="utf-8")
    return 0


def _num_bytes(path):
    place = find_place(path)
    return file_stamp(path)[0] if place is None else place.size


def _example(image, class_names, category_ids):
    """`tf.train.Example` of a `LabelledImage`."""
    import tensorflow as tf

    with open_image(image.path) as file:
        encoded = file.read()
    height, width = image.height, image.width
    x1, y1, x2, y2 = (image.boxes / [width, height, width, height]).T.tolist()
    name = image.name.encode("utf-8", "surrogateescape")
    texts = [class_names[label].encode() for label in image.labels]
    image_format = containers.format_of(encoded).lower().encode()
    area = np.where(np.isnan(image.areas), image.box_areas, image.areas).tolist()
    values = {
        "image/encoded": [encoded],
        "image/format": [image_format],
        "image/filename": [name],
        "image/source_id": [str(image.image_id).encode()],
        "image/key/sha256": [hashlib.sha256(encoded).hexdigest().encode()],
        "image/height": [height],
        "image/width": [width],
        "image/object/bbox/xmin": x1,
        "image/object/bbox/xmax": x2,
        "image/object/bbox/ymin": y1,
        "image/object/bbox/ymax": y2,
        "image/object/class/text": texts,
        "image/object/class/label": [int(category_ids[n]) for n in image.labels],
        "image/object/is_crowd": image.is_crowd.astype(int).tolist(),
        "image/object/area": area,
    }
    fields = {bytes: "bytes_list", int: "int64_list", float: "float_list"}
    example = tf.train.Example()
    for key, value in values.items():
        if value:  # a list of an unknown kind, without a value, is the same
            kind = type(value[0])
            getattr(example.features.feature[key], fields[kind]).value.extend(value)
    return example
