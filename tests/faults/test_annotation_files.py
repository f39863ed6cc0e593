"""Annotation files that are deep, wide or refer to themselves are told in time."""

import json
import resource
import time

import numpy as np
import pytest
from PIL import Image

from tests.fuzzing import inputs
from tests.layouts import read
from vfnet_tf.data.formats.coco import read_coco
from vfnet_tf.data.formats.readers import find_splits
from vfnet_tf.data.formats.voc import MAX_XML_DEPTH, MAX_XML_ELEMENTS
from vfnet_tf.data.formats.yolo import MAX_YAML_VALUES
from vfnet_tf.data.text import MAX_TEXT_BYTES
from vfnet_tf.foreign_text import clipped, terminal_text

SECONDS = 10.0
MAX_MEMORY = 250 * 2**10


def read_all(place):
    """The message of the first error in a dataset; empty where all is well."""
    start = time.monotonic()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kB
    try:
        splits = find_splits(place)
        for split in splits:
            read_coco(*splits[split], training=False)
        text = ""
    except ValueError as error:
        text = str(error)
    assert time.monotonic() - start < SECONDS
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
    assert memory < MAX_MEMORY
    assert len(text) < 4000 and terminal_text(text) == text
    return text


def aliases(levels, last):
    """A yaml value of nine to the power of `levels` parts in a few hundred bytes."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    for level in range(1, levels):
        parts = ", ".join(9 * [f"*a{level - 1}"])
        lines.append(f"a{level}: &a{level} [{parts}]")
    return "\n".join([*lines, last.replace("BOMB", f"*a{levels - 1}"), ""])


KEYS = "train: images\nnames: [cell]\n"
#: name -> (text of data.yaml, part of the message)
YAMLS = {
    "bomb in names": (aliases(9, "train: images\nnames: BOMB"), f"{MAX_YAML_VALUES}"),
    "bomb in train": (aliases(9, "names: [a]\ntrain: BOMB"), f"{MAX_YAML_VALUES}"),
    "bomb in a key": (aliases(9, KEYS + "? BOMB\n: 1"), f"{MAX_YAML_VALUES}"),
    "small in names": (aliases(4, "train: images\nnames: BOMB"), "`names` must be"),
    "small in train": (aliases(4, "names: [a]\ntrain: BOMB"), "`train` must be a name"),
    "small in path": (aliases(4, KEYS + "path: BOMB"), "`path` must be the name"),
    "small in nc": (aliases(4, KEYS + "nc: BOMB"), "`nc` must be the number"),
    "small in kpt_shape": (aliases(4, KEYS + "kpt_shape: BOMB"), "`kpt_shape` must be"),
    "merges": (
        "a: &a {k: 1, l: 2}\nb: &b {<<: [*a, *a]}\n"
        + "".join(f"c{k}: &c{k} {{<<: [{'*b, ' * 400}]}}\n" for k in range(40))
        + KEYS,
        f"{MAX_YAML_VALUES}",
    ),
    "alias of itself": (KEYS + "x: &x [*x]\n", "an alias stands for what it is in"),
    "deep": (KEYS + "x: " + 5000 * "[" + 5000 * "]", "deeper than 20 levels"),
    "wide": (KEYS + "x: [" + 60_000 * "1," + "]", f"{MAX_YAML_VALUES}"),
    "digits": ("train: images\nnames: [0x" + 9000 * "f" + "]", "`names` must be"),
    "long name": (KEYS + "nc: " + 90_000 * "y", "`nc` must be"),
    "long key": (
        KEYS + f"? {90_000 * 'y'}\n: 1\n? {90_000 * 'y'}\n: 2\n",
        "comes twice",
    ),
    "zero byte": ('names: [a]\ntrain: "a\\0b"', "must name existing folders"),
    "odd keys": ("? [a]\n: 1\n" + KEYS, "must be valid yaml"),
    "large": (KEYS + "#" + 2**18 * "x", "at most 262144 bytes"),
}


@pytest.mark.parametrize("name", YAMLS)
def test_a_yaml_is_refused_in_a_few_words(tmp_path, name):
    text, message = YAMLS[name]
    (tmp_path / "images").mkdir()
    (tmp_path / "data.yaml").write_text(text)
    found = read_all(str(tmp_path / "data.yaml"))
    assert message in found and "data.yaml" in found


def test_aliases_that_a_person_writes_are_read(tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "images" / "a.png")
    text = (
        "train: &all images\nval: *all\nnames: &n {0: cell}\nbase: {<<: *n, 1: *all}\n"
    )
    (tmp_path / "data.yaml").write_text(text)
    assert list(find_splits(tmp_path)) == ["train", "val"]
    assert read_all(tmp_path) == ""


def coco(**changes):
    content = {
        "images": [{"id": 1, "file_name": "a.png"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9]}
        ],
        "categories": [{"id": 1, "name": "cell"}],
    }
    return json.dumps({**content, **changes})


WIDE = list(range(300_000))
DEEP = "DEEP"  # replaced in the text: json.dumps cannot write it
NESTED = 800 * "[" + 800 * "]"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (200_000 * "[", "nested too deeply"),
        ('{"images": ' + 200_000 * '{"a":', "nested too deeply"),
        (coco(categories=[{"id": WIDE, "name": "x"}]), "Each category must"),
        (coco(categories=[{"id": DEEP, "name": "x"}]), "Each category must"),
        (coco(categories=[{"id": 1, "name": WIDE}]), "Each category must"),
        (coco(categories=[{"id": 1, "name": k * 90} for k in "ab"]), "share one"),
        (coco(images=[{"id": WIDE, "file_name": "a.png"}]), "integer id"),
        (coco(images=[{"id": DEEP, "file_name": "a.png"}]), "integer id"),
        (coco(images=[{"id": 1, "file_name": WIDE}]), "has no file_name"),
        (coco(images=[{"id": 1, "file_name": 90_000 * "x"}]), "x…x"),
        (coco(images=[{"id": 1, "file_name": "a.png", "width": WIDE}]), "have a size"),
        (coco(images=WIDE), "'images' is missing or is not"),
        (coco(images={"a": WIDE}), "'images' is missing or is not"),
        ("[" + 200_000 * "1," + "1]", "must hold an object"),
        ('{"a": ' + 5000 * "9" + "}", "must be valid json"),
        ("{" + ",".join(f'"{k}": 0' for k in WIDE) + "}", "'images' is missing or is not"),
    ],
)  # fmt: skip
def test_a_json_is_refused_in_a_few_words(tmp_path, text, message):
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    (tmp_path / "train.json").write_text(text.replace(f'"{DEEP}"', NESTED))
    found = read_all(str(tmp_path / "train.json"))
    assert message in found and "train.json" in found


@pytest.mark.parametrize("key", ["image_id", "category_id", "bbox", "iscrowd", "area"])
@pytest.mark.parametrize("value", [WIDE, DEEP, {"a": WIDE}, 90_000 * "\x1b[2J"])
def test_a_bad_annotation_is_counted_and_the_good_ones_stay(tmp_path, key, value):
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    good = {"image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9]}
    bad = {**good, "id": 2, key: value}
    text = coco(annotations=[{**good, "id": 1}, bad, bad])
    (tmp_path / "train.json").write_text(text.replace(f'"{DEEP}"', NESTED))
    dataset = read_coco(tmp_path / "train.json", tmp_path)
    assert dataset.num_boxes == 1
    summary = dataset.summary() + str(dataset.report.examples)
    assert len(summary) < 3000 and terminal_text(summary) == summary


def entities(levels):
    lines = ["<!ENTITY a0 'xxxxxxxxxx'>"]
    lines += [f"<!ENTITY a{k} '{10 * f'&a{k - 1};'}'>" for k in range(1, levels)]
    head = f"<!DOCTYPE annotation [{''.join(lines)}]>"
    return f"{head}<annotation><filename>&a{levels - 1};</filename></annotation>"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (entities(12), "DTD"),
        ('<!DOCTYPE a SYSTEM "file:///etc/passwd"><annotation/>', "DTD"),
        ("<annotation>" + 900_000 * "<a>", f"deeper than {MAX_XML_DEPTH}"),
        ("<annotation>" + 2_000_000 * "<a/>", f"more than {MAX_XML_ELEMENTS}"),
        ("<annotation>" + 2_700_000 * "<a/>", "larger than 10485760 bytes"),
        (f"<{90_000 * 'a'}/>", "no annotation of Pascal VOC"),
        (f"<annotation {90_000 * 'a'}='1'>", "no valid xml"),
        (f"<annotation><filename>{90_000 * 'a'}</filename></annotation>", ""),
        ("<annotation><object><object/></object></annotation>", "directly in"),
    ],
)  # fmt: skip
def test_an_xml_is_refused_in_a_few_words(tmp_path, text, message):
    (tmp_path / "a.xml").write_text(text)
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    found = read_all(str(tmp_path))
    assert message in found and (not message or "a.xml" in found)


def test_a_csv_is_refused_in_a_few_words(tmp_path):
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    head = "split,image,x1,y1,x2,y2,label\n"
    for text, message in (
        (90_000 * "x,", "must begin with a line"),
        (head + 90_000 * "x" + ",a.png,1,1,9,9,c\n", "`split` must be"),
        (head + f'train,a.png,1,1,9,9,"{200_000 * "c"}"\n', "must be CSV"),
        (head + 200_000 * "train,\x1b[2Jx\n", "at least one line with a label"),
        (head + "train,a.png,1,1,9,9,c\n" + 50_000 * "train,a.png,\n", ""),
    ):
        (tmp_path / "all.csv").write_text(text)
        found = read_all(str(tmp_path / "all.csv"))
        assert message in found and bool(message) == ("all.csv" in found)


@pytest.mark.parametrize(
    "name",
    ["train.json", "annotations/instances_train.json", "all.csv", "labels/a.txt"],
)
def test_a_file_that_is_too_large_is_refused_unread(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    (tmp_path / "images").mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "images" / "a.png")
    if name == "labels/a.txt":
        (tmp_path / "data.yaml").write_text(KEYS)
    with open(path, "wb") as file:
        file.truncate(2**40)  # sparse
    is_alone = name in ("train.json", "all.csv")
    found = read_all(str(path if is_alone else tmp_path))
    assert f"has {2**40} bytes, more than {MAX_TEXT_BYTES}" in found
    assert path.name in found or name == "labels/a.txt"


@pytest.mark.fuzz
def test_hundreds_of_mutated_files_are_read_or_refused(tmp_path):
    """Bytes of small good files are changed, repeated and cut out."""
    rng = np.random.default_rng(26)
    (tmp_path / "images").mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "images" / "a.png")
    xml = "<annotation><filename>a.png</filename><object><name>c</name><bndbox><xmin>1"
    xml += "</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>"
    xml += "</annotation>"
    files = {
        "data.yaml": f"names:\n  0: &a cell\n  1: dog\n{KEYS[:14]}\nx: *a\n",
        "train.json": coco(),
        "a.xml": xml,
        "all.csv": "split,image,x1,y1,x2,y2,label\ntrain,a.png,1,1,9,9,cell\n",
        "labels/a.txt": "0 0.5 0.5 0.25 0.5\n1 .4 .4 .1 .1\n",
    }
    (tmp_path / "labels").mkdir()
    places = {"a.xml": tmp_path, "labels/a.txt": tmp_path / "labels.yaml"}
    for name, text in files.items():
        outcomes = set()
        if name == "labels/a.txt":
            places[name].write_text(files["data.yaml"])
        for _ in range(inputs(60)):
            data = list(text.encode())
            for _ in range(rng.integers(1, 4)):
                place = rng.integers(len(data))
                kind = rng.integers(3)
                if kind == 0:
                    data[place] = int(rng.integers(256))
                elif kind == 1:
                    data[place:place] = data[: rng.integers(40)]
                else:
                    del data[place : place + rng.integers(1, 9)]
            path = tmp_path / name
            path.write_bytes(bytes(data))
            source = str(places.get(name, path))
            wrong = bool(read_all(source))
            if name == "labels/a.txt":  # Its bad lines are counted.
                wrong = wrong or read(source, training=False).num_boxes < 2
            outcomes.add(wrong)
            path.unlink()
        assert outcomes == {True, False}, name


def test_a_clipped_value_is_short_and_quick():
    itself = []
    itself.append(itself)
    deep = []
    for _ in range(5000):
        deep = [deep, deep]
    for value in (
        itself,
        deep,
        WIDE,
        10**5000,
        10**7 * "x",
        {0: deep},
        b"\x1b" * 99,
        None,
    ):
        start = time.monotonic()
        assert 0 < len(clipped(value)) <= 400
        assert time.monotonic() - start < 0.5
