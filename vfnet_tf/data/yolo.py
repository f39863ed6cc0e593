"""YOLO: a data.yaml and, for each image, a text file of normalised boxes.

A line is `class cx cy width height`, in parts of the upright image. Lines with an even
number of coordinates from six on are polygons, of which the box around is taken.
"""

import functools
import json
import math
import os
import pathlib
import re

from vfnet_tf.data.coco import BAD_BOX, UNKNOWN_CATEGORY
from vfnet_tf.data.coco_content import CocoContent
from vfnet_tf.data.images.inspect import IMAGE_SUFFIXES, inspect_images
from vfnet_tf.data.images.reasons import Reason

MAX_YAML_BYTES = 2**20

# Eight decimals: a thousandth of a pixel even where a side has 50,000.
_DECIMALS = 8
_SPLIT_KEYS = {"train": ("train",), "val": ("val", "valid"), "test": ("test",)}


def is_yolo(directory):
    """Whether a folder has a yaml that describes a dataset; cheap, without PyYAML."""
    return bool(_find_yamls(pathlib.Path(directory)))


def find_yolo_splits(path):
    """Finds the splits of a dataset in the layout of Ultralytics.

    The yaml has `names` (list, or dict class id -> name), `train`, `val`, `test` (each
    a folder, a text file of image paths, or a list of these) and `path`, the folder
    that they are relative to, itself relative to the yaml. The labels of
    `.../images/.../a.jpg` are in `.../labels/.../a.txt`, those of another image beside
    it. An image without such a file has no objects.

    Args:
        path: str or path of the yaml, or of a folder that holds one.

    Returns:
        dict split -> function that returns (annotation file, image folder), both str;
        the file, a COCO json, is written into the cache by the call.

    Raises:
        ValueError: if there is no yaml, or it does not describe a dataset.
        ImportError: PyYAML, the extra `yolo`, is not installed.
    """
    path = pathlib.Path(path).expanduser().absolute()
    if path.is_dir():
        files = _find_yamls(path)
        if len(files) != 1:
            raise ValueError(
                "A YOLO folder must have one yaml with the keys names and train or val; "
                f"name one of several. Received: {str(path)!r} with "
                f"{[file.name for file in files]}"
            )
        path = files[0]
    content = _read_yaml(path)
    category_ids, names = _read_names(content, path)
    root = _root(content, path)
    found = {}
    for split, keys in _SPLIT_KEYS.items():
        for key in keys:
            if content.get(key):
                found[split] = functools.partial(
                    _write_split,
                    split,
                    key,
                    content[key],
                    root,
                    path,
                    category_ids,
                    names,
                )
                break
    if not found:
        raise ValueError(
            "The yaml must name the images of a split by `train`, `val` or `test`. "
            f"Received: {str(path)!r} with the keys {sorted(map(str, content))}"
        )
    return found


def write_yolo(out, split, images, class_names):
    """Writes the labels of one split and describes it in `data.yaml`.

    Args:
        out: `Path`, the folder that has `images/SPLIT/`.
        split: str.
        images: list of `LabelledImage` with distinct stems.
        class_names: sequence of str, index = class id.

    Returns:
        int, crowd regions that were left out, as the format cannot mark them.
    """
    folder = out / "labels" / split
    folder.mkdir(parents=True)
    num_left_out = 0
    for image in images:
        lines = []
        for (x1, y1, x2, y2), label, is_crowd in image.objects():
            if is_crowd:
                num_left_out += 1
                continue
            row = [
                (x1 + x2) / 2 / image.width,
                (y1 + y2) / 2 / image.height,
                (x2 - x1) / image.width,
                (y2 - y1) / image.height,
            ]
            lines.append(f"{label} " + " ".join(f"{v:.{_DECIMALS}f}" for v in row))
        path = folder / f"{pathlib.Path(image.name).stem}.txt"
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    description = out / "data.yaml"
    # Text in quotes as json has it is yaml too.
    head = "names:\n" + "".join(
        f"  {label}: {json.dumps(name, ensure_ascii=False)}\n"
        for label, name in enumerate(class_names)
    )
    earlier = description.read_text("utf-8") if description.exists() else head
    description.write_text(f"{earlier}{split}: images/{split}\n", encoding="utf-8")
    return num_left_out


def _find_yamls(root):
    """The yaml files of a folder that have the keys of a dataset."""
    found = []
    for path in sorted([*root.glob("*.yaml"), *root.glob("*.yml")]):
        with open(path, encoding="utf-8", errors="replace") as file:
            text = file.read(MAX_YAML_BYTES)
        if all(
            re.search(rf"^{key}\s*:", text, re.M) for key in ("names", "(train|val)")
        ):
            found.append(path)
    return found


