"""Reads detection datasets in the COCO format: a json file beside a folder of images.

Every other format is turned into such a file first, see `readers`. What is wrong with a
dataset is found here, before a training begins, and reported with file and annotation.
"""

import codecs
import collections
import contextlib
import functools
import json
import os
import pathlib
import re
import unicodedata
import urllib.parse

import numpy as np

from vfnet_tf.data.dataset import (
    BAD_AREA,
    BAD_BOX,
    BAD_FLAG,
    BAD_SIZE,
    DUPLICATE,
    MAX_LISTED,
    MIN_BOX_SIDE,
    MIN_IMAGE_SIDE,
    NO_AREAS,
    NO_BOXES,
    NO_IDS,
    NO_LABELS,
    OTHER_CLASS,
    OUTSIDE,
    SKIPPED_IMAGE,
    TINY,
    UNKNOWN_CATEGORY,
    UNKNOWN_IMAGE,
    BadImage,
    DetectionDataset,
    ImageRecord,
    ReadReport,
    listed,
)
from vfnet_tf.data.folders import (
    best_folder,
    find_file,
    is_hidden,
    list_folder,
    list_folders,
)
from vfnet_tf.data.images.inspect import IMAGE_SUFFIXES, ImageHeader, inspect_images
from vfnet_tf.data.images.places import find_place, is_remote
from vfnet_tf.data.images.reasons import Reason
from vfnet_tf.data.splits import SPLITS, FoundSplits, by_split, split_named
from vfnet_tf.data.text import (
    NOT_UTF8,
    check_text_size,
    is_valid,
    printable,
    read_json,
)
from vfnet_tf.data.values import is_blank, read_crowd, read_id, read_number, read_size
from vfnet_tf.foreign_text import clipped

# Further keys of a json that `coco_content` made from another format: the source of an
# entry, why an image cannot be used (text and `Reason`), the objects without a box, notes.
SOURCE_KEY = "vfnet_source"
ERROR_KEY = "vfnet_error"
ERROR_CODE_KEY = "vfnet_error_code"
DROPPED_KEY = "vfnet_dropped"
NOTES_KEY = "vfnet_notes"
# The name of the first list tells a json of the format from most others.
_FIRST_LIST = re.compile(r'\s*\{[^\[]*?"(\w+)"\s*:\s*\[')
_COCO_LISTS = frozenset({"images", "annotations", "categories", "licenses", "videos"})
_INSTANCES = re.compile("^instances_", re.IGNORECASE)
_FILE_NAME = re.compile(r'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")')


def _load_json(annotation_file, training):
    """Reads and checks the top level of an annotation file."""
    try:
        content = read_json(annotation_file)
    except ValueError as error:
        raise ValueError(
            f"The annotation file {error}. "
            f"Received: annotation_file={str(annotation_file)!r}"
        ) from error
    keys = ["images", "annotations", "categories"]
    if not isinstance(content, dict):
        raise ValueError(
            f"The annotation file must hold an object with the keys {keys}; a list is "
            "the format of results. Received: "
            f"annotation_file={str(annotation_file)!r}, a {type(content).__name__}"
        )
    if not training:
        # The files of COCO's test images have no annotations.
        content.setdefault("annotations", [])
    for key in keys:
        value = content.get(key)
        if not isinstance(value, list) or not all(isinstance(v, dict) for v in value):
            raise ValueError(
                f"The annotation file must have the keys {keys}, each a list of "
                f"objects; {key!r} is missing or is not. Received: "
                f"annotation_file={str(annotation_file)!r}, keys={clipped(sorted(content))}"
            )
    return content


def _shown(names):
    """Names of classes for a message: a hundred of them, as LVIS has 1,203."""
    return clipped(list(names), 2000, 100)


