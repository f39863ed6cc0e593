import sys

import numpy as np
import pytest
from PIL import Image

from tests.image_files import exif
from tests.layouts import read
from vfnet_tf.data import dataset as datasets
from vfnet_tf.data.formats import yolo as yolo_reader
from vfnet_tf.data.formats.readers import find_splits

yaml = pytest.importorskip("yaml", reason="needs PyYAML, the extra yolo")


def write_image(path, height=50, width=100, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((height, width, 3), "uint8")).save(path, **options)


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "set"
    for split, name in (("train", "a"), ("train", "b"), ("val", "c")):
        write_image(root / "images" / split / f"{name}.jpg")
        (root / "labels" / split).mkdir(parents=True, exist_ok=True)
    (root / "labels/train/a.txt").write_text("1 0.5 0.5 0.2 0.4\n0 0.1 0.1 0.2 0.2\n")
    describe(root)
    return root


def describe(root, text="", names="names: [cat, dog]", train="train: images/train"):
    (root / "data.yaml").write_text(f"{names}\n{train}\nval: images/val\n{text}")
    return root / "data.yaml"


def test_boxes_are_parts_of_the_image(root):
    (record,) = dataset = read(root, strict=True)
    np.testing.assert_allclose(
        record.boxes, [[40, 15, 60, 35], [0, 0, 20, 10]], atol=1e-5
    )
    assert record.labels.tolist() == [1, 0]
    assert dataset.class_names == ("cat", "dog") and dataset.category_ids == (0, 1)
    # The yaml can be named as well, and forced.
    for path in (root / "data.yaml", f"yolo:{root / 'data.yaml'}", f"yolo:{root}"):
        assert find_splits(path).format == "yolo"


def test_an_image_without_label_file_has_no_objects(root):
    dataset = read(root, training=False)
    assert [len(record.boxes) for record in dataset] == [2, 0]
    assert len(read(root, "val", training=False)) == 1


def test_boxes_are_of_the_upright_image(root):
    write_image(root / "images/train/a.jpg", exif=exif(6))  # 100 high when shown
    (record,) = read(root)
    assert (record.height, record.width) == (100, 50)
    np.testing.assert_allclose(record.boxes[0], [20, 30, 30, 70], atol=1e-5)


def test_names_may_be_a_dict_with_gaps(root):
    describe(root, names="names: {1: dog, 7: 9}")
    dataset = read(root)
    assert dataset.class_names == ("dog", "9") and dataset.category_ids == (1, 7)
    assert dataset[0].labels.tolist() == [0]
    assert dict(dataset.report.dropped) == {datasets.UNKNOWN_CATEGORY: 1}


def test_polygons_become_the_box_around(root):
    (root / "labels/train/a.txt").write_text("0 0.1 0.2 0.5 0.2 0.3 0.6\n")
    (record,) = read(root, strict=True)
    np.testing.assert_allclose(record.boxes, [[10, 10, 50, 30]], atol=1e-5)


def test_bad_lines_are_dropped_and_named(root):
    lines = ["0 0.5 0.5 0.2 0.4", "2 0.5 0.5 0.2 0.4", "0 0.5 0.5 0.2", ""]
    lines += ["cat 0.5 0.5 0.2 0.4", "0 nan 0.5 0.2 0.4", "0 0.5 0.5 0.2 0.4"]
    lines += ["1.0 0.5 0.5 0 0.4", "0 50 25 20 20"]
    (root / "labels/train/a.txt").write_text("\n".join(lines))
    dataset = read(root)
    assert dataset.num_boxes == 1
    place = "labels/train/a.txt line"
    assert dict(dataset.report.examples) == {
        datasets.UNKNOWN_CATEGORY: [f"{place} 2 (2 0.5 0.5 0.2 0.4)"],
        yolo_reader.NO_BOX: [f"{place} 3 (0 0.5 0.5 0.2)"],
        yolo_reader.NO_NUMBER: [
            f"{place} 5 (cat 0.5 0.5 0.2 0.4)",
            f"{place} 6 (0 nan 0.5 0.2 0.4)",
        ],
        datasets.DUPLICATE: [f"{place} 7"],
        datasets.BAD_SIZE: [f"{place} 8 in a.jpg ([50.0, 15.0, 0.0, 20.0])"],
        datasets.OUTSIDE: [f"{place} 9 in a.jpg ([4000.0, 750.0, 2000.0, 1000.0])"],
    }
    with pytest.raises(ValueError, match="7 bad annotations"):
        read(root, strict=True)


