import numpy as np
import pytest
from PIL import Image

from tests.layouts import read
from vfnet_tf.data import dataset as datasets
from vfnet_tf.data.formats import voc
from vfnet_tf.data.formats.readers import find_splits
from vfnet_tf.evaluation.coco import CocoEvaluator

OBJECT = """<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>
<xmin>{0}</xmin><ymin>{1}</ymin><xmax>{2}</xmax><ymax>{3}</ymax></bndbox></object>"""


def thing(name, *corners, difficult=0):
    return OBJECT.format(*corners, name=name, difficult=difficult)


def write_image(path, height=48, width=64):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((height, width, 3), "uint8")).save(path)


def write_xml(path, *things, size=(48, 64)):
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = size
    head = f"<size><width>{width}</width><height>{height}</height></size>"
    path.write_text(f"<annotation>{head}{''.join(things)}</annotation>")


def annotate(root, *things):
    write_xml(root / "Annotations" / "a.xml", *things)


@pytest.fixture
def devkit(tmp_path):
    """`a` trains, `b` validates; `c` is in no list."""
    root = tmp_path / "VOC2007"
    for name in "abc":
        write_image(root / "JPEGImages" / f"{name}.jpg")
        write_xml(root / "Annotations" / f"{name}.xml", thing("dog", 11, 6, 30, 25))
    lists = root / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a\n")
    (lists / "val.txt").write_text("b\n")
    # Lists of one class lie beside, and are none of ours.
    (lists / "dog_train.txt").write_text("a  1\n")
    return root


def test_pixels_count_from_one_and_the_last_is_inside(devkit):
    annotate(
        devkit,
        thing("dog", 1, 1, 64, 48),
        thing("cat", 11, 6, 30, 25),
        thing("cat", 5.5, 2, 5.5, 3),
    )
    (record,) = read(devkit, strict=True)
    assert record.boxes.tolist() == [[0, 0, 64, 48], [10, 5, 30, 25], [4.5, 1, 5.5, 3]]
    assert record.labels.tolist() == [1, 0, 0]


def test_lists_make_the_splits_and_classes_are_those_of_all_splits(devkit):
    write_xml(devkit / "Annotations" / "b.xml", thing("cat", 1, 1, 9, 9))
    splits = find_splits(devkit)
    assert list(splits) == ["train", "val"]
    assert splits.description == f"Pascal VOC xml, {devkit}: train, val"
    train, val = read(devkit), read(devkit, "val", training=False)
    assert [record.path for record in train] == [str(devkit / "JPEGImages/a.jpg")]
    assert train.class_names == val.class_names == ("cat", "dog")
    assert val[0].labels.tolist() == [0]


def test_trainval_is_for_training_where_there_is_no_train(devkit):
    lists = devkit / "ImageSets" / "Main"
    (lists / "trainval.txt").write_text("c\n")
    assert read(devkit)[0].path.endswith("a.jpg")
    (lists / "train.txt").unlink()
    assert read(devkit)[0].path.endswith("c.jpg")


def test_classes_txt_gives_the_order_and_other_names_are_dropped(devkit):
    (devkit / "classes.txt").write_text("zebra\ndog\n")
    annotate(devkit, thing("dog", 1, 1, 9, 9), thing("cow", 1, 1, 9, 9))
    dataset = read(devkit)
    assert dataset.class_names == ("zebra", "dog")
    assert dataset[0].labels.tolist() == [1]
    assert "Annotations/a.xml object 2 (cow)" in dataset.report.summary()
    (devkit / "classes.txt").write_text("dog\ndog\n")
    with pytest.raises(ValueError, match="each once"):
        read(devkit)


def test_difficult_objects_are_crowd_regions(devkit):
    annotate(devkit, thing("dog", 1, 1, 9, 9), thing("dog", 11, 6, 30, 25, difficult=1))
    (record,) = dataset = read(devkit)
    assert record.boxes.tolist() == [[0, 0, 9, 9]] and record.num_crowd == 1
    evaluator = CocoEvaluator(dataset)
    found = {
        # That of the difficult object comes first and is not counted as wrong.
        "boxes": np.array([[[10, 5, 30, 25], [0, 0, 9, 9]]], "float32"),
        "scores": np.array([[0.9, 0.5]]),
        "labels": np.zeros((1, 2), "int32"),
    }
    evaluator.update([record.image_id], found)
    assert evaluator.evaluate()["AP"] == pytest.approx(1.0)


def test_mistakes_are_dropped_and_named_by_file_and_object(devkit):
    annotate(
        devkit,
        thing("dog", 1, 1, 9, 9),
        thing("dog", 30, 6, 11, 25),
        thing("dog", "x", 6, 11, 25),
        thing("", 1, 1, 9, 9),
        thing("dog", 1, 1, 9, 9),
        thing("dog", 60, 40, 90, 48),
    )
    dataset = read(devkit)
    assert dataset[0].boxes.tolist() == [[0, 0, 9, 9], [59, 39, 64, 48]]
    report = dataset.report
    assert report.num_annotations == 6 and report.num_clipped == 1
    place = "Annotations/a.xml object"
    assert dict(report.examples) == {
        datasets.BAD_SIZE: [f"{place} 2 in a.jpg ([29.0, 5.0, -18.0, 20.0])"],
        datasets.BAD_BOX: [f"{place} 3 (x, 6, 11, 25)"],
        voc.NO_NAME: [f"{place} 4"],
        datasets.DUPLICATE: [f"{place} 5"],
        "clipped": [f"{place} 6 in a.jpg ([59.0, 39.0, 31.0, 9.0])"],
    }
    assert report.summary().startswith(f"{devkit} (train): 1 images, 6 annotations")
    with pytest.raises(ValueError, match=r"5 bad annotations:(.|\n)*a.xml object 5"):
        read(devkit, strict=True)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<annotation>", "a.xml is no valid xml"),
        ("<html></html>", "a.xml is no annotation of Pascal VOC, but <html>"),
        (
            '<!DOCTYPE a [<!ENTITY b "bbbb">]><annotation><object><name>&b;</name>'
            "</object></annotation>",
            "a.xml has a DTD, which is refused",
        ),
        ("<annotation>" + " " * 2000 + "</annotation>", "is larger than 1000 bytes"),
        ("<annotation><Object></Object></annotation>", "no <object> .*: of 1 are 0"),
        (
            "<annotation><object/><all><object/></all></annotation>",
            "directly in <annotation>: of 2 are 1",
        ),
    ],
)
def test_an_xml_that_is_broken_or_dangerous_is_a_bad_image(
    devkit, monkeypatch, text, reason
):
    monkeypatch.setattr(voc, "MAX_XML_BYTES", 1000)
    for encoding in ("utf-8", "utf-16"):
        (devkit / "Annotations" / "a.xml").write_text(text, encoding=encoding)
        with pytest.raises(ValueError, match=reason):
            read(devkit)


