import numpy as np
import pytest

from tests.layouts import CSV, XML, YOLO, coco_json, plain, write_layout
from vfnet_tf.data.formats.coco import find_coco_splits, read_coco
from vfnet_tf.data.formats.readers import find_format, find_splits

FILES = {
    "coco": "instances_train2017.json",
    "yolo": "data.yaml",
    "voc": "a.xml",
    "csv": "boxes.csv",
}


@pytest.fixture
def root(tmp_path):
    """A folder with two images and a file of each format, for one box."""
    files = plain("a.png b.png a.txt a.xml") | {
        FILES["coco"]: coco_json("a.png"),
        FILES["yolo"]: YOLO + "train: train.txt\n",
        "train.txt": "a.png\n",
        FILES["csv"]: "a.png,10,20,40,40,cat\n",
    }
    return write_layout(tmp_path / "set", files)


@pytest.mark.parametrize("kind", FILES)
def test_each_format_gives_the_same_box_and_a_prefix_forces_it(root, kind):
    splits = find_splits(f"{kind}:{root}")
    assert splits.format == kind and list(splits) == ["train"]
    (record,) = dataset = read_coco(*splits["train"], strict=True)
    np.testing.assert_allclose(record.boxes, [[10, 20, 40, 40]], atol=1e-5)
    assert dataset.class_names == ("cat",)


def test_the_format_is_found_out_and_others_are_told(root):
    left = list(FILES)
    while left:
        kind, path, others = find_format(root)
        assert (kind, path, others) == (left[0], str(root), left[1:])
        description = find_splits(root).description
        for other in others:
            assert f"{other}:{root}" in description
        (root / FILES[left.pop(0)]).unlink()
    with pytest.raises(ValueError, match="one of the formats of docs/data.md"):
        find_format(root)
    (root / "boxes.csv").write_text("image;x1;y1;x2;y2;label\n")
    with pytest.raises(ValueError, match=r"wrong with it, give --data .*boxes\.csv"):
        find_format(root)


def test_a_file_goes_by_its_suffix(root):
    for kind in ("coco", "yolo", "csv"):
        assert find_format(root / FILES[kind]) == (kind, str(root / FILES[kind]), [])
    with pytest.raises(ValueError, match=r"which holds a\.png"):
        find_format(root / "a.png")
    with pytest.raises(ValueError, match="must be an existing folder or file"):
        find_format(f"voc:{root}/nowhere")


def test_a_coco_folder_is_read_as_ever_and_a_single_json_is_any_split(root):
    assert dict(find_splits(root)) == find_coco_splits(root)
    splits = find_splits(root / FILES["coco"])
    assert list(splits) == ["train"]
    assert splits.locate("val") == (str(root / FILES["coco"]), None)
    with pytest.raises(ValueError, match="must have the split 'val'"):
        find_splits(root).locate("val")


def test_the_json_is_written_when_asked_for_and_named_by_its_content(root, own_cache):
    splits = find_splits(f"csv:{root}")
    assert len(splits) == 1 and not own_cache.exists()
    first, folder = splits["train"]
    assert folder == str(root) and splits.locate("train") == (first, folder)
    assert find_splits(f"csv:{root}")["train"] == (first, folder)
    (root / "boxes.csv").write_text("a.png,10,20,40,41,cat\n")
    second, _ = find_splits(f"csv:{root}")["train"]
    assert first != second
    files = sorted(str(path) for path in (own_cache / "annotations").iterdir())
    assert files == sorted([first, second])