@pytest.mark.parametrize(
    ("ids", "is_doubtful"), [("12", True), ("02", False), ("13", False)]
)
def test_class_numbers_that_seem_to_count_from_1_are_said(root, ids, is_doubtful):
    lines = [f"{number} 0.5 0.5 0.{number + 1} 0.4" for number in map(int, ids)]
    (root / "labels/train/a.txt").write_text("\n".join(lines))
    notes = read(root).report.notes
    assert [kind for kind, _ in notes] == ["doubtful_labels"] * is_doubtful
    assert is_doubtful == ("count from 1: 2 occurs and 0 does not" in str(notes))


def test_bad_images_are_named(root):
    (root / "images/train/b.jpg").write_bytes(b"")
    (root / "labels/train/a.txt").write_bytes(b"\xff\xfe0")
    with pytest.raises(ValueError, match="2 bad of 2 images") as error:
        read(root)
    assert "images/train/b.jpg: is empty" in str(error.value)
    assert "labels/train/a.txt is no valid UTF-16" in str(error.value)


def names_of(dataset):
    return [record.path.rpartition("/")[-1] for record in dataset]


def test_a_split_may_be_a_list_of_images_or_several_folders(root):
    (root / "lists").mkdir()
    text = "../images/train/b.jpg\n\n../images/val/c.jpg\n"
    (root / "lists" / "train.txt").write_text(text)
    describe(root, train="train: lists/train.txt")
    assert names_of(read(root, training=False)) == ["b.jpg", "c.jpg"]
    describe(root, train="train: [images/val, images/train]")
    assert names_of(read(root, training=False)) == ["c.jpg", "a.jpg", "b.jpg"]


