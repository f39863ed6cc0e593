"""Small datasets of any format: dicts from file names to contents."""

import json

from PIL import Image

from vfnet_tf.data.formats.coco import read_coco
from vfnet_tf.data.formats.readers import find_splits

YOLO = "names: [cat]\n"
CSV = "image,x1,y1,x2,y2,label\n"
LABEL = "0 0.25 0.6 0.3 0.4\n"
XML = (
    "<annotation><object><name>cat</name><bndbox><xmin>11</xmin><ymin>21</ymin>"
    "<xmax>40</xmax><ymax>40</ymax></bndbox></object></annotation>"
)


def read(path, split="train", **options):
    """Reads one split of a dataset of any format."""
    return read_coco(*find_splits(path)[split], **options)


def coco_json(*names):
    """A json of one box in each image."""
    content = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 1, "name": "cat"}],
    }
    for number, name in enumerate(names):
        image = {"id": number, "file_name": name, "height": 50, "width": 100}
        content["images"].append(image)
        box = {"id": number, "image_id": number, "category_id": 1}
        content["annotations"].append({**box, "bbox": [10, 20, 30, 20]})
    return json.dumps(content)


def plain(names):
    """Dict of names, one blank between them, with the content that their endings have."""
    contents = {"png": None, "xml": XML, "txt": LABEL}
    return {name: contents[name.rpartition(".")[2]] for name in names.split()}


def write_layout(root, files):
    """Writes the files of a dict, for None an image of 50x100; returns `root`."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            shade = sum(name.encode()) % 256
            Image.new("RGB", (100, 50), (shade, 255 - shade, 90)).save(path)
        else:
            path.write_text(content)
    return root
