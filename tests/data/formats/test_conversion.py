import itertools
import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from tests.image_files import exif
from tests.layouts import LABEL, YOLO, coco_json, write_layout
from vfnet_tf.data.formats.coco import read_coco
from vfnet_tf.data.formats.conversion import TARGETS, convert_dataset
from vfnet_tf.data.formats.readers import find_splits

pytest.importorskip("yaml", reason="needs PyYAML, the extra yolo")

# Corners of boxes inside images of up to 640 pixels: whole pixels, eight decimals of the
# image's sides, thousandths of a pixel; reading gives float32.
ROUNDING = {"voc": 0.5, "yolo": 1e-4, "csv": 6e-4, "coco": 1.1e-3, "tfrecord": 0}


@pytest.fixture
def source(coco):
    """Two splits in one folder, `star` without an object, and ids that are not 1, 2."""
    names = {9: "cell", 4: "star", 7: "a & b <c>"}
    coco.content["categories"] = [{"id": i, "name": name} for i, name in names.items()]
    for _ in range(3):
        coco.image()
    coco.box([1.25, 2.5, 20.125, 30.333])
    coco.box([5, 6, 7, 8], category_id=9)
    coco.box([10, 20, 30, 10], image_id=2, iscrowd=1)
    coco.box([0, 0, 64, 48], image_id=2)
    for index, split in enumerate(("train", "val")):
        content = {**coco.content, "images": coco.content["images"][index : 3 - index]}
        ids = {image["id"] for image in content["images"]}
        content["annotations"] = [
            entry for entry in content["annotations"] if entry["image_id"] in ids
        ]
        (coco.directory / f"{split}.json").write_text(json.dumps(content))
    return coco.directory


def by_name(dataset):
    return {pathlib.Path(record.path).name: record for record in dataset}


def assert_same(before, after, rounding):
    """Asserts that two readings of a split have the same images, boxes and labels."""
    assert before.class_names == after.class_names
    before, after = by_name(before), by_name(after)
    assert before.keys() == after.keys()
    for name, record in before.items():
        np.testing.assert_allclose(
            after[name].boxes, record.boxes, rtol=0, atol=rounding
        )
        assert after[name].labels.tolist() == record.labels.tolist()
        assert (after[name].height, after[name].width) == (record.height, record.width)


def read(splits, split):
    # Converting has decoded every image.
    return read_coco(*splits[split], training=False, strict=True, check_images="header")


def test_a_set_comes_back_equal_up_to_the_rounding(shared_data, tmp_path):
    splits = find_splits(shared_data("bccd"))
    before = {split: read(splits, split) for split in splits}
    for target in TARGETS:
        out = tmp_path / target
        made = convert_dataset(splits, target, out, link=target != "tfrecord")
        assert (made.num_images, made.num_boxes, made.losses) == (364, 4886, [])
        converted = find_splits(out)
        assert (converted.format, list(converted)) == (target, ["train", "val", "test"])
        for split in splits:
            # The boxes are whole pixels: VOC and TFRecords have them as they are.
            rounding = 0 if target == "voc" else ROUNDING[target]
            assert_same(before[split], read(converted, split), rounding)


@pytest.mark.parametrize(("first", "second"), [*itertools.product(TARGETS, TARGETS)])
def test_any_format_becomes_any_other(source, tmp_path, first, second):
    original = find_splits(source)
    train, val = original["train"], original["val"]
    # Two images of one name, as splits in folders of their own have them.
    convert_dataset(original, first, tmp_path / "first")
    convert_dataset(find_splits(tmp_path / "first"), second, tmp_path / "second")
    splits = find_splits(tmp_path / "second")
    assert list(splits) == ["train", "val"]
    rounding = max(ROUNDING[first], ROUNDING[second]) * 2
    before, after = read_coco(*train, training=False), read(splits, "train")
    assert_same(before, after, rounding)
    # YOLO has no crowd regions, in the others they stay.
    num_crowd = 0 if "yolo" in (first, second) else 1
    assert by_name(after)["1.jpg"].num_crowd == num_crowd
    # 1.jpg is in both splits: its second copy is called otherwise.
    assert len(read_coco(*val, training=False)) == 1
    assert sorted(by_name(read(splits, "val"))) == ["val_1.jpg"]


