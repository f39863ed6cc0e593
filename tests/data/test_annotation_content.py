"""What annotations say means the same in all formats, and wherever it is used."""

import json
import unicodedata
import warnings

import numpy as np
import pytest
from PIL import Image

from vfnet_tf.data.formats.coco import read_coco
from vfnet_tf.data.formats.conversion import convert_dataset
from vfnet_tf.data.formats.readers import find_splits
from vfnet_tf.data.scan.checks import scan_splits
from vfnet_tf.evaluation.coco import CocoEvaluator

pytest.importorskip("yaml", reason="needs PyYAML, the extra yolo")

FORMATS = ("coco", "voc", "yolo", "csv")


class OneImage:
    """A set of one image, 64 wide and 48 high, and its objects, in a format."""

    def __init__(self, root, kind, image="a.jpg", size=(48, 64)):
        self.root, self.kind, self.image, self.size = root, kind, image, size
        self.entries = []
        root.mkdir(exist_ok=True)
        Image.fromarray(np.zeros((48, 64, 3), "uint8")).save(root / image)

    def box(self, corners=(10, 20, 40, 45), name="cat", **flags):
        """Corners count from 0 and are what the file says, numbers or texts."""
        self.entries.append((corners, name, flags))

    def save(self, encoding="utf-8", end="\n", named=None):
        """Writes the labels, under another image name if `named` is given."""
        image = named or self.image
        make = getattr(self, f"_{self.kind}")
        stem = image.rpartition(".")[0]
        for name, text in make(image, stem).items():
            text = text.replace("\n", end)
            (self.root / name).write_bytes(text.encode(encoding))
        return self

    def read(self, **options):
        splits = find_splits(f"{self.kind}:{self.root}")
        return read_coco(*splits["train"], training=False, **options)

    def _coco(self, image, stem):
        names = sorted({name for _, name, _ in self.entries})
        sides = zip(("height", "width"), self.size or (), strict=False)
        content = {
            "images": [{"id": 1, "file_name": image, **dict(sides)}],
            "annotations": [
                {"id": number, "image_id": 1, "category_id": names.index(name) + 1}
                | {"bbox": self._xywh(corners), **flags}
                for number, (corners, name, flags) in enumerate(self.entries, 1)
            ],
            "categories": [{"id": i, "name": n} for i, n in enumerate(names, 1)],
        }
        return {"instances_train.json": json.dumps(content, ensure_ascii=False)}

    @staticmethod
    def _xywh(corners):
        if any(isinstance(value, str) for value in corners):
            return list(corners)
        x1, y1, x2, y2 = corners
        return [x1, y1, x2 - x1, y2 - y1]

    def _voc(self, image, stem):
        text = f"<annotation>\n<filename>{image}</filename>\n"
        if self.size:
            height, width = self.size
            text += f"<size><width>{width}</width><height>{height}</height></size>\n"
        for corners, name, flags in self.entries:
            x1, y1, x2, y2 = corners
            if not any(isinstance(value, str) for value in corners):
                x1, y1 = x1 + 1, y1 + 1
            tags = "".join(f"<{k}>{v}</{k}>" for k, v in flags.items())
            text += (
                f"<object><name>{name}</name>{tags}<bndbox><xmin>{x1}</xmin>"
                f"<ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>\n"
            )
        return {f"{stem}.xml": f"{text}</annotation>\n"}

    def _csv(self, image, stem):
        flags = sorted({flag for *_, flags in self.entries for flag in flags})
        sides = ["height", "width"] if self.size else []
        lines = [["image", "x1", "y1", "x2", "y2", "label", *sides, *flags]]
        lines += [
            [image, *corners, name, *(self.size or ()), *own.values()]
            for corners, name, own in self.entries
        ]
        text = "".join(",".join(map(str, line)) + "\n" for line in lines)
        return {"boxes.csv": text}

    def _yolo(self, image, stem):
        names = sorted({name for _, name, _ in self.entries})
        lines = ""
        for (x1, y1, x2, y2), name, _ in self.entries:
            row = [(x1 + x2) / 128, (y1 + y2) / 96, (x2 - x1) / 64, (y2 - y1) / 48]
            lines += f"{names.index(name)} {' '.join(map(str, row))}\n"
        yaml = f"names: {json.dumps(names, ensure_ascii=False)}\ntrain: list.txt\n"
        return {"data.yaml": yaml, "list.txt": f"{image}\n", f"{stem}.txt": lines}


FLAGS = [
    # The value as a json has it and as a text; is it a crowd region, None if it is odd.
    (0, "0", False),
    (1, "1", True),
    (1.0, "1.0", True),
    ("0", "0.0", False),
    ("1", " 1 ", True),
    (False, "False", False),
    (True, "true", True),
    ("false", "FALSE", False),
    ("no", "no", False),
    ("", "", False),
    (None, "nan", False),
    (float("nan"), "NaN", False),
    (2, "2", None),
    (-1, "-1", None),
    ([], "maybe", None),
]