def _read_categories(content, class_names, annotation_file):
    """Returns class names, category ids (index = label) and all ids of the file."""
    found = {}
    for category in content["categories"]:
        category_id, name = read_id(category.get("id")), category.get("name")
        is_name = isinstance(name, str) and name.strip() and is_valid(name)
        if category_id is None or not is_name:
            raise ValueError(
                "Each category must have an integer id and a name in UTF-8. "
                f"Received: category={clipped(category)} in {str(annotation_file)!r}"
            )
        name = unicodedata.normalize("NFC", name)
        if category_id in found:
            raise ValueError(
                f"Category ids must be unique: {clipped(found[category_id])} and "
                f"{clipped(name)} share one. "
                f"Received: id={category_id} in {str(annotation_file)!r}"
            )
        found[category_id] = name
    # In other formats all labels may be unreadable: another message tells that.
    if not found and SOURCE_KEY not in content:
        raise ValueError(
            "The annotation file must list at least one category. "
            f"Received: categories=[] in {str(annotation_file)!r}"
        )
    by_name = collections.defaultdict(list)
    for category_id, name in found.items():
        by_name[name].append(category_id)
    if class_names is None:
        class_names = [found[category_id] for category_id in sorted(found)]
    elif len(set(class_names)) != len(class_names) or not class_names:
        raise ValueError(
            "`class_names` must be at least one name, each once. "
            f"Received: class_names={_shown(class_names)}"
        )
    class_names = [unicodedata.normalize("NFC", name) for name in class_names]
    missing = [name for name in class_names if name not in by_name]
    if missing:
        raise ValueError(
            f"All classes must be in the annotation file {str(annotation_file)!r}. "
            f"Expected: {_shown(class_names)}. Found: {_shown(sorted(by_name))}. "
            f"Received: missing={_shown(missing)}"
        )
    repeated = {name: by_name[name] for name in class_names if len(by_name[name]) > 1}
    if repeated:
        raise ValueError(
            "Category names must be unique, or labels could not be told apart. "
            f"Received: {clipped(repeated)} (name: ids) in {str(annotation_file)!r}"
        )
    return tuple(class_names), tuple(by_name[name][0] for name in class_names), found


def split_of(annotation_file):
    """The split in the name of a file, else of its folder, or None.

    It is `val` for instances_val2017.json and for valid/_annotations.coco.json.
    """
    path = pathlib.Path(annotation_file)
    words = [*re.split(r"[-_.\s]+", path.stem), path.absolute().parent.name]
    return next(filter(None, map(split_named, words)), None)


def image_folders(root, split, own=None):
    """Folders of a dataset that may hold the images of a split, best first.

    Args:
        root: `Path` of the dataset's folder.
        split: one of `SPLITS`, or None.
        own: str, the name of a folder to look at first: train2014 may lie beside
            train2017.

    Returns:
        list of `Path`: folders named for the split, in `root` and in its `images`,
        then `images`, then `root`.
    """
    folders = list_folders(root)
    shared = [path for name, path in folders.items() if name.lower() == "images"]
    found = []
    for inside in (folders, *map(list_folders, shared)):
        names = [own, *by_split(inside).get(split, [])]
        found += [inside[name] for name in names if name in inside]
    return list(dict.fromkeys([*found, *shared, root]))


def _find_image_dir(annotation_file, name_lists, root=None):
    """The candidate folder that holds most of the named files, else any image.

    `name_lists` are lists of file names; each is used if no file of an earlier list was
    found. `root` is the folder of the dataset, None for that of the annotation file.
    """
    path = pathlib.Path(annotation_file).absolute()
    parent = path.parent
    if root is None:
        root = parent.parent if parent.name.lower() == "annotations" else parent
    own = _INSTANCES.sub("", path.stem)
    folders = list(dict.fromkeys([*image_folders(root, split_of(path), own), parent]))
    existing = [folder for folder in folders if folder.is_dir()]
    for names in name_lists:
        folder = best_folder(existing, names)
        if folder is not None:
            return folder
    for folder in existing:
        if images_by_stem(folder):
            return folder
    looked = ", ".join(str(folder) for folder in folders)
    raise ValueError(
        f"No folder with the images of {str(annotation_file)!r} was found, looked in: "
        f"{looked}. Received: image_dir=None"
    )


