"""Pascal VOC: one xml an image, in the layout of the VOC devkit or beside the images.

Pixels count from 1 and xmax, ymax are the last ones inside: `xmin=1, xmax=4` is four
pixels wide and becomes x1 = 0, x2 = 4. `difficult` objects become crowd regions, which
training leaves out and evaluation ignores.
"""

import functools
import os
import pathlib
import re
from xml.etree import ElementTree

from vfnet_tf.data.dataset import BAD_BOX, UNKNOWN_CATEGORY
from vfnet_tf.data.folders import (
    find_file,
    list_folder,
    list_folders,
    regular_file_error,
)
from vfnet_tf.data.formats.coco import images_by_stem
from vfnet_tf.data.formats.coco_content import CocoContent, read_class_names
from vfnet_tf.data.images.reasons import Reason
from vfnet_tf.data.splits import FoundSplits, by_split, split_named
from vfnet_tf.data.text import decode_text, has_mark, plain_name, read_lines
from vfnet_tf.data.values import CROWD_FLAGS, read_number
from vfnet_tf.foreign_text import clipped, one_line

# An object takes about 300 bytes: room for thirty thousand.
MAX_XML_BYTES = 10 * 2**20
MAX_XML_ELEMENTS = 600_000
MAX_XML_DEPTH = 50
NO_NAME = "object has no name"
REPEATED = "object states something twice"

# Some tools state the annotation file in the place of the image.
LABEL_SUFFIXES = frozenset({".xml", ".txt", ".json"})
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_DECLARED = re.compile(rb"""<\?xml[^>]*?encoding\s*=\s*["']([\w.-]+)""")
_MULTIBYTE = ("gb", "cp936", "big5", "cp950", "shift", "sjis", "cp932", "euc", "cp949")


def is_voc(directory):
    """Whether a folder has xml files where `find_voc_splits` looks; cheap."""
    root = pathlib.Path(directory)
    return bool(_devkit_folders(root) or _split_folders(root)[0])


def find_voc_splits(directory):
    """Finds the splits of a folder of Pascal VOC annotations.

    Layouts:

    - `Annotations/` (or `annotations/`) with the images in `JPEGImages/`, `images/` or
      beside. The lists in `ImageSets/Main/` make the splits. Where none is for train,
      `trainval.txt` is; without any list all images are for training.
    - A folder of such folders `VOC*`, whose splits are joined.
    - A folder with xml files for each split, or xml files beside their images.

    Lists and folders have the names of `splits.split_named`. Classes are those of
    `classes.txt`, else all names of all splits in alphabetical order, as in VOC.

    Args:
        directory: str or path.

    Returns:
        `FoundSplits`.

    Raises:
        ValueError: if there is no such folder, or no xml file in it.
    """
    root = pathlib.Path(directory).expanduser().absolute()
    folders = _devkit_folders(root)
    of_splits, unused = _split_folders(root)
    found, faults = {}, {}
    for folder in folders:
        lists, others = _image_sets(folder)
        unused += others
        for split, path in lists.items():
            try:
                names = None if path is None else _list_of(path)
            except ValueError as error:  # The other splits are read.
                faults.setdefault(split, error)
            else:
                found.setdefault(split, []).extend(_files(folder, names))
    if folders:
        unused += [path for path in of_splits.values() if path != root]
        unused = [path for path in unused if path not in folders]
    else:
        found = {split: _files(folder) for split, folder in of_splits.items()}
    if not found and not faults:
        raise ValueError(
            "A Pascal VOC folder must have xml files in Annotations/, in VOC*/"
            "Annotations/, in train/, valid/, test/, or beside its images. "
            f"Received: directory={str(root)!r}"
        )
    parsed = functools.cache(lambda: _parse(root, found))
    xml_files = {str(path) for files in found.values() for path, _, _ in files}
    parts = {
        split: functools.partial(_write_split, root, split, parsed) for split in found
    }
    unused = [os.path.relpath(path, root) for path in unused]
    return FoundSplits(parts, unused, ".xml", lambda images: xml_files, faults)


