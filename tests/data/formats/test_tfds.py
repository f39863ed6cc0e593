import json
import pathlib
import socket
import sys

import numpy as np
import pytest
from PIL import Image

from tests.image_files import encoded
from vfnet_tf.data import dataset as datasets
from vfnet_tf.data.formats.coco import read_coco
from vfnet_tf.data.formats.coco_classes import COCO_CATEGORY_IDS, COCO_CLASS_NAMES
from vfnet_tf.data.formats.readers import find_splits

tfds = pytest.importorskip(
    "tensorflow_datasets", reason="needs TensorFlow Datasets, the extra tfds"
)
BOX = tfds.features.BBox(ymin=0.25, xmin=0.125, ymax=0.5, xmax=0.5)


def jpeg(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (48, 64, 3), dtype="uint8")
    return encoded(Image.fromarray(pixels))


def prepare(root, name, objects, examples, config=None, version="1.0.0", **more):
    """Writes a prepared dataset; `examples` are dicts of split -> list of examples."""
    features = {
        "image": tfds.features.Image(encoding_format="jpeg"),
        "objects": tfds.features.Sequence(objects),
        **more,
    }
    tfds.dataset_builders.store_as_tfds_dataset(
        name=name,
        version=version,
        config=config,
        features=tfds.features.FeaturesDict(features),
        split_datasets={split: enumerate(rows) for split, rows in examples.items()},
        data_dir=root,
        disable_shuffling=True,
    )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """`pets/2017` as COCO's builders are, `shapes` in two versions as VOC's are."""
    root = tmp_path_factory.mktemp("tfds")
    box = tfds.features.BBoxFeature()
    coco_like = {
        "area": np.int64,
        "bbox": box,
        "is_crowd": np.bool_,
        "label": tfds.features.ClassLabel(names=["cat", "dog"]),
    }
    one = {"area": 50, "bbox": BOX, "is_crowd": False, "label": 1}
    crowd = {"area": 0, "bbox": BOX, "is_crowd": True, "label": 0}
    train = [
        {"image": jpeg(seed), "image/id": 100 + seed, "objects": objects}
        for seed, objects in enumerate([[one, crowd], [], [one, one]])
    ]
    ids = {"image/id": np.int64}
    splits = {"train": train, "validation": train[:1], "minival": train[:1]}
    prepare(root, "pets", coco_like, splits, config="2017", **ids)
    voc_like = {
        "bbox": box,
        "is_difficult": np.bool_,
        "label": tfds.features.ClassLabel(names=COCO_CLASS_NAMES),
    }
    rows = [{"bbox": BOX, "is_difficult": flag, "label": 79} for flag in (True, False)]
    for version in ("1.9.0", "1.10.0"):
        splits = {"test": [{"image": jpeg(7), "objects": rows}]}
        prepare(root, "shapes", voc_like, splits, version=version)
    # A label that is none, and a flag that is one of three.
    odd = {
        "bbox": box,
        "difficult": np.int64,
        "iscrowd": tfds.features.Text(),
        "label": tfds.features.ClassLabel(names=["cat", "dog"]),
    }
    values = [(0, "false", 1), (0, "true", 1), (1, "0", 0), (2, "0", 0), (0, "0", -1)]
    names = ("difficult", "iscrowd", "label")
    rows = [{"bbox": BOX, **dict(zip(names, row, strict=True))} for row in values]
    prepare(root, "odd", odd, {"train": [{"image": jpeg(3), "objects": rows}]})
    empty = {"train": [{"image": jpeg(1), "objects": []}]}
    prepare(root, "unnamed", {"bbox": box}, empty)
    return root


@pytest.fixture(autouse=True)
def without_network(prepared, monkeypatch):
    def refuse(*arguments):
        raise OSError("a test wanted the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))


def test_boxes_labels_ids_and_crowds_by_hand():
    splits = find_splits("tfds:pets/2017")
    assert splits.description == (
        "TensorFlow Datasets, tfds:pets/2017: train, val (not read: minival)"
    )
    dataset = read_coco(*splits["train"], training=False, strict=True)
    assert dataset.class_names == ("cat", "dog")
    assert [record.image_id for record in dataset] == [100, 101, 102]
    # 0.125 of 64, 0.25 of 48, 0.5 of both.
    box = [8, 12, 32, 24]
    assert [record.boxes.tolist() for record in dataset] == [[box], [], [box, box]]
    assert [record.num_crowd for record in dataset] == [1, 0, 0]
    assert dataset[2].labels.tolist() == [1, 1]
    content = json.loads(pathlib.Path(splits["train"][0]).read_text())
    areas = [annotation.get("area") for annotation in content["annotations"]]
    assert areas == [50, None, 50, 50]


def test_images_are_the_very_bytes_and_written_once(progress):
    annotation_file, folder = find_splits("tfds:pets/2017", progress)["train"]
    assert progress.told == [3, 1, 1, 1, "closed"]
    assert (pathlib.Path(folder) / "00000002.jpg").read_bytes() == jpeg(1)
    assert find_splits("tfds:pets/2017", progress)["train"] == (annotation_file, folder)
    assert progress.told[5:] == []


def test_only_the_split_that_is_looked_up_is_written(own_cache):
    find_splits("tfds:pets/2017")["val"]
    (made,) = (own_cache / "tfds").iterdir()
    assert [path.name for path in made.iterdir()] == ["validation"]


def test_difficult_objects_are_crowd_regions_and_cocos_ids_are_kept():
    dataset = read_coco(*find_splits("tfds:shapes")["test"], training=False)
    assert dataset.category_ids == COCO_CATEGORY_IDS
    assert dataset[0].labels.tolist() == [79] and dataset[0].num_crowd == 1


def test_odd_labels_and_flags_are_dropped_and_named():
    (record,) = dataset = read_coco(*find_splits("tfds:odd")["train"])
    assert record.labels.tolist() == [1] and record.crowd_labels.tolist() == [1, 0]
    assert dict(dataset.report.examples) == {
        datasets.UNKNOWN_CATEGORY: ["example 1 object 5 (label -1)"],
        datasets.BAD_FLAG: ["example 1 object 4 in 00000001.jpg (difficult=2)"],
    }


def test_the_newest_version_is_taken_unless_one_is_named(prepared):
    def shown(name):
        return read_coco(*find_splits(name)["test"], training=False).summary()

    assert "tfds:shapes/1.10.0 (test)" in shown("tfds:shapes")
    assert "tfds:shapes/1.9.0 (test)" in shown("tfds:shapes:1.9.0")
    assert "tfds:shapes/1.9.0 (test)" in shown(f"tfds:{prepared}/shapes/1.9.0")
    assert list(find_splits("tfds:pets")) == ["train", "val"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("coco/2017", r"tfds.builder\('coco/2017', .*\).download_and_prepare\(\)"),
        ("shapes:2.0.0", "must be prepared"),
        ("pets:1.0.0", "name one as NAME/CONFIG: 2017"),
        ("unnamed", "the class label `objects/label`"),
    ],
)
def test_what_cannot_be_read_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        find_splits(f"tfds:{name}")


def test_without_tensorflow_datasets_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'vfnet_tf\[tfds\]'"):
        find_splits("tfds:pets/2017")