def _chunks(annotation_file):
    """Yields a json file in texts of a megabyte, each with the end of the previous one."""
    with open(annotation_file, "rb") as file:
        data = file.read(1 << 20)
        decoder = codecs.getincrementaldecoder(json.detect_encoding(data))("replace")
        end = ""
        while data:
            text = end + decoder.decode(data)
            yield text
            end, data = text[-1024:], file.read(1 << 20)


def _file_names(annotation_file):
    """Yields lists of the `file_name`s in a json file, without parsing it whole."""
    check_text_size(annotation_file)
    for text in _chunks(annotation_file):
        names = []
        for quoted in _FILE_NAME.findall(text):
            with contextlib.suppress(ValueError):
                names.append(json.loads(quoted))
        if names:
            yield names


def _only_coco(paths):
    """The json files that begin like one of the format.

    Many files are a json for each image, which is another format.
    """
    found = []
    for path in paths if len(paths) <= MAX_LISTED else ():
        with contextlib.suppress(OSError):
            match = _FIRST_LIST.match(next(_chunks(path), ""))
            if match and match.group(1) in _COCO_LISTS:
                found.append(path)
    return found


def _annotation_files(root):
    """Annotation files of a folder: (dict split -> list of `Path`, json files not used)."""
    found, unused = collections.defaultdict(list), []
    folders = list_folders(root)
    places = [path for name, path in folders.items() if name.lower() == "annotations"]
    for place in (*places, root):
        files = list_folder(place, {".json"})
        used = by_split(files, lambda path: _INSTANCES.sub("", path.stem))
        for split, paths in used.items():
            found[split] += paths
        others = set(files).difference(*used.values())
        unused += sorted(others if place != root else _only_coco(others))
    for split, names in by_split(folders).items():
        has_file = split in found
        for name in names:
            files = list_folder(folders[name], {".json"})
            exports = [path for path in files if path.name == "_annotations.coco.json"]
            files = exports or _only_coco(files)
            if has_file:
                unused += files
            else:
                found[split] += files
    # Exports in folders with other names than those of splits.
    for name in filter(lambda name: split_named(name) is None, folders):
        files = list_folder(folders[name], {".json"})
        unused += [path for path in files if path.name == "_annotations.coco.json"]
    return {split: found[split] for split in SPLITS if found.get(split)}, unused


def is_coco_folder(root):
    """Whether a folder, a `Path`, has annotation files; see `find_coco_splits`."""
    return bool(_annotation_files(root)[0])


def find_coco_splits(directory):
    """Finds the annotation files and image folders of a COCO-format directory.

    Annotation files are `annotations/instances_<split><year>.json`, the same without
    `instances_`, or either of them directly in `directory`. Some exports instead have
    `_annotations.coco.json` (or a single json of the format) in a folder named for the
    split. For names of splits see `splits.split_named`; the year is optional. Images lie
    in `<split><year>/`, `images/<split><year>/`, `images/`, `directory`, or beside the
    json: the folder with most of them is taken.

    Args:
        directory: str or path.

    Returns:
        dict split -> (annotation file, image folder), both str, in the order train,
        val, test; a split that is not there is left out.

    Raises:
        ValueError: if the directory does not exist, holds no annotation file, holds
            two for one split, or no folder has the images of one.
    """
    return {split: part() for split, part in coco_parts(directory).items()}


def coco_parts(directory):
    """`FoundSplits` like `find_coco_splits`, with a function for each split."""
    root = pathlib.Path(directory).expanduser()
    if not root.is_dir():
        raise ValueError(
            f"`directory` must be an existing folder. Received: directory={str(root)!r}"
        )
    found, unused = _annotation_files(root)
    if not found:
        present = sorted(path.name for path in root.iterdir())[:MAX_LISTED]
        raise ValueError(
            "No annotation file was found. Looked for "
            "annotations/instances_{train,val,test}[year].json, "
            "annotations/{train,val,test}[year].json, the same names directly in the "
            "folder, and {train,val,test}/_annotations.coco.json. "
            f"Received: directory={str(root)!r}, which holds {present}"
        )
    parts = {
        split: functools.partial(_locate, split, files, root)
        for split, files in found.items()
    }
    return FoundSplits(parts, [os.path.relpath(path, root) for path in unused])


