"""YOLO: a data.yaml and, for each image, a text file of normalised boxes.

A line is `class cx cy width height`, in parts of the upright image. Six coordinates or
more, in even number, are a polygon or an oriented box: the box around it is taken. With
`kpt_shape` in the yaml, keypoints follow the box. An ambiguous line is dropped.
"""

import collections
import functools
import json
import os
import pathlib
import re

from vfnet_tf.data.dataset import MIN_BOX_SIDE, UNKNOWN_CATEGORY
from vfnet_tf.data.folders import (
    best_folder,
    find_file,
    list_folder,
    list_folders,
    list_tree,
)
from vfnet_tf.data.formats.coco_content import CocoContent
from vfnet_tf.data.images.inspect import IMAGE_SUFFIXES, inspect_images
from vfnet_tf.data.images.reasons import Reason
from vfnet_tf.data.splits import FoundSplits, by_split, split_named
from vfnet_tf.data.text import (
    NOT_UTF8,
    is_valid,
    printable,
    read_lines,
    read_text,
    split_lines,
)
from vfnet_tf.data.values import read_integer, read_number
from vfnet_tf.foreign_text import clipped, one_line

# The yaml of 1,200 classes takes 30 kB.
MAX_YAML_BYTES = 2**18
#: Most values of a yaml, those counted again for which an alias stands.
MAX_YAML_VALUES = 50_000
MAX_YAML_DEPTH = 20

# Eight decimals: a thousandth of a pixel even where a side has 50,000.
_DECIMALS = 8
# Parts of a side: how far a polygon may reach outside, and a box that a tool rounded.
_OVERHANG = 0.5
_ROUNDING = 0.01
# Label files that are searched for keypoints.
_NUM_SEARCHED = 1000
NO_NUMBER = "line has a word that is no finite number"
NO_BOX = "line is neither `class cx cy width height` nor a polygon"
FIFTH_NUMBER = "line has a number after the box: a confidence, track id or angle"
NO_POLYGON = "corners are no polygon in parts of the image"
BOX_OR_TRIANGLE = "line is a triangle, or a box with confidence and track id"
BOX_OR_POLYGON = "line is a polygon, or a box with keypoints (kpt_shape in the yaml)"
NO_KEYPOINTS = "line has not the columns of the box and of kpt_shape in the yaml"


def is_yolo(directory):
    """Whether a folder has a yaml that describes a dataset; cheap, without PyYAML."""
    return bool(_find_yamls(pathlib.Path(directory)))


def find_yolo_splits(path):
    """Finds the splits of a dataset in the layout of Ultralytics.

    The yaml has `names` (list, or dict class id -> name), keys named for splits (see
    `splits.split_named`) and `path`. The value of a split is a folder, a text file of
    image paths, or a list of these; they are relative to `path`, and that to the yaml.
    The labels of `.../images/.../a.jpg` are in `.../labels/.../a.txt`, or beside the
    image. An image without such a file has no objects.

    Args:
        path: str or path of the yaml, or of a folder that holds one.

    Returns:
        `FoundSplits`.

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
    num_columns = _keypoint_columns(content, path)
    root = _root(content, path)
    named = by_split([key for key in content if isinstance(key, str)])
    used = {
        split: next(filter(content.get, keys), None) for split, keys in named.items()
    }
    used = {split: key for split, key in used.items() if key is not None}
    if not used:
        raise ValueError(
            "The yaml must name the images of a split by `train`, `val` or `test`. "
            f"Received: {str(path)!r} with the keys {clipped(list(content))}"
        )
    unused = [
        f"{one_line(key, 80)}: of {path.name}{'' if content[key] else ', which is empty'}"
        for keys in named.values()
        for key in keys
        if key not in used.values()
    ]
    unused += [
        f"{one_line(key, 80)}: of {path.name}"
        for key, value in content.items()
        if isinstance(value, str)
        and key != "path"
        and split_named(str(key)) is None
        and value
        and os.path.isdir(root / value)
    ]
    described = (root, path, category_ids, names, num_columns)
    parts = {
        split: functools.partial(_write_split, split, key, content[key], *described)
        for split, key in used.items()
    }
    return FoundSplits(parts, unused, ".txt", _label_files)


def write_yolo(out, split, images, class_names):
    """Writes the labels of one split and describes it in `data.yaml`.

    For the arguments see `labelled_image`. Returns the number of crowd regions, which are
    left out: the format cannot mark them.
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
                _part(x2 - x1, image.width),
                _part(y2 - y1, image.height),
            ]
            lines.append(f"{label} " + " ".join(f"{v:.{_DECIMALS}f}" for v in row))
        path = folder / f"{os.path.splitext(image.name)[0]}.txt"
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    description = out / "data.yaml"
    head = "names:\n" + "".join(
        f"  {label}: {_quoted(name)}\n" for label, name in enumerate(class_names)
    )
    earlier = description.read_text("utf-8") if description.exists() else head
    description.write_text(f"{earlier}{split}: images/{split}\n", encoding="utf-8")
    return num_left_out


