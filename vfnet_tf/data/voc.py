"""Pascal VOC: one xml an image, in the layout of the VOC devkit or beside the images.

Pixels count from 1 and xmax, ymax are the last ones inside: `xmin=1, xmax=4` is four
pixels wide and becomes x1 = 0, x2 = 4. `difficult` objects become crowd regions, which
training leaves out and evaluation ignores.
"""

import functools
import os
import pathlib
from xml.etree import ElementTree

from vfnet_tf.data.coco import BAD_BOX, SPLITS, UNKNOWN_CATEGORY
from vfnet_tf.data.coco_content import CocoContent, read_class_names
from vfnet_tf.data.images.inspect import IMAGE_SUFFIXES
from vfnet_tf.data.images.reasons import Reason

# An object takes about 300 bytes: room for thirty thousand.
MAX_XML_BYTES = 10 * 2**20
NO_NAME = "object has no name"

_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def is_voc(directory):
    """Whether a folder has xml files where `find_voc_splits` looks; cheap."""
    root = pathlib.Path(directory)
    return bool(_devkit_folders(root) or _split_folders(root))


def find_voc_splits(directory):
    """Finds the splits of a folder of Pascal VOC annotations.

    Layouts: `Annotations/` (or `annotations/`) with the images in `JPEGImages/`,
    `images/` or beside, split by `ImageSets/Main/{train,val,test}.txt` (`trainval.txt`
    without `train.txt` is the training split; without lists all is); a folder of such
    folders `VOC*`, whose splits are joined; `train/`, `valid/`, `test/`, each with xml
    files; or xml files beside their images. Classes are those of `classes.txt`, else
    all names of all splits in alphabetical order, VOC's own.

    Args:
        directory: str or path.

    Returns:
        dict split -> function that returns (annotation file, image folder), both str;
        the file, a COCO json, is written into the cache by the call.

    Raises:
        ValueError: if there is no such folder, or no xml file in it.
    """
    root = pathlib.Path(directory).expanduser().absolute()
    folders = _devkit_folders(root)
    found = {}
    if folders:
        for folder in folders:
            for split, names in _image_sets(folder).items():
                found.setdefault(split, []).extend(_files(folder, names))
    else:
        for split, folder in _split_folders(root).items():
            found[split] = _files(folder)
    if not found:
        raise ValueError(
            "A Pascal VOC folder must have xml files in Annotations/, in VOC*/"
            "Annotations/, in train/, valid/, test/, or beside its images. "
            f"Received: directory={str(root)!r}"
        )
    parsed = functools.cache(lambda: _parse(root, found))
    return {
        split: functools.partial(_write_split, root, split, parsed)
        for split in ("train", "val", "test")
        if split in found
    }


def write_voc(out, split, images, class_names):
    """Writes the labels of one split; boxes are rounded to whole pixels.

    Args:
        out: `Path`, the folder that has `JPEGImages/`.
        split: str.
        images: list of `LabelledImage` with distinct stems over all splits.
        class_names: sequence of str, index = label.

    Returns:
        int, boxes that rounding has moved, each corner by half a pixel at most (a box
        thinner than a pixel is widened to one).
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
            # Of a box that rounds to nothing stays the pixel that it lies in.
            x1, y1 = min(x1, image.width - 1), min(y1, image.height - 1)
            corners = (x1 + 1, y1 + 1, max(x2, x1 + 1), max(y2, y1 + 1))
            num_rounded += tuple(box) != (x1, y1, *corners[2:])
            entry = ElementTree.SubElement(root, "object")
            _add(
                entry,
                name=class_names[label],
                pose="Unspecified",
                truncated=0,
                difficult=int(is_crowd),
            )
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
    return folder.is_dir() and next(_xml_files(folder), None) is not None


def _xml_files(folder):
    # macOS leaves files like ._a.xml on foreign disks.
    return (path for path in folder.glob("*.xml") if not path.name.startswith("."))


def _xml_folder(folder):
    """The folder of the xml files of `folder` in the devkit's layout, or None."""
    for name in ("Annotations", "annotations"):
        if _has_xml(folder / name):
            return folder / name
    return None


def _devkit_folders(root):
    """`root` or its folders VOC*, where they have annotations."""
    if _xml_folder(root):
        return [root]
    years = [*sorted(root.glob("VOC*")), *sorted(root.glob("VOCdevkit/VOC*"))]
    return [folder for folder in years if _xml_folder(folder)]


def _split_folders(root):
    """Dict split -> folder with xml files, of train/, valid/, test/ or `root` itself."""
    folders = {}
    for name, split in SPLITS.items():
        folder = root / name
        if _xml_folder(folder) or _has_xml(folder):
            folders.setdefault(split, folder)
    if not folders and _has_xml(root):
        folders["train"] = root
    return folders