def write_voc(out, split, images, class_names):
    """Writes the labels of one split; boxes are rounded to whole pixels.

    For the arguments see `labelled_image`. Returns the number of boxes that rounding has
    moved, each corner by half a pixel at most; a box thinner than a pixel becomes one wide.
    """
    lists = out / "ImageSets" / "Main"
    for folder in (lists, out / "Annotations"):
        folder.mkdir(parents=True, exist_ok=True)
    (out / "classes.txt").write_text("\n".join(class_names) + "\n", encoding="utf-8")
    num_rounded = 0
    for image in images:
        root = ElementTree.Element("annotation")
        _add(root, folder="JPEGImages", filename=image.name)
        size = ElementTree.SubElement(root, "size")
        _add(size, width=image.width, height=image.height, depth=3)
        _add(root, segmented=0)
        for box, label, is_crowd in image.objects():
            x1, y1, x2, y2 = map(round, box)
            # A box that rounds to nothing becomes the pixel that it lies in.
            x1, y1 = min(x1, image.width - 1), min(y1, image.height - 1)
            corners = (x1 + 1, y1 + 1, max(x2, x1 + 1), max(y2, y1 + 1))
            num_rounded += tuple(box) != (x1, y1, *corners[2:])
            entry = ElementTree.SubElement(root, "object")
            _add(entry, name=class_names[label], pose="Unspecified")
            _add(entry, truncated=0, difficult=int(is_crowd))
            bndbox = ElementTree.SubElement(entry, "bndbox")
            _add(bndbox, **dict(zip(_CORNERS, corners, strict=True)))
        ElementTree.indent(root)
        path = out / "Annotations" / f"{pathlib.Path(image.name).stem}.xml"
        ElementTree.ElementTree(root).write(path, encoding="utf-8")
    stems = [pathlib.Path(image.name).stem for image in images]
    text = "".join(f"{stem}\n" for stem in stems)
    (lists / f"{split}.txt").write_text(text, encoding="utf-8")
    return num_rounded


def _add(parent, **texts):
    for name, text in texts.items():
        ElementTree.SubElement(parent, name).text = str(text)


def _has_xml(folder):
    return bool(list_folder(folder, {".xml"}))


def _xml_folder(folder):
    """The folder of the xml files of `folder` in the devkit's layout, or None."""
    folders = list_folders(folder).items()
    found = (path for name, path in folders if name.lower() == "annotations")
    return next(filter(_has_xml, found), None)


def _devkit_folders(root):
    """`root` or its folders VOC*, where they have annotations."""
    if _xml_folder(root):
        return [root]
    years = [*sorted(root.glob("VOC*")), *sorted(root.glob("VOCdevkit/VOC*"))]
    return [folder for folder in years if _xml_folder(folder)]


def _split_folders(root):
    """Folders with xml files: (dict split -> folder or `root` itself, list of others)."""
    filled = [
        path
        for path in list_folders(root).values()
        if path.name.lower() != "annotations" and (_xml_folder(path) or _has_xml(path))
    ]
    named = by_split(filled, lambda folder: folder.name)
    found = {split: folders[0] for split, folders in named.items()}
    unused = [path for path in filled if path not in found.values()]
    if not found and _has_xml(root):
        found["train"] = root
    return found, unused


def _image_sets(folder):
    """Finds the lists of a folder in the devkit's layout.

    Returns:
        (dict split -> `Path` of its list, or None for all xml files; lists not used).
    """
    lists = folder / "ImageSets"
    files = list_folder(lists / "Main", {".txt"}) or list_folder(lists, {".txt"})
    named = by_split(files, lambda path: path.stem)
    used = {split: paths[0] for split, paths in named.items()}
    both = next((path for path in files if path.stem.lower() == "trainval"), None)
    if both is not None and "train" not in used:
        used["train"] = both

    def is_part(path):
        # The devkit also has lists of two splits, and of the images of one class.
        class_name, _, name = path.stem.rpartition("_")
        is_both = name.lower() == "trainval"
        parts = {"train", "val"} if is_both else {split_named(name)}
        return parts <= used.keys() and (is_both or class_name)

    unused = [path for path in files if path not in used.values() and not is_part(path)]
    return used or {"train": None}, unused