def _part(length, side):
    """`length / side`, rounded up where one pixel would be read as less than one."""
    part = length / side
    rounded = float(f"{part:.{_DECIMALS}f}")
    is_less = rounded * side < MIN_BOX_SIDE <= length + 1e-4  # float32 of the corners
    return rounded + 10**-_DECIMALS if is_less else part


def _quoted(name):
    """A name as json quotes it; what yaml takes for a break of the line is escaped too."""
    breaks = "[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]"
    text = json.dumps(name, ensure_ascii=False)
    return re.sub(breaks, lambda match: f"\\u{ord(match[0]):04x}", text)


def _find_yamls(root):
    """The yaml files of a folder that have the keys of a dataset."""
    found = []
    for path in list_folder(root, {".yaml", ".yml"}):
        try:
            text = "\n".join(split_lines(read_text(path, MAX_YAML_BYTES)))
        except (OSError, ValueError):
            continue
        keys = re.findall(r"""^["']?(\w+)["']?\s*:""", text, re.M)
        if "names" in keys and any(map(split_named, keys)):
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

    class Loader(yaml.SafeLoader):
        """Refuses a key that comes twice, of which yaml would take the last one.

        Refuses too many values as well: a few aliases of aliases stand for billions.
        """

        def __init__(self, stream):
            super().__init__(stream)
            self._counts = {}  # id of a node -> values in it
            self._depth = 0

        def compose_node(self, parent, index):
            is_alias = self.check_event(yaml.AliasEvent)
            self._depth += 1
            if self._depth > MAX_YAML_DEPTH:
                raise ValueError(f"it is nested deeper than {MAX_YAML_DEPTH} levels")
            node = super().compose_node(parent, index)
            self._depth -= 1
            if not is_alias:
                parts = node.value if isinstance(node, yaml.CollectionNode) else ()
                if isinstance(node, yaml.MappingNode):
                    parts = [part for pair in parts for part in pair]
                count = 1 + sum(self._counts[id(part)] for part in parts)
                self._counts[id(node)] = count
            elif id(node) not in self._counts:
                raise ValueError("an alias stands for what it is in")
            if self._counts[id(node)] > MAX_YAML_VALUES:
                raise ValueError(
                    f"it has more than {MAX_YAML_VALUES} values, those of aliases "
                    "counted each time"
                )
            return node

        def construct_mapping(self, node, deep=False):
            keys = [
                key.value
                for key, _ in node.value
                if isinstance(key, yaml.ScalarNode) and not key.tag.endswith(":merge")
            ]
            twice = [
                key for key, count in collections.Counter(keys).items() if count > 1
            ]
            if twice:
                raise ValueError(f"the key {clipped(twice[0])} comes twice")
            return super().construct_mapping(node, deep)

    try:
        text = read_text(path)
        wrong = [line for line in split_lines(text) if not is_valid(line)]
        if wrong:
            raise ValueError(f"{clipped(printable(wrong[0]))} {NOT_UTF8}")
        content = yaml.load(text, Loader)
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(
            f"The file must be valid yaml ({error}). Received: {str(path)!r}"
        ) from None
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
    elif isinstance(names, dict):
        # Keys of a json are texts, also in a yaml that was made from it.
        keys = [key if type(key) is bool else read_integer(key) for key in names]
        if len(set(keys)) == len(keys) and None not in keys:
            names = dict(zip(keys, names.values(), strict=True))
    # Unquoted, yaml takes `no` for False and `1` for a number.
    if (
        not isinstance(names, dict)
        or not names
        or any(type(key) is not int or key < 0 for key in names)
        or any(
            type(name) is not str and (type(name) is bool or read_integer(name) is None)
            for name in names.values()
        )
    ):
        raise ValueError(
            "`names` must be a list of class names, or a dict from class ids >= 0 to "
            "names; put a name like no or 1.5 in quotes. Received: "
            f"names={clipped(names)} in {str(path)!r}"
        )
    count = content.get("nc", len(names))
    if type(count) is bool or read_integer(count) != len(names):
        raise ValueError(
            "`nc` must be the number of `names`. Received: "
            f"nc={clipped(count)}, {len(names)} names in {str(path)!r}"
        )
    ids = sorted(names)
    return ids, [str(names[class_id]) for class_id in ids]


