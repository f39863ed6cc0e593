"""Small COCO-format datasets on disk."""

import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from vfnet_tf.data.formats.coco import read_coco

SHARED = pathlib.Path(__file__).parents[2].parent / "shared" / "data"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    monkeypatch.setenv("VFNET_TF_CACHE", str(cache))
    return cache


@pytest.fixture
def progress():
    """A class whose objects note all that they are told in its list `told`."""

    class Progress:
        told = []

        def __init__(self, total):
            self.told.append(total)

        def add(self, count=1):
            self.told.append(count)

        def close(self):
            self.told.append("closed")

    return Progress


@pytest.fixture
def shared_data():
    def find(name):
        if not (SHARED / name).is_dir():
            pytest.skip(f"needs ../shared/data/{name}, which a clone does not have")
        return SHARED / name

    return find


class CocoWriter:
    """Images `0.jpg`, `1.jpg`, ... have ids 1, 2, ...; category 7 is "cell"."""

    def __init__(self, directory):
        self.directory = directory
        self.file = directory / "annotations.json"
        self.content = {"images": [], "annotations": []}
        self.content["categories"] = [{"id": 7, "name": "cell"}]

    def image(self, height=48, width=64, *, box=None, **changes):
        index = len(self.content["images"])
        entry = {"id": index + 1, "file_name": f"{index}.jpg"}
        entry |= {"height": height, "width": width, **changes}
        pixels = np.random.default_rng(index).integers(0, 256, (height, width, 3))
        path = self.directory / f"{index}.jpg"
        Image.fromarray(pixels.astype("uint8")).save(path)
        self.content["images"].append(entry)
        if box is not None:
            self.box(box, image_id=index + 1)
        return path

    def box(self, bbox, image_id=1, **changes):
        entry = {"id": len(self.content["annotations"]) + 1, "image_id": image_id}
        entry |= {"category_id": 7, "bbox": bbox, "iscrowd": 0, **changes}
        self.content["annotations"].append(entry)

    def save(self):
        self.file.write_text(json.dumps(self.content))
        return self.file

    def read(self, **options):
        return read_coco(self.save(), self.directory, **options)


@pytest.fixture
def coco(tmp_path):
    directory = tmp_path / "coco"
    directory.mkdir()
    return CocoWriter(directory)