NAMES = {"coco": ("iscrowd", "ignore", "difficult"), "voc": ("difficult", "ignore")}
NAMES["csv"] = ("crowd", "iscrowd", "difficult")


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, names in NAMES.items() for name in names]
)
@pytest.mark.parametrize(("value", "text", "is_crowd"), FLAGS, ids=repr)
def test_a_flag_means_the_same_in_training_evaluation_scan_and_conversion(
    tmp_path, kind, name, value, text, is_crowd
):
    data = OneImage(tmp_path / "set", kind)
    data.box((1, 2, 9, 9), **{name: 0})
    data.box(**{name: value if kind == "coco" else text})
    dataset = data.save().read()
    (record,) = dataset
    expected = {False: (2, 0, 0), True: (1, 1, 0), None: (1, 0, 1)}[is_crowd]
    report = dataset.report
    assert (len(record.boxes), record.num_crowd, report.dropped.total()) == expected
    if is_crowd is None:
        (problem,) = report.problems
        shown = value if kind == "coco" else text
        assert problem.reason == "flag is neither true nor false"
        assert f"{name}={shown!r}" in problem.text
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        truth = CocoEvaluator(dataset).truth["annotations"]
    crowds = [entry["iscrowd"] for entry in truth]
    assert crowds == [0, *([] if is_crowd is None else [int(is_crowd)])]
    assert (is_crowd is None) == any("flag that is neither" in str(w) for w in told)
    splits = find_splits(f"{kind}:{data.root}")
    scanned = scan_splits(splits, use_tensorflow=False).splits["train"]
    assert (scanned.num_boxes, scanned.num_crowd) == expected[:2]
    convert_dataset(splits, "coco", tmp_path / "out")
    converted = read_coco(*find_splits(tmp_path / "out")["train"], training=False)
    assert (len(converted[0].boxes), converted[0].num_crowd) == expected[:2]


def test_records_without_a_file_have_their_crowd_regions_in_the_ground_truth(tmp_path):
    data = OneImage(tmp_path / "set", "voc")
    data.box((1, 2, 9, 9))
    data.box(difficult=1)
    dataset = data.save().read()
    expected = CocoEvaluator(dataset).truth["annotations"]
    dataset.annotation_file = None
    found = CocoEvaluator(dataset).truth["annotations"]
    assert found == expected and [entry["iscrowd"] for entry in found] == [0, 1]


@pytest.mark.parametrize("kind", ["coco", "voc", "csv"])
@pytest.mark.parametrize(
    ("size", "reason"),
    [
        *((size, "") for size in ((48, 64), (48.0, "64.0"), ("4.8e1", " 64 "))),
        *((size, "") for size in ((0, 0), ("", "nan"))),
        ((480.0, 640.0), "is 48 high and 64 wide, its annotation says 480 and 640"),
        (("480.0", "640.0"), "its annotation says 480 and 640"),
        (("x", 64), "positive integers: height 'x'"),
        *((size, "positive integers") for size in (("48.5", 64), (48, 0), (48, ""))),
        ((-48, 64), "positive integers"),
    ],
)
def test_a_stated_size_is_checked_whatever_it_is_written_like(
    tmp_path, kind, size, reason
):
    data = OneImage(tmp_path / "set", kind, size=size)
    data.box()
    data.save()
    if not reason:
        assert data.read().sizes == [(48, 64)]
        return
    with pytest.raises(ValueError, match=f"a.jpg: .*{reason}"):
        data.read()


def test_lines_of_a_csv_that_state_two_sizes_spoil_their_image(tmp_path):
    data = OneImage(tmp_path / "set", "csv")
    data.box()
    (data.save().root / "boxes.csv").write_text(
        "image,x1,y1,x2,y2,label,width,height\na.jpg,1,2,9,9,cat,,\n"
        "a.jpg,1,2,9,8,cat,64,48\na.jpg,1,2,9,7,cat,64,50\n"
    )
    with pytest.raises(
        ValueError, match=r"line 3 states .*\(48, 64\), line 4 \(50, 64"
    ):
        data.read()


GOOD_NUMBERS = ("30", "30.0", " 3e1 ")
NO_NUMBERS = ("nan", "inf", "", "3_0", "30px", "30,5")