def _keypoint_columns(content, path):
    """The number of columns of the keypoints of a line; 0 without `kpt_shape`."""
    shape = content.get("kpt_shape")
    if shape is None:
        return 0
    counts = [read_integer(v) for v in shape] if isinstance(shape, list) else []
    if len(counts) != 2 or None in counts or counts[0] < 1 or counts[1] not in (2, 3):
        raise ValueError(
            "`kpt_shape` must be the number of keypoints and 2 (x, y) or 3 (visibility "
            f"too). Received: kpt_shape={clipped(shape)} in {str(path)!r}"
        )
    return counts[0] * counts[1]


def _root(content, path):
    """The folder that `path` of the yaml names; if there is none, that of the yaml."""
    named = content.get("path")
    if not isinstance(named, str | None):
        raise ValueError(
            "`path` must be the name of a folder. Received: "
            f"path={clipped(named)} in {str(path)!r}"
        )
    root = path.parent / os.path.expanduser(named or "")
    # A data set from elsewhere may name a folder of the computer that made it.
    return root if root.is_dir() else path.parent


def _listed_images(key, entries, root, path):
    """All image files of a split, as absolute paths in a fixed order."""
    images = []
    for text in entries if isinstance(entries, list) else [entries]:
        if not isinstance(text, str):
            raise ValueError(
                f"`{key}` must be a name of a folder or list, or a list of such names. "
                f"Received: {key}={clipped(entries)} in {str(path)!r}"
            )
        # Some exports write ../train/images for a folder beside the yaml.
        candidates = [root / text, root / text.removeprefix("../"), path.parent / text]
        place = next(filter(os.path.exists, candidates), None)
        if place is None:
            raise ValueError(
                f"`{key}` must name existing folders or lists of images. Received: "
                f"{clipped(text)} in {str(path)!r}, looked for "
                f"{clipped(str(candidates[0]))}"
            )
        place = pathlib.Path(os.path.normpath(place))
        if place.is_dir():
            images += [
                file
                for file in list_tree(place)
                if os.path.splitext(file)[1].lower() in IMAGE_SUFFIXES
            ]
        else:
            images += _read_list(place, root)
    if not images:
        raise ValueError(
            f"`{key}` must lead to at least one image. Received: {clipped(entries)} in "
            f"{str(path)!r}"
        )
    return list(dict.fromkeys(images))


def _read_list(place, root):
    """The images that a text file lists, relative to itself or to the dataset."""
    try:
        names = read_lines(place)
    except ValueError as error:
        raise ValueError(
            f"A list of images {error}. Received: {str(place)!r}"
        ) from error
    folder = best_folder([place.parent, root], names) or place.parent
    return [os.path.normpath(find_file(folder, name)) for name in names]