def _read_yaml(path):
    try:
        import yaml
    except ImportError as error:
        raise ImportError(
            "Reading a YOLO data.yaml needs PyYAML: pip install 'vfnet_tf[yolo]'"
        ) from error
    if not path.is_file() or path.stat().st_size > MAX_YAML_BYTES:
        raise ValueError(
            f"The yaml must be an existing file of at most {MAX_YAML_BYTES} bytes. "
            f"Received: {str(path)!r}"
        )
    try:
        content = yaml.safe_load(path.read_bytes())
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(
            f"The file must be valid yaml ({error}). Received: {str(path)!r}"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(
            "The yaml must hold keys such as path, train, val and names. Received: "
            f"{str(path)!r}, a {type(content).__name__}"
        )
    return content


def _read_names(content, path):
    """Returns class ids and names, both in the order of the ids."""
    names = content.get("names")
    if isinstance(names, list):
        names = dict(enumerate(names))
    # Unquoted, yaml takes `no` for False and `1` for a number.
    if (
        not isinstance(names, dict)
        or not names
        or any(type(key) is not int or key < 0 for key in names)
        or any(type(name) not in (str, int) for name in names.values())
    ):
        raise ValueError(
            "`names` must be a list of class names, or a dict from class ids >= 0 to "
            "names; put a name like no or 1.5 in quotes. Received: "
            f"names={names!r} in {str(path)!r}"
        )
    count = content.get("nc", len(names))
    if count != len(names):
        raise ValueError(
            "`nc` must be the number of `names`. Received: "
            f"nc={count!r}, {len(names)} names in {str(path)!r}"
        )
    ids = sorted(names)
    return ids, [str(names[class_id]) for class_id in ids]


def _root(content, path):
    """The folder that `path` of the yaml names; beside the yaml where it is not there."""
    named = content.get("path")
    if named is None:
        return path.parent
    root = path.parent / os.path.expanduser(str(named))
    # Files that are handed on state where they lay elsewhere.
    return root if root.is_dir() else path.parent


def _listed_images(key, entries, root, path):
    """All image files of a split, as absolute paths in a fixed order."""
    images = []
    for entry in entries if isinstance(entries, list) else [entries]:
        text = str(entry)
        # Some exports write ../train/images for a folder beside the yaml.
        candidates = [root / text, root / text.removeprefix("../"), path.parent / text]
        place = next((place for place in candidates if place.exists()), None)
        if place is None:
            raise ValueError(
                f"`{key}` must name existing folders or lists of images. Received: "
                f"{text!r} in {str(path)!r}, looked for {str(candidates[0])!r}"
            )
        place = pathlib.Path(os.path.normpath(place))
        if place.is_dir():
            images += sorted(
                str(file)
                for file in place.rglob("*")
                if file.suffix.lower() in IMAGE_SUFFIXES
                and not file.name.startswith(".")
            )
            continue
        for line in place.read_text(encoding="utf-8").splitlines():
            if line.strip():
                images.append(os.path.normpath(place.parent / line.strip()))
    if not images:
        raise ValueError(
            f"`{key}` must lead to at least one image. Received: {entries!r} in "
            f"{str(path)!r}"
        )
    return list(dict.fromkeys(images))


def _label_file(image):
    head, found, rest = image.rpartition(f"{os.sep}images{os.sep}")
    if found:
        image = os.path.join(head, "labels", rest)
    return os.path.splitext(image)[0] + ".txt"


def _parse_line(words, class_ids):
    """Reads a line.

    Returns:
        (label, (x, y, width, height) in parts of the image).

    Raises:
        ValueError: with the reason, of those that a report counts.
    """
    try:
        class_id, *numbers = map(float, words)
    except ValueError:
        raise ValueError("line has a word that is no number") from None
    is_polygon = len(numbers) >= 6 and len(numbers) % 2 == 0
    if len(numbers) != 4 and not is_polygon:
        raise ValueError("line is neither `class cx cy width height` nor a polygon")
    if not all(map(math.isfinite, numbers)):
        raise ValueError(BAD_BOX)
    if class_id not in class_ids:
        raise ValueError(UNKNOWN_CATEGORY)
    label = class_ids[class_id]
    if is_polygon:
        x, y = min(numbers[::2]), min(numbers[1::2])
        return label, (x, y, max(numbers[::2]) - x, max(numbers[1::2]) - y)
    cx, cy, w, h = numbers
    return label, (cx - w / 2, cy - h / 2, w, h)


def _write_split(split, key, entries, root, path, category_ids, names):
    images = _listed_images(key, entries, root, path)
    root = str(root)
    # Checked in full, as reading will, which remembers it.
    headers = inspect_images(images, root, full=True)
    content = CocoContent(names, category_ids, source=f"{path} ({split})")
    class_ids = {class_id: label for label, class_id in enumerate(category_ids)}
    for image in images:
        header, labels = headers[image], _label_file(image)
        shown, error, lines = os.path.relpath(labels, root), header.error or None, []
        try:
            with open(labels, encoding="utf-8") as file:
                lines = file.read().splitlines()
        except FileNotFoundError:
            pass
        except (OSError, UnicodeDecodeError) as problem:
            error = error or f"{shown} cannot be read: {problem}"
        is_inside = not os.path.relpath(image, root).startswith(os.pardir)
        image_id = content.add_image(
            os.path.relpath(image, root) if is_inside else image,
            size=None if error else (header.height, header.width),
            error=error,
            code=header.code or Reason.BAD_ENTRY,
        )
        for number, line in enumerate(lines, 1):
            if error or not line.strip():
                continue
            source = f"{shown} line {number}"
            try:
                label, (x, y, w, h) = _parse_line(line.split(), class_ids)
            except ValueError as problem:
                content.drop(str(problem), f"{source} ({line.strip()[:80]})")
                continue
            width, height = header.width, header.height
            bbox = [x * width, y * height, w * width, h * height]
            content.add_box(image_id, label, bbox, source=source)
    return content.write_to_cache(split), root