def _image_sets(folder):
    """Dict split -> names of its list in ImageSets/Main, None for all xml files."""
    lists = folder / "ImageSets" / "Main"
    found = {}
    for split, names in {
        "train": ("train", "trainval"),
        "val": ("val", "valid"),
        "test": ("test",),
    }.items():
        for name in names:
            path = lists / f"{name}.txt"
            if path.is_file():
                lines = path.read_text(encoding="utf-8").splitlines()
                found[split] = [line.strip() for line in lines if line.strip()]
                break
    return found or {"train": None}


def _files(folder, names=None):
    """Lists (xml file, its image or None) by the names of a list, or all of a folder."""
    xml_folder = _xml_folder(folder) or folder
    places = [folder / "JPEGImages", folder / "images", xml_folder, folder]
    if names is None:
        names = sorted(path.stem for path in _xml_files(xml_folder))
    return [(xml_folder / f"{name}.xml", name, places) for name in names]


def _images_by_stem(folder):
    """Dict stem -> name of the image file in a folder."""
    found = {}
    if folder.is_dir():
        for name in sorted(os.listdir(folder)):
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in IMAGE_SUFFIXES:
                found.setdefault(stem, name)
    return found


def _find_image(name, stated, places, listing):
    """The image of an annotation by its own name, else by the one that it states."""
    for wanted in (name, os.path.splitext(stated)[0]):
        for place in places:
            path = place / wanted
            found = listing(path.parent).get(path.name)
            if found and wanted:
                return path.parent / found
    return None


class _NoDoctype(ElementTree.TreeBuilder):
    """Stops at a DTD: entities can fill the memory, and no annotation needs one."""

    def doctype(self, name, public_id, system_id):
        raise ValueError("has a DTD, which is refused")


def _read_xml(path):
    """Reads an xml file.

    Returns:
        The root `Element`.

    Raises:
        ValueError: for a file that is missing, too large, broken or something else.
    """
    try:
        with open(path, "rb") as file:
            text = file.read(MAX_XML_BYTES + 1)
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from error
    if len(text) > MAX_XML_BYTES:
        raise ValueError(f"is larger than {MAX_XML_BYTES} bytes")
    parser = ElementTree.XMLParser(target=_NoDoctype())
    try:
        parser.feed(text)
        root = parser.close()
    except (ElementTree.ParseError, LookupError) as error:
        raise ValueError(f"is no valid xml: {error}") from error
    if root.tag != "annotation":
        raise ValueError(f"is no annotation of Pascal VOC, but <{root.tag}>")
    return root


def _text(element, name):
    return (element.findtext(name) or "").strip()


def _stated_size(root):
    """(height, width) that an annotation states; None for none or zeros."""
    size = root.find("size")
    texts = ["", ""] if size is None else [_text(size, n) for n in ("height", "width")]
    try:
        height, width = (int(float(text)) for text in texts)
    except (ValueError, OverflowError):
        return None
    # Many converters write zeros; the file says it then.
    return (height, width) if (height, width) != (0, 0) else None


def _parse(root, found):
    """Reads all xml files of all splits, for what classes there are.

    Returns:
        (class names, dict split -> list of (image path or None, xml path relative to
        `root`, size, objects, error, `Reason`)), objects being `(name, texts of the
        corners, is difficult)`.
    """
    listing = functools.cache(_images_by_stem)
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
                names.update(label for label, _, _ in objects if label)
            image = _find_image(name, pathlib.PurePath(stated).name, places, listing)
            if image is None:
                if error is None:
                    error = f"{shown} has no image {name}.jpg, .png, ..."
                    code = Reason.MISSING
                image = places[0] / name
            rows.append((image, shown, size, objects, error, code))
    return read_class_names(root) or sorted(names), parsed


def _parse_object(entry):
    box = entry.find("bndbox")
    corners = ["" if box is None else _text(box, corner) for corner in _CORNERS]
    return _text(entry, "name"), corners, _text(entry, "difficult") == "1"


def _write_split(root, split, parsed):
    names, rows = parsed()[0], parsed()[1][split]
    labels = {name: label for label, name in enumerate(names)}
    content = CocoContent(names, source=f"{root} ({split})")
    for image, shown, size, objects, error, code in rows:
        image_id = content.add_image(
            os.path.relpath(image, root), size=size, error=error, code=code
        )
        for number, (name, corners, is_difficult) in enumerate(objects, 1):
            source = f"{shown} object {number}"
            if name not in labels:
                reason = UNKNOWN_CATEGORY if name else NO_NAME
                content.drop(reason, f"{source} ({name})" if name else source)
                continue
            try:
                xmin, ymin, xmax, ymax = map(float, corners)
            except ValueError:
                content.drop(BAD_BOX, f"{source} ({', '.join(corners)})")
                continue
            bbox = [xmin - 1, ymin - 1, xmax - xmin + 1, ymax - ymin + 1]
            content.add_box(
                image_id, labels[name], bbox, source=source, is_crowd=is_difficult
            )
    return content.write_to_cache(split), str(root)