def _locate(split, files, root):
    """(annotation file, image folder) of a split that has these annotation files."""
    if len(files) > 1:
        raise ValueError(
            f"There must be one annotation file for the split {split!r}. "
            f"Received: {[str(path) for path in files]}"
        )
    (path,) = files
    try:
        image_dir = _find_image_dir(path, _file_names(path), root)
    except ValueError:
        _load_json(path, training=False)  # If the file is broken, that is the reason.
        raise
    return str(path), str(image_dir)


def _similar_names(names):
    """Groups of names that differ in blanks, case or composition only, as tuples."""
    groups = collections.defaultdict(list)
    for name in names:
        letters = unicodedata.normalize("NFKC", name).casefold()
        groups[" ".join(letters.split())].append(name)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def _name_fault(name):
    """Why a file cannot have this name; empty if it can."""
    return "has a zero byte" if "\0" in name else "" if is_valid(name) else NOT_UTF8


def _list_images(content, image_dir, level):
    """Checks the images of the file against those on disk.

    Returns:
        (dict image id -> `(path, ImageHeader)`, list of `BadImage`).
    """
    paths, sizes, wrong_sizes = {}, [], {}
    for index, image in enumerate(content["images"]):
        name = image.get("file_name")
        if isinstance(name, str) and name and not _name_fault(name):
            paths[name] = find_file(image_dir, name)
        try:
            size = read_size(image.get("height"), image.get("width"))
        except ValueError as error:
            size, wrong_sizes[index] = (), str(error)
        sizes.append(size)
    needed = paths.values()
    if level is None:  # Without a check, only sizes that the file omits are read.
        pairs = zip(content["images"], sizes, strict=True)
        names = [image.get("file_name") for image, size in pairs if size is None]
        needed = [paths[name] for name in names if name in paths]
    if callable(level):
        headers = level(needed)
    else:
        headers = inspect_images(needed, image_dir, full=level == "full")
    good, bad, first_name = {}, [], {}
    hint = functools.partial(_hint, image_dir, functools.cache(images_by_stem))

    def refuse(name, text, code=Reason.BAD_ENTRY):
        bad.append(BadImage(name, text, code))

    for index, image in enumerate(content["images"]):
        name, image_id = image.get("file_name"), read_id(image.get("id"))
        if isinstance(name, str) and _name_fault(name):
            reason = f"must have another name, as this one {_name_fault(name)}"
            refuse(printable(name), f"{reason}: rename the file")
            continue
        if not isinstance(name, str) or name not in paths:
            text = f"has no file_name (id {clipped(image.get('id'))})"
            refuse(f"images[{index}]", text)
            continue
        # -1 marks the repeats that fill a batch.
        if image_id is None or image_id < 0:
            refuse(
                name, f"must have an integer id >= 0, has {clipped(image.get('id'))}"
            )
            continue
        if image_id in first_name:
            refuse(name, f"has id {image_id}, as {first_name[image_id]} has")
            continue
        first_name[image_id] = name
        if image.get(ERROR_KEY):
            code = image.get(ERROR_CODE_KEY, Reason.BAD_ENTRY)
            text = f"{printable(image[ERROR_KEY])}{hint(name)}"
            refuse(name, text, Reason(code))
            continue
        size = sizes[index]
        if size == ():
            refuse(name, wrong_sizes[index])
            continue
        header = headers.get(paths[name])
        if header is None:
            header = ImageHeader(*size)
        if header.error:
            text = f"{header.error}{hint(name)}"
            refuse(name, text, header.code or Reason.UNDECODABLE)
            continue
        if size is not None and size != (header.height, header.width):
            turned = f" (EXIF orientation {header.orientation} applied)"
            refuse(
                name,
                f"is {header.height} high and {header.width} wide"
                f"{turned if header.orientation > 1 else ''}, its annotation says "
                f"{size[0]} and {size[1]}",
                Reason.SIZE_CONFLICT,
            )
            continue
        good[image_id] = (paths[name], header)
    return good, bad