def test_path_is_relative_to_the_yaml_and_exports_may_state_another(root, tmp_path):
    (tmp_path / "yamls").mkdir()
    file = tmp_path / "yamls" / "data.yaml"
    file.write_text("path: ../set\nnames: [cat, dog]\ntrain: images/train\n")
    assert read(file).num_boxes == 2
    # Folders that are where they were made, and one level too high.
    describe(root, "path: /content/datasets/cats", train="train: ../images/train")
    assert read(root).num_boxes == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names: [a, no]\ntrain: images/train", "put a name like no"),
        ("names: {x: a}\ntrain: images/train", "class ids >= 0"),
        ("names: a\ntrain: images/train", "`names` must be a list"),
        ("names: [a]\nnc: 2\ntrain: images/train", "nc=2, 1 names"),
        ("names: [a]\ntrain: nowhere", "`train` must name existing folders"),
        ("names: [a]\ntrain: labels", "`train` must lead to at least one image"),
        ("names: [a]\ntrain:\nval:", "by `train`, `val` or `test`"),
        ("names: [a\ntrain: b", "must be valid yaml"),
        ("- names", "a list"),
        ("a: &a !!python/object/apply:os.system [ls]", "must be valid yaml"),
    ],
)
def test_a_yaml_that_describes_no_dataset_is_refused(root, text, message):
    (root / "data.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        read(root / "data.yaml")


def test_several_yamls_in_a_folder_must_be_told_apart(root):
    (root / "other.yml").write_text("names: [a]\nval: images/val\n")
    with pytest.raises(ValueError, match="'data.yaml', 'other.yml'"):
        find_splits(root)


def test_without_pyyaml_the_extra_is_named(root, monkeypatch):
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(ImportError, match=r"pip install 'vfnet_tf\[yolo\]'"):
        find_splits(root)


BOX = [[40, 15, 60, 35]]  # of 0.5 0.5 0.2 0.4


@pytest.mark.parametrize(
    ("shape", "numbers", "expected"),
    [
        # Keypoints follow the box, which is what counts.
        ("[3, 2]", "0.5 0.5 0.2 0.4 0.45 0.4 0.55 0.4 0.5 0.6", BOX),
        ("[2, 3]", "0.5 0.5 0.2 0.4 0.45 0.4 2 0 0 0", BOX),
        ("[1, 2]", "0.5 0.5 0.2 0.4 0.45 0.4", BOX),
        ("['2', 2.0]", "0.5 0.5 0.2 0.4 0.45 0.4 0.5 0.5", BOX),
        ("[3, 2]", "0.5 0.5 0.2 0.4", BOX),
        ("[3, 2]", "0.5 0.5 0.2 0.4 0.45 0.4", "columns of the box and of kpt_shape"),
        (
            "[1, 2]",
            "0.5 0.5 0.2 0.4 0.45 0.4 0.9",
            "columns of the box and of kpt_shape",
        ),
        # Nobody says that these are keypoints, but they are no polygons.
        (None, "0.5 0.5 0.2 0.4 0.45 0.4 0.55 0.4 0.5 0.6", "box with keypoints"),
        (None, "0.5 0.5 0.2 0.4 0.45 0.4 0.55 0.4", "box with keypoints"),
        (None, "0.5 0.5 0.9 0.8 0.45 0.4 1 0.3 0.3 0", "box with keypoints"),
        (None, "0.5 0.5 0.2 0.4 0.45 0.4 2 0 0 0", "box with keypoints"),
        *(
            (None, f"0.5 0.5 0.2 0.4 {number}", "a confidence, track id or angle")
            for number in (0.9, 17, -0.3)
        ),
        (None, "0.5 0.5 0.2 0.4 0.9 17", "no polygon in parts of the image"),
        (None, "0.5 0.5 0.2 0.4 0.45 1", "triangle, or a box with confidence"),
        (None, "0.5 0.5 0.2 0.4 1 0.45", "triangle, or a box with confidence"),
        # Polygons, oriented boxes among them.
        (None, "0.1 0.2 0.5 0.2 0.3 0.6", [[10, 10, 50, 30]]),
        (None, "0.1 0.2 0.5 0.2 0.3 1", [[10, 10, 50, 50]]),
        (None, "0.4 0.6 0.5 0.4 0.6 0.6", [[40, 20, 60, 30]]),
        (None, "0.3 0.1 0.6 0.4 0.5 0.5 0.2 0.2", [[20, 5, 60, 25]]),
        (None, "0.48 0.48 0.53 0.5 0.52 0.56 0.47 0.54", [[47, 24, 53, 28]]),
        (None, "0.4 0.4 0.45 0.4 0.45 0.46 0.42 0.48 0.4 0.44", [[40, 20, 45, 24]]),
        (None, "0.5 0.5 1.1 0.5 1.1 0.9 0.5 0.9", [[50, 25, 100, 45]]),
        (None, "10 10 50 10 50 40 10 40", "no polygon in parts of the image"),
        (None, "0.1 0.1 0.2 0.2 0.3 0.3", "no polygon in parts of the image"),
        (None, "0.1 0.1 0.1 0.1 0.5 0.5", "no polygon in parts of the image"),
        (None, "0.1 0.1 0.5 0.1 0.5 0.5 0.1 0.5 0.9", "nor a polygon"),
    ],
)
def test_a_line_is_the_right_box_or_dropped_and_named(root, shape, numbers, expected):
    describe(root, "" if shape is None else f"kpt_shape: {shape}\n")
    (root / "labels/train/a.txt").write_text(f"0 {numbers}\n")
    dataset = read(root, training=False)
    if isinstance(expected, list):
        np.testing.assert_allclose(dataset[0].boxes, expected, atol=1e-4)
        assert not dataset.report.dropped
    else:
        ((reason, examples),) = dataset.report.examples.items()
        assert expected in reason and dataset.num_boxes == 0
        assert examples == [f"labels/train/a.txt line 1 (0 {numbers})"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *(
            (f"kpt_shape: {shape}\n", "`kpt_shape` must be")
            for shape in ("17", "[17]", "[17, 4]", "[a, 2]")
        ),
        ("nc: two\n", "nc='two', 2 names"),
        ("nc: true\n", "nc=True, 2 names"),
        ("train: images/val\n", "the key 'train' comes twice"),
    ],
)
def test_odd_values_of_the_yaml_are_named(root, text, message):
    describe(root, text).write_bytes((root / "data.yaml").read_bytes() + b"# k\xe4")
    with pytest.raises(ValueError, match=r"'# k\\\\xe4' is not valid UTF-8"):
        find_splits(root)
    describe(root, text)
    with pytest.raises(ValueError, match=message):
        find_splits(root)


@pytest.mark.parametrize("names", ["{'0': cat, '1': dog}", "{0.0: cat, 1.0: dog}"])
def test_class_ids_and_their_number_are_numbers_however_they_are_written(root, names):
    for count in ("2", "2.0", "'2'"):
        describe(root, f"nc: {count}\n", names=f"names: {names}")
        dataset = read(root)
        assert dataset.class_names == ("cat", "dog") and dataset.category_ids == (0, 1)
    describe(root, names="names: {'0': cat, 0: dog}")
    with pytest.raises(ValueError, match="the key '0' comes twice"):
        find_splits(root)