def _list_of(path):
    try:
        return read_lines(path)
    except ValueError as error:
        raise ValueError(
            f"A list of images must be text ({error}). Received: {str(path)!r}"
        ) from error


def _files(folder, names=None):
    """Lists (xml file, its image or None) by the names of a list, or all of a folder."""
    xml_folder = _xml_folder(folder) or folder
    # Messages on a missing image name the first place.
    places, inside = [folder / "JPEGImages"], list_folders(folder).values()
    for name in ("jpegimages", "images"):
        places += [path for path in inside if path.name.lower() == name]
    places = [*dict.fromkeys(places), xml_folder, folder]
    if names is None:
        paths = list_folder(xml_folder, {".xml"})
        return [(path, path.stem, places) for path in paths]
    return [(find_file(xml_folder, f"{name}.xml"), name, places) for name in names]


def _find_image(name, stated, places, listing):
    """Finds the image with the name of the xml file, else with the name stated in it.

    Args:
        name: str, that of the xml without the suffix.
        stated: str, the file name in the xml; empty if it states none.
        places: list of `Path`, the folders to look in.
        listing: function from a folder to its `images_by_stem`.

    Returns:
        (path, None, None), or (None, why none is found, `Reason`).
    """
    stated_stem, suffix = os.path.splitext(stated)
    is_own = plain_name(stated_stem) == plain_name(os.path.basename(name))
    if is_own and suffix.lower() not in LABEL_SUFFIXES:
        for place in places:  # Several may have the stem: the stated one comes first.
            path = find_file((place / name).parent, stated)
            if os.path.isfile(path):
                return pathlib.Path(path), None, None
    for wanted in filter(None, (name, stated_stem)):
        for place in places:
            path = place / wanted
            found = listing(path.parent).get(plain_name(path.name), [])
            by_case = [n for n in found if n.casefold() == stated.casefold()]
            if len(by_case) == 1:
                found = by_case
            if len(found) > 1:
                text = f"the name of its image, {' or '.join(found)}: "
                text += f"it states {clipped(stated)}"
                return None, f"must have in <filename> {text}", Reason.BAD_ENTRY
            if found:
                return path.parent / found[0], None, None
    return None, f"has no image {name}.jpg, .png, ...", Reason.MISSING


class _Bounded(ElementTree.TreeBuilder):
    """Stops at what no annotation needs and what can fill the memory.

    That is a DTD, whose entities multiply, and elements in too large a number or depth.
    """

    def __init__(self):
        super().__init__()
        self._count = self._depth = 0

    def start(self, tag, attributes):
        self._count += 1
        self._depth += 1
        if self._count > MAX_XML_ELEMENTS:
            raise ValueError(f"has more than {MAX_XML_ELEMENTS} elements")
        if self._depth > MAX_XML_DEPTH:
            raise ValueError(f"is nested deeper than {MAX_XML_DEPTH} elements")
        return super().start(tag, attributes)

    def end(self, tag):
        self._depth -= 1
        return super().end(tag)

    def doctype(self, name, public_id, system_id):
        raise ValueError("has a DTD, which is refused")


def _recoded(data):
    """Bytes of an xml, decoded where expat does not know the encoding that they declare.

    It knows few encodings of several bytes a character, and neither GBK nor Shift JIS.
    """
    match = _DECLARED.match(data)
    name = match and match[1].decode("ascii").lower()
    if name is None or not name.startswith(_MULTIBYTE):
        return data
    try:
        return data.decode(name)
    except UnicodeDecodeError as error:
        raise ValueError(f"is no valid {name.upper()}, which it declares") from error