def images_by_stem(folder, form=str.casefold):
    """Dict stem -> names of the image files in a folder; `form` is a function of stems."""
    found = collections.defaultdict(list)
    with contextlib.suppress(OSError, ValueError):
        for name in sorted(os.listdir(folder)):
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in IMAGE_SUFFIXES and not is_hidden(name):
                found[form(stem)].append(name)
    return found


def _hint(image_dir, listing, name):
    """Text on an image that a missing one may stand for; empty if the image exists.

    `listing` is a function from a folder to its `images_by_stem`.
    """
    path = find_file(image_dir, name)
    if os.path.lexists(path) or find_place(path) is not None:
        return ""
    plain = urllib.parse.unquote(name.replace("\\", "/"))
    parts = plain.split("/")
    # Some tools put a folder of their server or archive before the name.
    for first in range(len(parts)):
        meant = "/".join(parts[first:])
        if meant and meant != name and os.path.isfile(find_file(image_dir, meant)):
            return f" (there is {meant!r}: is that its name?)"
    # Some systems take A.JPG for a.jpg, and some tools leave suffixes out.
    folder, last = os.path.split(name)
    images = listing(os.path.join(image_dir, folder))
    for stem in (os.path.splitext(last)[0].casefold(), last.casefold()):
        if len(images.get(stem, ())) == 1:
            meant = os.path.join(folder, images[stem][0])
            return f" (there is {meant!r}: is that its name?)"
    return ""


def _finite_box(bbox):
    """A COCO box as floats `(x, y, w, h)`, None if it is not four finite numbers."""
    numbers = [read_number(value) for value in bbox] if isinstance(bbox, list) else []
    return None if len(numbers) != 4 or None in numbers else tuple(numbers)


def _corners(bbox):
    """A COCO box as `(x1, y1, x2, y2)`, not clipped; None if it is not finite."""
    numbers = _finite_box(bbox)
    if numbers is None:
        return None
    x, y, w, h = numbers
    return x, y, x + w, y + h


def clip_box(bbox, area, height, width):
    """Turns a COCO box into `(x1, y1, x2, y2)` inside the image.

    Returns:
        (box, reason, is_clipped): box is None where reason says why.
    """
    numbers = _finite_box(bbox)
    if numbers is None:
        return None, BAD_BOX, False
    x, y, w, h = numbers
    if w <= 0 or h <= 0:
        return None, BAD_SIZE, False
    if not is_blank(area) and (read_number(area) or 0) <= 0:
        return None, BAD_AREA, False
    inside = (max(x, 0), max(y, 0), min(x + w, width), min(y + h, height))
    # Compared before the conversion: float32 has no 1e300 and no width of 1e-9.
    if inside[2] <= inside[0] or inside[3] <= inside[1]:
        return None, OUTSIDE, False
    # After the overlap: for a box outside, that is the better reason.
    if w < MIN_BOX_SIDE or h < MIN_BOX_SIDE:
        return None, TINY, False
    box = np.asarray(inside, "float32")
    if box[2] <= box[0] or box[3] <= box[1]:
        return None, OUTSIDE, False
    # Fractions of a pixel come from rounded coordinates and are no mistake.
    is_clipped = min(x, y, width - x - w, height - y - h) < -1
    return box, "", is_clipped