def test_rounding_of_pascal_voc_by_hand(coco, tmp_path):
    coco.image(box=[1.25, 2.5, 20.125, 30.333])
    coco.box([11.5, 4, 1, 4])  # both corners round to 12
    coco.box([63.6, 5, 5, 5])  # 0.4 pixels are left of it
    coco.box([5, 6, 7, 8])
    made = convert_dataset(find_splits(coco.save()), "voc", tmp_path / "out")
    assert made.losses == ["3 boxes moved by rounding to whole pixels"]
    (record,) = read(find_splits(tmp_path / "out"), "train")
    expected = [[1, 2, 21, 33], [12, 4, 13, 8], [63, 5, 64, 10], [5, 6, 12, 14]]
    assert record.boxes.tolist() == expected


@pytest.mark.parametrize("target", TARGETS)
def test_boxes_of_one_pixel_come_back(coco, tmp_path, target):
    # A 48th in eight decimals is less than a pixel, which would be too small to keep.
    coco.image(48, 641)
    for place in (0, 7, 19.25, 46.7):
        coco.box([place, place, 1, 1])
    coco.box([640, 47, 1, 1])
    convert_dataset(find_splits(coco.save()), target, tmp_path / "out")
    (record,) = read(find_splits(tmp_path / "out"), "train")
    assert len(record.boxes) == 5


def test_what_is_lost_is_said(coco, tmp_path):
    coco.image()
    coco.box([1, 2, 3, 4], segmentation=[[1, 2, 4, 2, 4, 6]], area=6)
    coco.box([1, 2, 30, 40], iscrowd=1)
    coco.box([0, 0, 0, 4])
    Image.open(coco.directory / "0.jpg").save(coco.directory / "0.jpg", exif=exif(3))
    splits = find_splits(coco.save())
    yolo = convert_dataset(splits, "yolo", tmp_path / "yolo")
    assert yolo.losses[:3] == [
        "1 masks",
        "1 areas that are not those of the boxes, such as areas of masks: AP by size "
        "changes",
        "1 crowd regions left out, YOLO cannot mark them",
    ]
    assert yolo.losses[3].startswith("1 images are turned by their EXIF orientation")
    assert "1 dropped, box has a width or height <= 0" in yolo.summaries[0]
    assert (tmp_path / "yolo/labels/train/0.txt").read_text().count("\n") == 1
    made = convert_dataset(splits, "tfrecord", tmp_path / "records")
    assert made.losses == ["1 masks", yolo.losses[3]]
    convert_dataset(find_splits(tmp_path / "records"), "coco", tmp_path / "out")
    file = tmp_path / "out/annotations/instances_train.json"
    content = json.loads(file.read_text())
    assert content["annotations"] == [
        {"id": 1, "image_id": 1, "category_id": 7, "bbox": [1, 2, 3, 4], "iscrowd": 0}
        | {"area": 6},
        {"id": 2, "image_id": 1, "category_id": 7, "bbox": [1, 2, 30, 40], "iscrowd": 1}
        | {"area": 1200},
    ]
    assert content["categories"] == [{"id": 7, "name": "cell"}]


def test_ids_from_zero_become_ids_from_one(source, tmp_path):
    convert_dataset(find_splits(source), "yolo", tmp_path / "yolo")
    convert_dataset(find_splits(tmp_path / "yolo"), "coco", tmp_path / "out")
    content = json.loads((tmp_path / "out/annotations/instances_val.json").read_text())
    assert [category["id"] for category in content["categories"]] == [1, 2, 3]