def _read_xml(path):
    """The root `Element` of an xml file; a `ValueError` says why it cannot be read."""
    error = regular_file_error(path) if os.path.exists(path) else ""
    if error:
        raise ValueError(error)
    try:
        with open(path, "rb") as file:
            text = file.read(MAX_XML_BYTES + 1)
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from error
    if len(text) > MAX_XML_BYTES:
        raise ValueError(f"is larger than {MAX_XML_BYTES} bytes")
    parser = ElementTree.XMLParser(target=_Bounded())
    try:
        # Where they differ, the byte order mark is right and not the declaration.
        parser.feed(decode_text(text) if has_mark(text) else _recoded(text))
        root = parser.close()
    except (ElementTree.ParseError, LookupError) as error:
        raise ValueError(f"is no valid xml: {error}") from error
    if root.tag != "annotation":
        raise ValueError(
            f"is no annotation of Pascal VOC, but <{one_line(root.tag, 80)}>"
        )
    # <Object>, or an object inside another element, would be lost silently.
    found = [element.tag for element in root.iter() if element.tag.lower() == "object"]
    if len(found) != len(root.findall("object")):
        raise ValueError(
            "has objects that are no <object> directly in <annotation>: of "
            f"{len(found)} are {len(root.findall('object'))}"
        )
    return root


def _text(element, name):
    return (element.findtext(name) or "").strip()


def _stated_size(root):
    """(height, width) as the annotation has them; None without."""
    size = root.find("size")
    return None if size is None else (_text(size, "height"), _text(size, "width"))


def _parse(root, found):
    """Reads the xml files of all splits, as any of them may name a class.

    Returns:
        (class names, dict split -> list of (image path, xml path relative to `root`, size,
        objects, error, `Reason`)); for objects see `_parse_object`.
    """
    listing = functools.cache(lambda folder: images_by_stem(folder, plain_name))
    parsed, names = {}, set()
    for split, files in found.items():
        rows = parsed[split] = []
        for path, name, places in files:
            shown = os.path.relpath(path, root)
            size, objects, stated, error = None, [], "", None
            code = Reason.BAD_ENTRY
            try:
                tree = _read_xml(path)
            except ValueError as problem:
                error = f"{shown} {problem}"
            else:
                size, stated = _stated_size(tree), _text(tree, "filename")
                objects = [_parse_object(entry) for entry in tree.findall("object")]
                names.update(entry[0] for entry in objects if entry[0])
            # Some state a path, also one of Windows.
            stated = re.split(r"[/\\]", stated)[-1]
            image, problem, reason = _find_image(name, stated, places, listing)
            if image is None:
                if error is None:
                    error, code = f"{shown} {problem}", reason
                image = places[0] / name
            rows.append((image, shown, size, objects, error, code))
    return read_class_names(root) or sorted(names), parsed


def _parse_object(entry):
    """(class name, texts of the corners, dict of flags, tag that occurs twice or "")."""
    box = entry.find("bndbox")
    box = ElementTree.Element("bndbox") if box is None else box
    corners = [_text(box, corner) for corner in _CORNERS]
    flags = {n: _text(entry, n) for n in CROWD_FLAGS if entry.find(n) is not None}
    parts = [(entry, tag) for tag in ("name", "bndbox", *flags)]
    parts += [(box, tag) for tag in _CORNERS]
    twice = [tag for part, tag in parts if len(part.findall(tag)) > 1]
    return plain_name(_text(entry, "name")), corners, flags, "".join(twice[:1])


def _write_split(root, split, parsed):
    names, rows_of_split = parsed()
    labels = {name: label for label, name in enumerate(names)}
    content = CocoContent(names, source=f"{root} ({split})")
    for image, shown, size, objects, error, code in rows_of_split[split]:
        image = os.path.relpath(image, root)
        image_id = content.add_image(image, size=size, error=error, code=code)
        for number, (name, corners, flags, twice) in enumerate(objects, 1):
            source = f"{shown} object {number}"
            if twice:
                content.drop(REPEATED, f"{source} (<{twice}>)")
                continue
            if name not in labels:
                reason = UNKNOWN_CATEGORY if name else NO_NAME
                content.drop(reason, f"{source} ({name})" if name else source)
                continue
            numbers = [read_number(corner) for corner in corners]
            if None in numbers:
                content.drop(BAD_BOX, f"{source} ({', '.join(corners)})")
                continue
            xmin, ymin, xmax, ymax = numbers
            bbox = [xmin - 1, ymin - 1, xmax - xmin + 1, ymax - ymin + 1]
            content.add_box(image_id, labels[name], bbox, source=source, flags=flags)
    return content.write_to_cache(split), str(root)