def _group_annotations(content, good, skipped_ids, labels, found, report):
    """Drops bad annotations and groups the others by image.

    Returns:
        (dict image id -> list of `(box, label, annotation id, area)`, the same of crowds).
    """
    objects, crowds = collections.defaultdict(list), collections.defaultdict(list)
    first_with_id = {}
    for reason, text in content.get(DROPPED_KEY, ()):
        report.drop(reason, text)
    for index, annotation in enumerate(content["annotations"]):
        annotation_id, name = read_id(annotation.get("id")), f"annotations[{index}]"
        if annotation_id is None:
            annotation_id = -1
        else:
            name = f"annotation {annotation_id}"
        name = annotation.get(SOURCE_KEY, name)
        image_id = annotation.get("image_id")
        image_key = read_id(image_id)
        category_id, bbox = annotation.get("category_id"), annotation.get("bbox")
        report.num_masks += bool(annotation.get("segmentation"))
        if annotation_id >= 0:
            content_of = tuple(
                clipped(value) if known is None else known
                for value, known in (
                    (image_id, image_key),
                    (category_id, read_id(category_id)),
                    (bbox, _finite_box(bbox)),
                )
            )
            first = first_with_id.setdefault(annotation_id, content_of)
            if first is not content_of:
                if first == content_of:
                    report.drop(DUPLICATE, f"{name} (image id {clipped(image_id)})")
                    continue
                # Evaluation looks annotations up by id: it would find one of the two.
                raise ValueError(
                    "Annotation ids must be unique, or evaluation would lose ground "
                    f"truth. Received: id={annotation_id} for (image id, category id, "
                    f"bbox) {first} and {content_of} in {report.annotation_file!r}"
                )
        if image_key not in good:
            is_skipped = image_key in skipped_ids
            reason = SKIPPED_IMAGE if is_skipped else UNKNOWN_IMAGE
            report.drop(reason, f"{name} (image id {clipped(image_id)})")
            continue
        path, header = good[image_key]
        name = f"{name} in {os.path.basename(path)}"
        category_key = read_id(category_id)
        if category_key not in found:
            text = f"{name} (category id {clipped(category_id)})"
            report.drop(UNKNOWN_CATEGORY, text, path, _corners(bbox))
            continue
        if category_key not in labels:
            report.drop(OTHER_CLASS, f"{name} ({found[category_key]})")
            continue
        is_crowd, wrong_flag = read_crowd(annotation)
        if wrong_flag:
            report.drop(BAD_FLAG, f"{name} ({wrong_flag})", path, _corners(bbox))
            continue
        # The area of a crowd region is that of its mask, and not used.
        area = None if is_crowd else annotation.get("area")
        box, reason, is_clipped = clip_box(bbox, area, header.height, header.width)
        if box is None:
            value = area if reason == BAD_AREA else bbox
            report.drop(reason, f"{name} ({clipped(value)})", path, _corners(bbox))
            continue
        if is_clipped and not is_crowd:
            report.clip(f"{name} ({clipped(bbox)})", path, _corners(bbox))
        found_objects = crowds if is_crowd else objects
        area = np.nan if is_blank(area) else read_number(area)
        row = (box, labels[category_key], annotation_id, area)
        found_objects[image_key].append(row)
    return objects, crowds


def _columns(rows):
    """Boxes, labels, annotation ids and areas of objects as arrays."""
    if not rows:
        return NO_BOXES, NO_LABELS, NO_IDS, NO_AREAS
    kinds = ("float32", "int32", "int64", "float64")
    columns = zip(zip(*rows, strict=True), kinds, strict=True)
    return tuple(np.asarray(values, dtype) for values, dtype in columns)


def _make_records(good, objects, crowds, training, report):
    """`ImageRecord`s of good images; `report` counts those that are left out."""
    records = []
    for image_id, (path, header) in good.items():
        if training and min(header.height, header.width) < MIN_IMAGE_SIDE:
            report.num_small_images += 1
            continue
        rows = objects.get(image_id, [])
        if not rows:
            report.num_without_objects += 1
            if not report.keep_empty:
                continue
        record = ImageRecord(
            image_id,
            path,
            header.height,
            header.width,
            *_columns(rows),
            *_columns(crowds.get(image_id, ()))[:2],
            orientation=header.orientation,
            needs_pil=header.needs_pil,
        )
        records.append(record)
    return records