@pytest.mark.parametrize("kind", ["coco", "voc", "csv"])
@pytest.mark.parametrize("last", GOOD_NUMBERS + NO_NUMBERS)
def test_a_coordinate_is_a_number_in_all_formats(tmp_path, kind, last):
    is_good = last in GOOD_NUMBERS
    if kind == "csv" and "," in last:
        last = f'"{last}"'
    data = OneImage(tmp_path / "set", kind)
    data.box((1, 2, 9, 9))
    data.box(("5", "6", "30", last))
    dataset = data.save().read()
    assert len(dataset[0].boxes) == 1 + is_good
    if not is_good:
        assert dict(dataset.report.dropped) == {"box is not four finite numbers": 1}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            truth = CocoEvaluator(dataset).truth["annotations"]
        assert len(truth) == 1


ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32")


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["LF", "CRLF", "CR"])
@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("kind", FORMATS)
def test_text_is_read_in_all_encodings_and_with_all_ends_of_lines(
    tmp_path, kind, encoding, end
):
    data = OneImage(tmp_path / "set", kind)
    data.box((10, 20, 40, 44), name="k\u00e4fer")
    # The mark of UTF-16 by hand: Python writes one order only.
    marks = {"utf-16-le": "\ufeff", "utf-16-be": "\ufeff"}
    data.save(encoding, end)
    for path in data.root.glob("*"):
        if path.suffix != ".jpg" and encoding in marks:
            path.write_bytes(marks[encoding].encode(encoding) + path.read_bytes())
    (data.root / "classes.txt").write_bytes(f"k\u00e4fer{end}hund".encode(encoding))
    dataset = data.read()
    np.testing.assert_allclose(dataset[0].boxes, [[10, 20, 40, 44]], atol=1e-4)
    classes = ("k\u00e4fer",) if kind in ("coco", "yolo") else ("k\u00e4fer", "hund")
    assert dataset.class_names == classes
    assert len(CocoEvaluator(dataset, dataset.category_ids[:1]).image_ids) == 1
    splits = find_splits(data.root)
    convert_dataset(splits, "csv", tmp_path / "out")
    assert "k\u00e4fer" in (tmp_path / "out/annotations.csv").read_text("utf-8")


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(("on_disk", "named"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_names_are_found_however_they_are_composed(tmp_path, kind, on_disk, named):
    image, name = "M\u00fcller.jpg", "k\u00e4fer"
    data = OneImage(tmp_path / "set", kind, unicodedata.normalize(on_disk, image))
    data.box((10, 20, 40, 44), name=unicodedata.normalize("NFD", name))
    data.save(named=unicodedata.normalize(named, image))
    # Two classes that look the same would be the worst.
    if kind in ("voc", "csv"):
        data.box((1, 2, 9, 9), name=unicodedata.normalize("NFC", name))
        data.save(named=unicodedata.normalize(named, image))
    dataset = data.read()
    assert dataset.class_names == (name,) and dataset[0].path.endswith(data.image)
    again = data.read(class_names=[unicodedata.normalize("NFD", name)])
    assert again.class_names == (name,)


def test_an_image_that_a_csv_names_in_two_forms_is_one(tmp_path):
    data = OneImage(tmp_path / "set", "csv", "M\u00fcller.jpg")
    data.box((10, 20, 40, 44))
    (data.save().root / "boxes.csv").write_text(
        "".join(
            f"{place}{unicodedata.normalize(form, data.image)},1,2,9,{y},cat\n"
            for place, form, y in (("", "NFC", 9), ("", "NFD", 10), ("./", "NFC", 11))
        )
    )
    assert [len(record.boxes) for record in data.read()] == [3]


@pytest.mark.parametrize("kind", FORMATS)
def test_a_name_that_is_no_utf_8_is_named_and_the_rest_is_read(tmp_path, kind):
    good = OneImage(tmp_path / "set", kind)
    good.box((10, 20, 40, 44))
    bad = OneImage(tmp_path / "other", kind, "k\udce4fer.jpg")
    bad.box()
    texts = {**good._voc("a.jpg", "a"), **good._yolo("a.jpg", "a")}
    if kind == "voc":
        texts |= bad._voc("b.jpg", "k\udce4fer")
    elif kind == "yolo":
        texts["list.txt"] += f"{bad.image}\n"
    elif kind == "csv":
        texts = good._csv("a.jpg", "a")
        texts["boxes.csv"] += f"{bad.image},1,2,9,9,cat,48,64\n"
    else:
        content = json.loads(good._coco("a.jpg", "a")["instances_train.json"])
        content["images"].append({"id": 2, "file_name": bad.image})
        texts = {"instances_train.json": json.dumps(content)}
    (tmp_path / "other" / bad.image).rename(good.root / bad.image)
    for name, text in texts.items():
        (good.root / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    dataset = good.read(skip_bad_images=True)
    assert [record.path.rpartition("/")[2] for record in dataset] == ["a.jpg"]
    assert r"k\xe4fer" in dataset.summary()
    dataset.summary().encode()  # It can be printed.
    scanned = scan_splits(find_splits(f"{kind}:{good.root}"), use_tensorflow=False)
    texts = [finding.text for finding in scanned.findings]
    assert any(r"k\xe4fer" in text for text in texts) and "".join(texts).encode()