def test_what_a_list_names_must_be_there(devkit):
    (devkit / "ImageSets" / "Main" / "train.txt").write_text("a\nd\ne\n")
    write_xml(devkit / "Annotations" / "e.xml", thing("dog", 1, 1, 9, 9))
    with pytest.raises(ValueError, match="2 bad of 3 images") as error:
        read(devkit)
    assert "Annotations/d.xml cannot be read: No such file" in str(error.value)
    assert "Annotations/e.xml has no image e.jpg" in str(error.value)
    assert len(read(devkit, skip_bad_images=True)) == 1


def test_years_beside_each_other_are_joined(devkit):
    other = devkit.parent / "VOC2012"
    write_image(other / "JPEGImages" / "x.png")
    write_xml(other / "Annotations" / "x.xml", thing("cat", 1, 1, 9, 9))
    dataset = read(devkit.parent)
    names = [record.path.removeprefix(f"{devkit.parent}/") for record in dataset]
    assert names == ["VOC2007/JPEGImages/a.jpg", "VOC2012/JPEGImages/x.png"]
    assert dataset.class_names == ("cat", "dog")


def test_an_image_that_was_renamed_is_found_by_the_stated_name(tmp_path):
    write_image(tmp_path / "set" / "photo 1.jpg")
    name = "<filename>C/photo 1.jpg</filename>"
    write_xml(tmp_path / "set" / "1.xml", name, thing("dog", 1, 1, 9, 9))
    assert read(tmp_path / "set")[0].path.endswith("photo 1.jpg")


def test_a_folder_without_xml_is_refused(tmp_path):
    with pytest.raises(ValueError, match="must have xml files in Annotations/"):
        find_splits(f"voc:{tmp_path}")


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        *((name, "a.png") for name in ("a.png", "A.PNG", r"C:\data\a.png", "b/a.png")),
        ("a.jpg", "a.jpg"),
        # Files are renamed without a look into the xml.
        *((name, None) for name in ("b.jpg", "a.bmp", "a", "")),
    ],
)
def test_of_images_with_one_stem_the_stated_one_is_taken(devkit, stated, expected):
    write_image(devkit / "JPEGImages" / "a.png", 50, 70)
    name = f"<filename>{stated}</filename>"
    path = devkit / "Annotations" / "a.xml"
    write_xml(path, name, thing("dog", 1, 1, 9, 9), size=(0, 0))
    if expected is None:
        with pytest.raises(
            ValueError, match=r"must have in .* a.jpg or a.png: it states"
        ):
            read(devkit)
    else:
        assert read(devkit)[0].path == str(devkit / "JPEGImages" / expected)


def test_what_an_object_states_twice_is_no_object(devkit):
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax></bndbox>"
    two_boxes = thing("dog", 1, 1, 9, 9).replace("</object>", f"{box}</object>")
    two_names = thing("cat", 1, 1, 9, 9).replace("<name>", "<name>dog</name><name>")
    path = devkit / "Annotations" / "a.xml"
    write_xml(path, two_boxes, two_names, thing("dog", 11, 6, 30, 25))
    dataset = read(devkit)
    assert dataset[0].boxes.tolist() == [[10, 5, 30, 25]]
    place = "Annotations/a.xml object"
    assert dict(dataset.report.examples) == {
        voc.REPEATED: [f"{place} 1 (<bndbox>)", f"{place} 2 (<name>)"]
    }


def test_a_mark_of_utf_16_is_right_where_the_xml_declares_another_encoding(devkit):
    path = devkit / "Annotations" / "a.xml"
    text = '<?xml version="1.0" encoding="utf-8"?>' + path.read_text()
    path.write_text(text.replace("dog", "hund"), encoding="utf-16")
    assert read(devkit).class_names == ("dog", "hund")


@pytest.mark.parametrize("encoding", ["gb2312", "GBK", "big5", "shift_jis", "latin-1"])
def test_an_xml_is_read_in_the_encoding_that_it_declares(devkit, encoding):
    path = devkit / "Annotations" / "a.xml"
    name = "k\u00e4fer" if encoding == "latin-1" else "\u5927"
    text = f"<?xml version='1.0' encoding='{encoding}'?>" + path.read_text()
    path.write_bytes(text.replace("dog", name).encode(encoding))
    assert read(devkit).class_names == ("dog", name)
    if encoding == "GBK":
        path.write_bytes(path.read_bytes().replace(name.encode("gbk"), b"\xff\xff"))
        with pytest.raises(ValueError, match=r"a.xml is no valid GBK, which it decl"):
            read(devkit)