def test_the_source_stays_and_links_lead_to_it(source, tmp_path, progress):
    before = {path: path.read_bytes() for path in source.rglob("*") if path.is_file()}
    convert_dataset(find_splits(source), "csv", tmp_path / "a", progress=progress)
    convert_dataset(find_splits(source), "csv", tmp_path / "b", link=True)
    assert progress.told == [4, 1, 1, 1, 1, "closed"]
    assert (tmp_path / "a/images/0.jpg").read_bytes() == before[source / "0.jpg"]
    assert not (tmp_path / "a/images/0.jpg").is_symlink()
    assert (tmp_path / "b/images/0.jpg").resolve() == (source / "0.jpg").resolve()
    assert before == {path: path.read_bytes() for path in before}


def test_a_target_that_holds_something_is_left_alone(source, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("x")
    with pytest.raises(ValueError, match="absent or empty"):
        convert_dataset(find_splits(source), "csv", out)
    assert [path.name for path in out.iterdir()] == ["mine.txt"]
    (out / "mine.txt").unlink()
    convert_dataset(find_splits(source), "csv", out)
    assert (out / "annotations.csv").is_file()
    with pytest.raises(ValueError, match="out must be a local .* gs://bucket/x"):
        convert_dataset(find_splits(source), "csv", "gs://bucket/x")


def test_a_conversion_that_fails_leaves_nothing(source, tmp_path, monkeypatch):
    (source / "2.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"2\.jpg: is empty"):
        convert_dataset(find_splits(source), "csv", tmp_path / "out")
    from vfnet_tf.data.formats import conversion

    def fail(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr(conversion.shutil, "copyfile", fail)
    present = set(tmp_path.iterdir())
    with pytest.raises(OSError, match="disk full"):
        convert_dataset(
            find_splits(source), "csv", tmp_path / "out", skip_bad_images=True
        )
    assert set(tmp_path.iterdir()) == present


# Cat stands beside cat: that is told, and they are kept apart.
NAMES = ["cat", "Cat", "traffic light", "a,b", 'say "no"', "it's", "back\\slash", "no"]
NAMES += ["<b> & ]]>", "1.5", "nan", "None", "# cat", "- cat: dog", "k\u00e4fer"]
NAMES += ["\u732b", "\U0001f408", "a\u2028b", "\u200b."]
# Only json, label maps, and yaml in quotes, have these.
ODD_NAMES = [" dog", "dog ", "two\nlines", "a\rb", "tab\tin", "\x00", "\x7f", "a\x85b"]
ODD_NAMES.append("\ufeffcat")


def name_classes(coco, names):
    coco.content["categories"] = [
        {"id": label, "name": name} for label, name in enumerate(names, 1)
    ]


@pytest.mark.parametrize("target", TARGETS)
def test_classes_come_back_by_their_names(coco, tmp_path, target):
    names = NAMES + (ODD_NAMES if target in ("coco", "yolo", "tfrecord") else [])
    name_classes(coco, names)
    coco.image(48, 640)
    for label in range(len(names)):
        coco.box([10 * label, 0, 9, 9], category_id=label + 1)
    convert_dataset(find_splits(coco.save()), target, tmp_path / "out")
    dataset = read(find_splits(tmp_path / "out"), "train")
    assert dataset.class_names == tuple(names)
    order = dataset[0].boxes[:, 0].argsort()
    assert dataset[0].labels[order].tolist() == list(range(len(names)))
    assert dataset.report.similar_classes[0] == ("cat", "Cat")


@pytest.mark.parametrize("target", ["voc", "csv"])
@pytest.mark.parametrize("name", ODD_NAMES)
def test_classes_that_would_not_come_back_are_refused(coco, tmp_path, target, name):
    name_classes(coco, ["dog", name])
    coco.image()
    coco.box([1, 2, 30, 40], category_id=1)
    with pytest.raises(ValueError, match="Names of classes") as error:
        convert_dataset(find_splits(coco.save()), target, tmp_path / "out")
    assert repr(name) in str(error.value)
    assert ("beside 'dog'" in str(error.value)) == ("dog" in name)
    assert not (tmp_path / "out").exists()


FILES = ["a.jpg", "a b.jpg", "a,b.jpg", 'say "no".jpg', "<&>.jpg", "k\u00e4fer.jpg"]
FILES += ["a.b.c.jpg", "a..jpg", "#1.JPG"]
# The formats that cannot have it as it is.
ODD_FILES = {
    "two\nlines.jpg": {"voc"},
    "a\rb.jpg": {"voc", "csv"},
    " a.jpg": {"voc"},
    "a .jpg": {"voc"},
    "a.jpg ": {"voc", "yolo", "csv"},
    ".a.jpg": {"voc", "yolo"},
    "a.jpe": {"yolo"},
    "a": {"yolo"},
    "a.txt": {"voc", "yolo"},
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("file", [*FILES, *ODD_FILES])
def test_images_come_back_by_their_names_or_are_refused_beforehand(
    coco, tmp_path, target, file
):
    coco.image(file_name=file).rename(coco.directory / file)
    coco.box([1, 2, 30, 40])
    splits = find_splits(coco.save())
    if target in ODD_FILES.get(file, ()):
        with pytest.raises(ValueError, match="Names of images") as error:
            convert_dataset(splits, target, tmp_path / "out")
        assert repr(file) in str(error.value) and not (tmp_path / "out").exists()
        return
    convert_dataset(splits, target, tmp_path / "out")
    (record,) = read(find_splits(tmp_path / "out"), "train")
    assert pathlib.Path(record.path).name == file
    np.testing.assert_allclose(record.boxes, [[1, 2, 31, 42]], atol=1e-3)


def test_a_split_that_cannot_be_read_does_not_stop_the_others(tmp_path):
    files = {"data.yaml": YOLO + "train: a\nval: b\ntest: nowhere\n"}
    files |= {"a/a.png": None, "a/a.txt": LABEL, "b/b.png": None, "b/b.txt": LABEL}
    splits = find_splits(write_layout(tmp_path / "set", files))
    made = convert_dataset(splits, "csv", tmp_path / "out")
    assert list(made.faults) == ["test"] and "'nowhere'" in made.faults["test"]
    assert list(find_splits(tmp_path / "out")) == ["train", "val"]
    assert (made.num_images, made.num_boxes) == (2, 2)


def test_bad_images_of_all_splits_come_in_one_message(tmp_path):
    files = {"train.json": coco_json("a.png", "b.png"), "test.json": "{oops"}
    files |= {"val.json": coco_json("c.png", "d.png"), "a.png": None, "c.png": None}
    splits = find_splits(write_layout(tmp_path / "set", files))
    with pytest.raises(ValueError, match="2 bad images") as error:
        convert_dataset(splits, "csv", tmp_path / "out")
    for text in ("train: b.png: does not", "val: d.png: does not", "test: The annot"):
        assert text in str(error.value)
    assert not (tmp_path / "out").exists()
    made = convert_dataset(splits, "csv", tmp_path / "out", skip_bad_images=True)
    assert made.num_images == 2 and list(made.faults) == ["test"]


def test_without_any_good_split_nothing_is_written(tmp_path):
    files = {"train.json": coco_json("a.png"), "val.json": "{oops", "x.png": None}
    splits = find_splits(write_layout(tmp_path / "set", files))
    with pytest.raises(
        ValueError, match="At least one split must be readable"
    ) as error:
        convert_dataset(splits, "csv", tmp_path / "out", skip_bad_images=True)
    assert "train: no image can be used, such as a.png: does not" in str(error.value)
    assert "val: The annotation file must be valid json" in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_set_without_any_object_or_class_is_refused(tmp_path):
    files = {"train/a.xml": "<annotation></annotation>", "train/a.png": None}
    splits = find_splits(write_layout(tmp_path / "set", files))
    with pytest.raises(ValueError, match="train: it has no object, and no class"):
        convert_dataset(splits, "coco", tmp_path / "out")