def _label_files(images):
    """Set of the label files of images, whether they exist or not."""
    find = _label_finder()
    return {find(image) for image in images}


def _label_finder():
    """A function from an image to its label file, which need not exist."""

    @functools.cache
    def folders_of_labels(parent):
        inside = list_folders(pathlib.Path(parent)).values()
        return [str(path) for path in inside if path.name.lower() == "labels"]

    @functools.cache
    def mirrored(folder):
        """The folders that may have the labels of a folder of images."""
        parts = pathlib.PurePath(folder).parts
        found = []
        # The last `images` first: the first may lie above the dataset.
        for place in range(len(parts) - 1, 0, -1):
            if parts[place].lower() == "images":
                head, rest = os.path.join(*parts[:place]), parts[place + 1 :]
                found += [os.path.join(p, *rest) for p in folders_of_labels(head)]
        return [*found, folder]

    def find(image):
        folder, name = os.path.split(image)
        name = os.path.splitext(name)[0] + ".txt"
        places = mirrored(folder)
        found = (find_file(place, name) for place in places)
        return next(filter(os.path.lexists, found), os.path.join(places[0], name))

    return find


def _parse_line(words, class_ids, num_keypoint_columns):
    """Reads a line: (label, (x, y, width, height) in parts of the image).

    Raises:
        ValueError: the reason why the line is dropped.
    """
    numbers = [read_number(word) for word in words]
    if None in numbers:
        raise ValueError(NO_NUMBER)
    class_id, *numbers = numbers
    if num_keypoint_columns and len(numbers) != 4:
        if len(numbers) != 4 + num_keypoint_columns:
            raise ValueError(NO_KEYPOINTS)
        numbers = numbers[:4]
    is_polygon = len(numbers) >= 6 and len(numbers) % 2 == 0
    if len(numbers) == 5:
        raise ValueError(FIFTH_NUMBER)
    if len(numbers) != 4 and not is_polygon:
        raise ValueError(NO_BOX)
    if class_id not in class_ids:
        raise ValueError(UNKNOWN_CATEGORY)
    label = class_ids[class_id]
    if is_polygon:
        if not _can_be_polygon(numbers):
            raise ValueError(NO_POLYGON)
        # A confidence and a track id behind a box, in either order.
        has_integer = any(number % 1 == 0 for number in numbers[4:])
        if len(numbers) == 6 and has_integer and _can_be_box(numbers):
            raise ValueError(BOX_OR_TRIANGLE)
        x, y = min(numbers[::2]), min(numbers[1::2])
        return label, (x, y, max(numbers[::2]) - x, max(numbers[1::2]) - y)
    cx, cy, w, h = numbers
    return label, (cx - w / 2, cy - h / 2, w, h)


def _can_be_polygon(numbers):
    """Whether coordinates are corners of an area inside or little outside the image."""
    # Pixels, track ids and visibilities of 2 lie farther out.
    if min(numbers) < -_OVERHANG or max(numbers) > 1 + _OVERHANG:
        return False
    corners = [*dict.fromkeys(zip(numbers[::2], numbers[1::2], strict=True))]
    (x, y), *others = corners
    sides = [(a - x, b - y) for a, b in others]
    # Corners on one line have no area, however many they are.
    return any(abs(a * sides[0][1] - b * sides[0][0]) > 1e-12 for a, b in sides)


def _can_be_box(numbers):
    """Whether the first four are `cx cy width height` of a box inside the image."""
    cx, cy, w, h = numbers[:4]
    inside = min(cx - w / 2, cy - h / 2) >= -_ROUNDING
    return w > 0 and h > 0 and inside and max(cx + w / 2, cy + h / 2) <= 1 + _ROUNDING