def read_coco(
    annotation_file,
    image_dir=None,
    *,
    class_names=None,
    keep_empty=None,
    strict=False,
    skip_bad_images=False,
    check_images="full",
    training=True,
    allow_empty=False,
):
    """Reads a COCO-format dataset and checks all of it.

    Crowd regions never become boxes. Boxes that reach outside their image are clipped
    to it. Boxes with a side below 1 pixel, no positive area or no overlap with the
    image are dropped, and in training images with a side below 32 pixels, as in the
    official code (docs/parity.md, S33).

    Args:
        annotation_file: str or path of the json file.
        image_dir: str or path of the folder that file names are relative to; None
            looks in the usual places (see `find_coco_splits`).
        class_names: sequence of names, index = label; None takes all categories of the
            file in the order of their ids. Give a validation set the names of the
            training set. Boxes of other classes are dropped and counted.
        keep_empty: bool, keep images without boxes; None keeps them unless `training`,
            as the official code does.
        strict: bool, a bad annotation is an error instead of being dropped.
        skip_bad_images: bool, go on without images that cannot be used and list them
            in `report.bad_images`.
        check_images: `"full"` (or True) decodes every image once and keeps a list of good
            ones in the cache folder; `"header"` reads sizes and end markers only; False
            trusts the annotation file and ignores EXIF orientations. A function of the
            paths that returns a dict path -> `ImageHeader` replaces the check.
        training: bool, False keeps all images of the file.
        allow_empty: bool, return a dataset without images where none can be used.

    Returns:
        `DetectionDataset`, records in the order of the file.

    Raises:
        ValueError: for a file that is missing or not in the format, for bad images
            (all of them are named), for bad annotations if `strict`, and for a dataset
            that is empty in the end.
    """
    levels = {True: "full", "full": "full", "header": "header", False: None}
    if not callable(check_images) and check_images not in levels:
        raise ValueError(
            "`check_images` must be 'full', 'header', True, False or a function. "
            f"Received: check_images={check_images!r}"
        )
    annotation_file = os.fspath(annotation_file)
    keep_empty = (not training) if keep_empty is None else keep_empty
    content = _load_json(annotation_file, training)
    shown = content.get(SOURCE_KEY, annotation_file)
    names, category_ids, found = _read_categories(content, class_names, shown)
    if not content["images"]:
        raise ValueError(
            "The annotation file must list at least one image. "
            f"Received: images=[] in {shown!r}"
        )
    if image_dir is None:
        names_of_files = [image.get("file_name") for image in content["images"]]
        names_of_files = [name for name in names_of_files if isinstance(name, str)]
        image_dir = _find_image_dir(annotation_file, [names_of_files])
    elif not is_remote(os.fspath(image_dir)) and not os.path.isdir(image_dir):
        raise ValueError(
            f"`image_dir` must be an existing folder. Received: image_dir={image_dir!r}"
        )
    image_dir = os.fspath(image_dir)

    report = ReadReport(
        shown,
        num_images=len(content["images"]),
        num_annotations=len(content["annotations"] + content.get(DROPPED_KEY, [])),
        keep_empty=keep_empty,
        notes=content.get(NOTES_KEY, []),
    )
    level = check_images if callable(check_images) else levels[check_images]
    good, bad = _list_images(content, image_dir, level)
    if bad and not skip_bad_images:
        raise ValueError(
            f"All images of {shown!r} must be readable in {image_dir!r}; "
            "repair or remove the bad ones, or go on without them by "
            "skip_bad_images=True (--skip-bad-images). Received: "
            f"{len(bad)} bad of {report.num_images} images:"
            + listed([f"{name}: {text}" for name, text, _ in bad])
        )
    report.bad_images = bad
    skipped_ids = {read_id(image.get("id")) for image in content["images"]}
    skipped_ids = skipped_ids.difference(good) - {None}
    report.similar_classes = _similar_names(names)
    labels = {category_id: label for label, category_id in enumerate(category_ids)}
    objects, crowds = _group_annotations(
        content, good, skipped_ids, labels, found, report
    )
    mistakes = report.mistakes if strict else []
    if mistakes:
        raise ValueError(
            f"All annotations of {shown!r} must be valid (strict=True). "
            f"Received: {len(mistakes)} bad annotations:" + listed(mistakes)
        )
    report.num_crowd = sum(map(len, crowds.values()))
    records = _make_records(good, objects, crowds, training, report)
    num_boxes = sum(len(record.boxes) for record in records)
    if not allow_empty and (not records or (training and not num_boxes)):
        raise ValueError(
            "The dataset must not be empty: no image "
            f"{'with a usable box ' if training else ''}is left. Expected classes: "
            f"{_shown(names)}. Found categories: {_shown(sorted(found.values()))}. "
            f"Received: {report.summary()}"
        )
    return DetectionDataset(
        records, names, category_ids, annotation_file, image_dir, report
    )