# What is in the folder, images by split, files that are not read.
LAYOUTS = {
    "coco, names in any case": (
        plain("TRAIN/a.png Images/valid/b.png Images/test2017/c.png")
        | {
            "annotations/Instances_Train.json": coco_json("a.png"),
            "annotations/instances_validation.json": coco_json("b.png"),
            "annotations/TESTING2017.json": coco_json("c.png"),
            "annotations/captions_train.json": "[]",
        },
        {"train": ["a.png"], "val": ["b.png"], "test": ["c.png"]},
        ["annotations/captions_train.json"],
    ),
    "coco, Roboflow": (
        plain("train/a.png valid/b.png test/c.png")
        | {
            "train/_annotations.coco.json": coco_json("a.png"),
            "valid/_annotations.coco.json": coco_json("b.png"),
            "holdout/_annotations.coco.json": coco_json("c.png"),
            "README.roboflow.txt": "x",
        },
        {"train": ["a.png"], "val": ["b.png"]},
        ["holdout/_annotations.coco.json", "test/"],
    ),
    "coco, one json in each folder": (
        plain("Training/a.png val/b.png")
        | {
            "Training/labels.json": coco_json("a.png"),
            "val/labels.json": coco_json("b.png"),
            "val/other.json": "{}",
            "other.json": coco_json("a.png"),
            "scan.json": '{"image_size": [1, 2], "findings": [{"images": []}]}',
            "studio.json": '[{"annotations": [1]}]',
        },
        {"train": ["a.png"], "val": ["b.png"]},
        ["other.json"],
    ),
    "coco, the first image is missing": (
        plain("train/preview.png images/a.png images/b.png")
        | {"train.json": coco_json("gone.png", "a.png", "b.png")},
        {"train": ["a.png", "b.png"]},
        [],
    ),
    "voc, lists in any case": (
        plain(
            "Annotations/a.xml Annotations/b.xml Annotations/c.xml "
            "Annotations/d.xml JPEGImages/a.png JPEGImages/b.png JPEGImages/c.png "
            "JPEGImages/d.png"
        )
        | {
            "ImageSets/Main/Train.txt": "a\n",
            "ImageSets/Main/Validation.txt": "b\n",
            "ImageSets/Main/default.txt": "c\nd\n",
            "ImageSets/Main/cat_train.txt": "a 1\n",
        },
        {"train": ["a.png"], "val": ["b.png"]},
        ["ImageSets/Main/default.txt"],
    ),
    "voc, two lists of a split": (
        plain(
            "annotations/a.xml annotations/b.xml annotations/c.xml Images/a.png "
            "Images/b.png Images/c.png"
        )
        | {
            "ImageSets/train.txt": "a\n",
            "ImageSets/valid.txt": "c\n",
            "ImageSets/val.txt": "b\n",
            "ImageSets/trainval.txt": "a\nb\n",
        },
        {"train": ["a.png"], "val": ["b.png"]},
        ["ImageSets/valid.txt"],
    ),
    "voc, trainval has more than is read": (
        plain("annotations/a.xml annotations/b.xml images/a.png images/b.png")
        | {"ImageSets/Main/train.txt": "a\n", "ImageSets/Main/trainval.txt": "a\nb\n"},
        {"train": ["a.png"]},
        ["ImageSets/Main/trainval.txt"],
    ),
    "voc, folders in any case": (
        plain(
            "Train/a.xml Train/a.png Validation/b.png test/annotations/c.xml "
            "test/images/c.png val2/d.xml"
        )
        | {"Validation/b.XML": XML},
        {"train": ["a.png"], "val": ["b.png"], "test": ["c.png"]},
        ["val2"],
    ),
    "voc, beside the images": (
        {"a.xml": XML, "a.PNG": None, "b.xml": XML, "b.png": None},
        {"train": ["a.PNG", "b.png"]},
        [],
    ),
    "yolo, Roboflow without its test": (
        plain(
            "train/images/a.png train/labels/a.txt valid/images/b.png "
            "valid/labels/b.txt"
        )
        | {
            "data.yaml": YOLO + "train: ../train/images\nval: ../valid/images\n"
            "test: ../test/images\n"
        },
        {"train": ["a.png"], "val": ["b.png"], "test": "../test/images"},
        [],
    ),
    "yolo, keys in any case": (
        plain(
            "Images/dev/d.png Images/train/a.png Labels/train/a.txt "
            "Images/v/b.png Labels/v/b.txt Images/test/c.png"
        )
        | {
            "data.yml": YOLO + "Train: Images/train\nvalidation: Images/v\nvalid:\n"
            "dev: Images/dev\npath: .\n"
        },
        {"train": ["a.png"], "val": ["b.png"]},
        ["valid: of data.yml, which is empty", "dev: of data.yml", "Images/test/"],
    ),
    "yolo, below a folder called images": (
        plain("mine/a.png mine/a.txt") | {"data.yaml": YOLO + "train: mine\n"},
        {"train": ["a.png"]},
        [],
    ),
    "yolo, a list of another folder": (
        plain("images/a.png labels/a.txt")
        | {
            "data.yaml": YOLO + "train: lists/train.txt\n",
            "lists/train.txt": "images/gone.png\n./images/a.png\n",
        },
        {"train": ["a.png"]},
        [],
    ),
    "csv, files in any case": (
        plain("a.png images/Val/b.png")
        | {
            "Train.csv": CSV + "a.png,10,20,40,40,cat\n",
            "validation.CSV": CSV + "gone.png,1,1,9,9,cat\nb.png,10,20,40,40,cat\n",
            "holdout.csv": CSV + "c.png,10,20,40,40,cat\n",
            "prices.csv": "name,price\n",
        },
        {"train": ["a.png"], "val": ["b.png"]},
        ["holdout.csv"],
    ),
    "csv, folders": (
        plain("train/a.png Valid/b.png")
        | {
            "train/_annotations.csv": CSV + "a.png,10,20,40,40,cat\n",
            "Valid/_annotations.csv": CSV + "b.png,10,20,40,40,cat\n",
            "more/_annotations.csv": CSV + "b.png,10,20,40,40,cat\n",
            "test/one.csv": CSV,
            "test/two.csv": CSV,
        },
        {"train": ["a.png"], "val": ["b.png"]},
        ["more/_annotations.csv", "test/one.csv", "test/two.csv", "test/"],
    ),
    "csv, a split in another kind of file": (
        plain("a.png b.png")
        | {
            "train.csv": CSV + "a.png,10,20,40,40,cat\n",
            "val.csv": CSV.replace(",", ";") + "b.png;10;20;40;40;cat\n",
        },
        {"train": ["a.png"]},
        ["val.csv"],
    ),
    "csv, a column": (
        plain("a.png b.png")
        | {
            "d.csv": "split," + CSV + "TRAIN,a.png,10,20,40,40,cat\n"
            "VALIDATION,b.png,10,20,40,40,cat\n"
        },
        {"train": ["a.png"], "val": ["b.png"]},
        [],
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_gives_its_splits_and_tells_what_is_not_read(tmp_path, layout):
    files, expected, unused = LAYOUTS[layout]
    # The folder above is called images: of no layout is that a part.
    splits = find_splits(write_layout(tmp_path / "images" / "set", files))
    assert list(splits) == list(expected) and splits.unused == unused
    assert all(name in splits.description for name in unused)
    assert ("not read" in splits.description) == bool(unused)
    for split, names in expected.items():
        if isinstance(names, str):
            with pytest.raises(ValueError, match=names):
                splits[split]
            continue
        dataset = read_coco(*splits[split], skip_bad_images=True)
        assert [record.path.rpartition("/")[2] for record in dataset] == names
        for record in dataset:
            np.testing.assert_allclose(record.boxes, [[10, 20, 40, 40]], atol=1e-4)


def test_of_many_unread_files_five_are_told_and_the_others_counted(tmp_path):
    files = {f"annotations/x{number}.json": "[]" for number in range(7)}
    files |= {"annotations/train.json": coco_json("a.png"), "train/a.png": None}
    description = find_splits(write_layout(tmp_path, files)).description
    assert description.endswith("annotations/x4.json and 2 more)")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("sub\\a.png", "sub/a.png"),
        ("sub/a%20b.png", "sub/a b.png"),
        ("data/obj/sub/a.png", "sub/a.png"),
        ("/home/me/set/sub/a.png", "sub/a.png"),
        ("sub/A.PNG", "sub/a.png"),
        ("sub/a.jpg", "sub/a.png"),
        ("sub/a", "sub/a.png"),
        ("sub/two.png", None),
        ("sub/c.png", None),
    ],
)
def test_a_missing_image_is_named_with_what_its_name_may_have_meant(
    tmp_path, name, meant
):
    files = {"sub/a.png": None, "sub/a b.png": None, "train.json": coco_json(name)}
    files |= {"sub/Two.png": None, "sub/TWO.png": None}
    write_layout(tmp_path, files)
    with pytest.raises(ValueError, match="does not exist") as error:
        read_coco(tmp_path / "train.json", tmp_path)
    hint = f"there is {meant!r}" if meant else "there is"
    assert (hint in str(error.value)) == (meant is not None)