def _look_like_keypoints(rows):
    """Whether long lines are boxes with keypoints though the yaml has no `kpt_shape`.

    `rows` are the numbers after the class, None for a word that is no number. Lines with
    keypoints have one length, and each is a box that holds its keypoints. Small polygons
    near the middle of the image can look the same. But the second pair of a polygon is a
    corner among the others, always so in oriented boxes; that of a box is its width and
    height, which mostly lies apart. Lines of three pairs are triangles by the format.
    """
    length, num_rows, num_apart = None, 0, 0
    for numbers in rows:
        if len(numbers) < 8 or None in numbers:
            continue
        length, num_rows = length or len(numbers), num_rows + 1
        if len(numbers) != length:
            return False
        rest = numbers[4:]
        with_visibility = len(rest) % 3 == 0 and {*rest[2::3]} <= {0, 1, 2}
        step = 3 if with_visibility else 2
        if len(rest) % step or not _can_be_box(numbers):
            return False
        cx, cy, w, h = numbers[:4]
        # A keypoint that is not there is (0, 0).
        pairs = [p for p in zip(rest[::step], rest[1::step], strict=True) if any(p)]
        if any(abs(x - cx) > w / 2 or abs(y - cy) > h / 2 for x, y in pairs):
            return False
        xs, ys = zip((cx, cy), *pairs, strict=True)
        num_apart += with_visibility or any(
            not min(values) - extent <= side <= max(values) + extent
            for side, values in ((w, xs), (h, ys))
            for extent in [max(values) - min(values)]
        )
    return 0 < num_rows <= 2 * num_apart


def _read_labels(labels):
    """Returns (list of (number, line) of a label file, why it cannot be read or "")."""
    if not os.path.lexists(labels):
        return [], ""
    try:
        lines = enumerate(split_lines(read_text(labels)), 1)
    except OSError as error:
        return [], f"cannot be read: {error.strerror}"
    except ValueError as error:
        return [], str(error)
    return [(number, line) for number, line in lines if line.strip()], ""


def _write_split(split, key, entries, root, path, category_ids, names, num_columns):
    images = _listed_images(key, entries, root, path)
    root = str(root)
    # Checked in full: the reader needs that too and finds it in the cache.
    headers = inspect_images(images, root, full=True)
    content = CocoContent(names, category_ids, source=f"{path} ({split})")
    class_ids = {class_id: label for label, class_id in enumerate(category_ids)}
    label_file = _label_finder()
    is_pose = not num_columns and _look_like_keypoints(
        [read_number(word) for word in line.split()[1:]]
        for image in images[:_NUM_SEARCHED]
        for _, line in _read_labels(label_file(image))[0]
    )
    found_ids = set()
    for image in images:
        header, labels = headers[image], label_file(image)
        shown, error = os.path.relpath(labels, root), header.error or None
        lines, problem = _read_labels(labels)
        if problem:
            error = error or f"{shown} {problem}"
        is_inside = not os.path.relpath(image, root).startswith(os.pardir)
        image_id = content.add_image(
            os.path.relpath(image, root) if is_inside else image,
            size=None if error else (header.height, header.width),
            error=error,
            code=header.code or Reason.BAD_ENTRY,
        )
        for number, line in lines:
            if error:
                continue
            source, words = f"{shown} line {number}", line.split()
            found_ids.add(read_number(words[0]))
            try:
                if is_pose and len(words) > 5:
                    raise ValueError(BOX_OR_POLYGON)
                label, box = _parse_line(words, class_ids, num_columns)
            except ValueError as reason:
                content.drop(str(reason), f"{source} ({line.strip()[:80]})")
                continue
            sides = (header.width, header.height) * 2
            bbox = [part * side for part, side in zip(box, sides, strict=True)]
            content.add_box(image_id, label, bbox, source=source)
    count = len(category_ids)
    if category_ids == list(range(count)) and count in found_ids and 0 not in found_ids:
        text = (
            f"class numbers seem to count from 1: {count} occurs and 0 does not, names "
        )
        text += f"are those of 0 to {count - 1}"
        content.note("doubtful_labels", text)
    return content.write_to_cache(split), root
