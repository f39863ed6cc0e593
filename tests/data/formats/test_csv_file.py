import os
import unicodedata

import numpy as np
import pytest
from PIL import Image

from tests.layouts import read
from vfnet_tf.data import dataset as datasets
from vfnet_tf.data.formats import csv_file
from vfnet_tf.data.formats.readers import find_splits

HEAD = "split,image,x1,y1,x2,y2,label\n"


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "set"
    (root / "images").mkdir(parents=True)
    for name in "abc":
        Image.fromarray(np.zeros((48, 64, 3), "uint8")).save(
            root / "images" / f"{name}.png"
        )
    return root


def write(root, text, name="boxes.csv", encoding="utf-8"):
    (root / name).write_text(text, encoding=encoding)
    return root / name


def test_a_line_is_an_object_and_splits_are_a_column(root):
    write(
        root,
        HEAD + "train,images/a.png,0,1.5,20,31,dog\n"
        "valid,images/b.png,1,2,3,4,cat\ntrain,images/a.png,1,1,64,48,cat\n",
    )
    (record,) = dataset = read(root, strict=True)
    assert record.boxes.tolist() == [[0, 1.5, 20, 31], [1, 1, 64, 48]]
    assert record.labels.tolist() == [1, 0] and dataset.class_names == ("cat", "dog")
    assert read(root / "boxes.csv", "val")[0].path.endswith("images/b.png")


@pytest.mark.parametrize(
    "text",
    [
        "a.png,1,2,30,40,dog\nb.png,,,,,\n",
        "b.png,,,,,\na.png,1,2,30,40,dog\n",
        "filename,width,height,class,xmin,ymin,xmax,ymax\na.png,64,48,dog,1,2,30,40\n"
        "b.png,64,48,,,,,\n",
        '\n \nimage, "x1", x2, y1, y2, label\na.png, "1", "30", "2", 40, "dog"\n'
        "b.png,,,,,\n",
        "\ufefflabel, x1 ,y1,x2,y2,image,note\ndog,1,2,30,40,a.png,'x'\n,,,,,b.png,\n",
    ],
)
def test_other_headers_and_none_at_all(root, text):
    # Images are looked for beside the file and in images/.
    dataset = read(write(root, text), training=False)
    boxes = {record.path[-5:]: record.boxes.tolist() for record in dataset}
    assert boxes == {"a.png": [[1, 2, 30, 40]], "b.png": []}
    assert dataset.class_names == ("dog",)


def test_an_image_in_several_spellings_is_one(root):
    name = "k\u00e4fer.png"
    (root / "images" / "a.png").rename(root / "images" / name)
    spellings = [name, f"./{name}", f" {name}\t", unicodedata.normalize("NFD", name)]
    write(root, HEAD + "".join(f"train,{s},1,2,30,40,dog\n" for s in spellings))
    (record,) = read(root, training=False)
    assert os.path.basename(record.path) == name
    # The same box of the same class four times.
    assert record.boxes.tolist() == [[1, 2, 30, 40]]


def test_classes_txt_gives_the_order(root):
    (root / "classes.txt").write_text("dog\ncat\n")
    write(root, HEAD + "train,a.png,1,2,9,9,cat\ntrain,a.png,1,2,9,9,cow\n")
    dataset = read(root)
    assert dataset.class_names == ("dog", "cat") and dataset[0].labels.tolist() == [1]
    assert "boxes.csv line 3 ('cow')" in dataset.report.summary()


def test_bad_lines_are_dropped_and_named(root):
    write(
        root,
        HEAD + "train,a.png,1,2,9,9,d\ntrain,a.png,1,2,9,9,d\ntrain,a.png,9,2,1,9,d\n"
        "train,a.png,1,,9,9,d\ntrain,a.png,1,2,9,9\ntrain,,1,2,9,9,d\n\n"
        "train,a.png,1,2,9,9,\ntrain,a.png,50,2,80,9,d\n",
    )
    dataset = read(root)
    assert dataset[0].boxes.tolist() == [[1, 2, 9, 9], [50, 2, 64, 9]]
    assert dict(dataset.report.examples) == {
        datasets.DUPLICATE: ["boxes.csv line 3"],
        datasets.BAD_SIZE: ["boxes.csv line 4 in a.png ([9.0, 2.0, -8.0, 7.0])"],
        datasets.BAD_BOX: ["boxes.csv line 5 (1, , 9, 9)"],
        "line has not 7 columns": ["boxes.csv line 6"],
        "line names no image": ["boxes.csv line 7"],
        csv_file.NO_LABEL: ["boxes.csv line 9 (1, 2, 9, 9)"],
        "clipped": ["boxes.csv line 10 in a.png ([50.0, 2.0, 30.0, 7.0])"],
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image;x1;y1;x2;y2;label\n", "separated by commas"),
        ("image,x1,y1,x2,y2\n", "names the columns"),
        ("", r"begins with \[\]"),
        (HEAD + "mine,a.png,1,2,3,4,d\n", "Received: 'mine' in .*boxes.csv line 2"),
    ],
)
def test_a_file_of_another_kind_is_refused(root, text, message):
    write(root, text)
    with pytest.raises(ValueError, match=message):
        find_splits(root / "boxes.csv")


def test_a_line_that_is_not_utf_8_is_named_and_the_others_are_read(root):
    lines = ["train,a.png,1,2,3,4,k\xe4fer\n", "train,b.png,1,2,9,9,dog\n"]
    file = write(root, HEAD + "".join(lines), encoding="latin-1")
    dataset = read(file)
    assert dataset.class_names == ("dog",) and dataset.num_boxes == 1
    reason = "line is not valid UTF-8, save the file so"
    assert dict(dataset.report.examples) == {reason: [r"boxes.csv line 2 (k\xe4fer)"]}
    write(root, HEAD + lines[0], encoding="latin-1")
    with pytest.raises(ValueError, match=r"with a label.*line 2: .*k\\xe4fer"):
        find_splits(file)


def test_a_folder_without_such_a_file_is_refused(root):
    write(root, "name,price\n")
    with pytest.raises(ValueError, match="There must be one CSV file"):
        find_splits(f"csv:{root}")


def test_nan_says_nothing_unless_classes_txt_has_a_class_of_that_name(root):
    lines = "train,a.png,1,2,9,9,cat\ntrain,b.png,nan,NaN,None,,nan\n"
    write(root, HEAD + lines + "train,c.png,1,2,9,9,nan\n")
    dataset = read(root, training=False)
    assert [len(record.boxes) for record in dataset] == [1, 0, 0]
    assert dataset.class_names == ("cat",)
    assert dict(dataset.report.examples) == {
        csv_file.NO_LABEL: ["boxes.csv line 4 (1, 2, 9, 9)"]
    }
    (root / "classes.txt").write_text("cat\nnan\n")
    dataset = read(root, training=False)
    # Of b.png the corners are missing.
    assert [record.labels.tolist() for record in dataset] == [[0], [], [1]]
