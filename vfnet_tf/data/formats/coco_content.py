"""The content of a COCO json, built image by image and box by box.

All other formats are turned into such a json. So `read_coco` clips, drops, counts and
refuses in the same way for all formats, and evaluation finds its ground truth in the file.
"""

import hashlib
import json
import pathlib

from vfnet_tf.data.dataset import DUPLICATE
from vfnet_tf.data.formats.coco import (
    DROPPED_KEY,
    ERROR_CODE_KEY,
    ERROR_KEY,
    NOTES_KEY,
    SOURCE_KEY,
)
from vfnet_tf.data.images.reasons import Reason
from vfnet_tf.data.text import NOT_UTF8, is_valid, plain_name, printable, read_lines
from vfnet_tf.files import cache_directory, write_file
from vfnet_tf.foreign_text import clipped


class CocoContent:
    """Images, boxes and classes on their way into a json.

    Args:
        class_names: sequence of str, index = label.
        category_ids: ints, the id of each label; None counts from 0.
        source: str, what reports call the data; None for a json of its own right.
    """

    def __init__(self, class_names, category_ids=None, source=None):
        if category_ids is None:
            category_ids = range(len(class_names))
        self.category_ids = tuple(category_ids)
        pairs = zip(self.category_ids, class_names, strict=True)
        categories = [{"id": number, "name": name} for number, name in pairs]
        self.content = {"images": [], "annotations": [], "categories": categories}
        if source is not None:
            self.content.update({SOURCE_KEY: source, DROPPED_KEY: [], NOTES_KEY: []})
        self._seen = set()

    def add_image(
        self, file_name, *, image_id=None, size=None, error=None, code=Reason.BAD_ENTRY
    ):
        """Adds an image.

        Args:
            file_name: str, relative to the folder of the images, or absolute.
            image_id: int; None takes the next number from 1.
            size: (height, width) as the source states it, see `values.read_size`; None
                where it states none.
            error: str, why the image cannot be used; None for a good one.
            code: `Reason` of the error.

        Returns:
            int, the id.
        """
        images = self.content["images"]
        image_id = len(images) + 1 if image_id is None else image_id
        image = {"id": image_id, "file_name": file_name}
        if size is not None:
            image.update(height=size[0], width=size[1])
        if error is not None:
            image.update({ERROR_KEY: error, ERROR_CODE_KEY: code})
        images.append(image)
        return image_id

    def add_box(
        self,
        image_id,
        label,
        bbox,
        *,
        source=None,
        flags=None,
        area=None,
        annotation_id=None,
    ):
        """Adds an object; without an id, one that repeats an earlier one is dropped.

        Args:
            image_id: int, as `add_image` returned it.
            label: int, index into the classes.
            bbox: four floats `[x, y, width, height]` in pixels, good or not.
            source: str, where it comes from, such as `labels/a.txt line 3`.
            flags: dict, some of `values.CROWD_FLAGS` and what the source says of each;
                None for an object of training.
            area: float, pixels; None takes the box's.
            annotation_id: int; None takes the next number from 1.
        """
        if annotation_id is None:
            object_key = (image_id, label, *bbox)
            if source is not None and object_key in self._seen:
                self.drop(DUPLICATE, source)
                return
            self._seen.add(object_key)
            annotation_id = len(self.content["annotations"]) + 1
        annotation = {
            "id": annotation_id,
            "image_id": image_id,
            "category_id": self.category_ids[label],
            "bbox": bbox,
            **({"iscrowd": 0} if flags is None else flags),
        }
        if area is not None:
            annotation["area"] = area
        if source is not None:
            annotation[SOURCE_KEY] = source
        self.content["annotations"].append(annotation)

    def drop(self, reason, source):
        """Counts an object that gives no box; `reason` and `source` are texts."""
        self.content[DROPPED_KEY].append((reason, source))

    def note(self, kind, text):
        """Says what is doubtful of the data as a whole; see `ReadReport.notes`."""
        self.content[NOTES_KEY].append((kind, text))

    def write(self, path):
        """Writes the json."""
        pathlib.Path(path).write_text(json.dumps(self.content), encoding="utf-8")

    def write_to_cache(self, split):
        """Writes the json into the cache, named by its content; it may be there already.

        Returns:
            str, the file.
        """
        text = json.dumps(self.content)
        key = hashlib.sha256(text.encode()).hexdigest()[:24]
        path = cache_directory() / "annotations" / f"instances_{split}-{key}.json"
        if not path.is_file():
            write_file(path, text)
        return str(path)


def read_class_names(directory):
    """Names of `classes.txt`, one a line; None if the folder has no such file.

    Args:
        directory: `Path`.

    Raises:
        ValueError: if the file is empty or names a class twice.
    """
    path = directory / "classes.txt"
    if not path.is_file():
        return None
    try:
        names = [plain_name(line) for line in read_lines(path)]
        wrong = [printable(name) for name in names if not is_valid(name)]
        reason = f"{wrong} {NOT_UTF8}" if wrong else ""
    except ValueError as error:
        names, reason = [], str(error)
    if reason or not names or len(set(names)) != len(names):
        raise ValueError(
            "classes.txt must name at least one class, each once, one a line, in UTF-8. "
            f"Received: {reason or clipped(names)} in {str(path)!r}"
        )
    return names
