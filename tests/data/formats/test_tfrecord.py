import dataclasses
import gzip
import itertools
import json
import os
import pathlib

import numpy as np
import pytest
from PIL import Image

from tests.fuzzing import inputs
from tests.image_files import exif
from tests.layouts import read
from tests.tf_examples import (
    LABEL_MAP,
    crc32c,
    example,
    features,
    framed,
    picture,
    record,
    write_records,
)
from vfnet_tf.cli.training_options import TrainingOptions, read_data
from vfnet_tf.data.formats import tfrecord
from vfnet_tf.data.formats.coco import read_coco
from vfnet_tf.data.formats.conversion import convert_dataset
from vfnet_tf.data.formats.readers import find_format, find_splits, open_dataset
from vfnet_tf.data.images.places import find_place, open_image
from vfnet_tf.data.pipeline import build_pipeline
from vfnet_tf.data.scan.checks import scan_splits
from vfnet_tf.inference.sources import expand_source, load_file


@pytest.fixture
def source(coco):
    """Four images of all kinds with boxes of COCO's decimals, a crowd, ids of their own."""
    coco.content["categories"] = [{"id": 9, "name": "a 'b' \\"}, {"id": 4, "name": "ü"}]
    for number in range(4):
        coco.image(40 + number, 60 + 7 * number, id=100 - number)
    coco.box([1.25, 2.5, 20.13, 30.33], image_id=100, category_id=9)
    coco.box([0.01, 0, 59.98, 39.99], image_id=100, category_id=4, area=77.5)
    coco.box([10, 20, 30, 10], image_id=99, category_id=4, iscrowd=1)
    coco.box([33.333, 1.001, 5.55, 6.6], image_id=99, category_id=4)
    coco.box([3, 1, 5, 6], image_id=97, category_id=9)
    turned = Image.open(coco.directory / "2.jpg").resize((42, 74))
    turned.save(coco.directory / "2.jpg", exif=exif(6))
    coco.content["images"][2] |= {"height": 42, "width": 74}
    Image.open(coco.directory / "3.jpg").save(coco.directory / "3.bmp")
    (coco.directory / "3.jpg").unlink()
    coco.content["images"][3]["file_name"] = "3.bmp"
    (coco.directory / "train.json").write_text(json.dumps(coco.content))
    return coco.directory


@pytest.fixture
def converted(source, tmp_path, monkeypatch):
    """`source` as TFRecords, two shards."""
    monkeypatch.setattr(tfrecord, "SHARD_BYTES", 12000)
    convert_dataset(find_splits(source), "tfrecord", tmp_path / "records")
    return tmp_path / "records"


def test_a_set_comes_back_as_it_was(source, converted):
    assert sorted(os.listdir(converted)) == [
        "label_map.pbtxt",
        "train-00000-of-00002.tfrecord",
        "train-00001-of-00002.tfrecord",
    ]
    sizes = [path.stat().st_size for path in converted.glob("*.tfrecord")]
    assert min(sizes) > 4000
    before = read(source, keep_empty=True)
    after = read(converted, keep_empty=True)
    assert after.class_names == before.class_names == ("ü", "a 'b' \\")
    assert after.category_ids == before.category_ids == (4, 9)
    assert len(before) == 4
    for old, new in zip(before, after, strict=True):
        assert pathlib.Path(new.path).name == pathlib.Path(old.path).name
        with open_image(new.path) as image:
            assert image.read() == pathlib.Path(old.path).read_bytes()
        for item in dataclasses.fields(old):
            if item.name not in ("path", "annotation_ids", "areas"):
                old_value, new_value = (getattr(r, item.name) for r in (old, new))
                np.testing.assert_array_equal(old_value, new_value, item.name)
    assert (before[0].areas[1], after[0].areas[1]) == (77.5, 77.5)
    content = json.loads(pathlib.Path(after.annotation_file).read_text())
    assert content["annotations"][0]["bbox"] == [1.25, 2.5, 20.13, 30.33]


def batches(path, **options):
    dataset = read(path, keep_empty=True)
    options = {"image_size": (64, 96), "batch_size": 2, "training": True} | options
    pipeline = build_pipeline(dataset, seed=5, **options)
    return list(itertools.chain(pipeline.as_numpy_iterator(), pipeline.take(1)))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"training": False},
        {"start_epoch": 3, "random_crop": 0.5},
        {"replicas": range(1, 2), "num_replicas": 2},
        {"cache_decoded": True},
    ],
)
def test_batches_equal_those_of_the_coco_form_bit_by_bit(source, converted, options):
    pairs = zip(batches(source, **options), batches(converted, **options), strict=True)
    for old, new in pairs:
        assert old.keys() == new.keys()
        for name in old:
            np.testing.assert_array_equal(old[name], new[name], name)


def test_only_shards_with_images_of_a_process_are_opened(converted):
    dataset = read(converted, keep_empty=True).subset(1)
    (converted / "train-00001-of-00002.tfrecord").unlink()
    options = {"image_size": (64, 96), "batch_size": 1, "training": False}
    assert len(list(build_pipeline(dataset, **options))) == 1


def test_records_written_by_hand_are_read(tmp_path):
    assert crc32c(b"123456789") == 0xE3069283
    objects = {
        "xmin": [0.1, 0.5, 0.25],
        "xmax": [0.4, 1.0, 0.75],
        "ymin": [0.4, 0.0, 0.2],
        "ymax": [0.8, 0.5, 0.9],
        "text": [b"cat", b"", b"dog"],
        "label": [1, 2, 2],
        "is_crowd": [0, 0, 1],
        "area": [12.5, 0.0, 3.0],
    }
    none = dict.fromkeys(("xmin", "xmax", "ymin", "ymax", "text", "label"))
    png = picture(seed=3, image_format="PNG")
    records = [
        framed(example(features(1, source_id=[b"40"], **objects), packed=False)),
        # Also without a size, and an image without a name.
        record(2, source_id=[b"7"], height=None, width=None, filename=[b"x/y\xc3\xbc"]),
        record(3, source_id=[b"12"], encoded=[png], filename=None, **none),
        record(4, source_id=[b"13"], filename=[b"C:\\d\\b.jpg"]),
    ]
    root = {"train.record": records, "label_map.pbtxt": LABEL_MAP}
    dataset = read(write_records(tmp_path / "data", root), keep_empty=True)
    assert dataset.class_names == ("cat", "dog") and dataset.category_ids == (1, 2)
    first, second, third, _ = dataset
    assert [one.image_id for one in dataset] == [40, 7, 12, 13]
    assert first.boxes.tolist() == [[10, 20, 40, 40], [50, 0, 100, 25]]
    assert first.labels.tolist() == [0, 1]
    assert first.crowd_boxes.tolist() == [[25, 10, 75, 45]]
    assert second.boxes.tolist() == [[10, 20, 40, 40]]
    assert (second.height, second.width) == (50, 100)
    names = [pathlib.Path(one.path).name for one in dataset]
    assert names == ["1.jpg", "yü", "12.png", "b.jpg"]
    assert len(third.boxes) == 0
    content = json.loads(pathlib.Path(dataset.annotation_file).read_text())
    areas = [annotation.get("area") for annotation in content["annotations"]]
    assert areas == [12.5, None, 3.0, None, None]
    place = find_place(second.path)
    data = (tmp_path / "data" / "train.record").read_bytes()
    # 12 bytes of the record's head come before its data.
    begin = len(records[0]) + 12 + place.skip
    assert data[begin:][: place.size] == picture(seed=2)


ONE = [record(1)]
SHARDS = {"a_train.record-00000-of-00002": ONE, "a_train.record-00001-of-00002": ONE}


@pytest.mark.parametrize(
    ("files", "found", "unused"),
    [
        ({"cells.tfrecord": ONE}, {"train": 1}, []),
        ({"cells_val.tfrecords": ONE}, {"val": 1}, []),
        (SHARDS, {"train": 2}, []),
        ({"x-00000-of-00001": ONE, "ckpt-00000-of-00001": b"weights"}, {"train": 1}, []),
        ({"train-00000-of-00002.tfrecord": ONE, "train-00001-of-00002.tfrecord": b""},
         {"train": 1}, []),
        ({"train/Cells.tfrecord": ONE, "valid/Cells.tfrecord": ONE * 2},
         {"train": 1, "val": 2}, []),
        ({"train_1.tfrec": ONE, "train_2.tfrec": ONE, "other.tfrec": ONE},
         {"train": 2}, ["other.tfrec"]),
        ({"train.tfrecord": ONE, "train/a.tfrecord": ONE}, {"train": 1},
         [os.path.join("train", "a.tfrecord")]),
        ({"a_train.record": ONE, "a_eval.record": ONE * 2}, {"train": 1, "val": 2}, []),
        ({"a_trainval.record": ONE * 2, "a_test.record": ONE}, {"train": 2, "test": 1}, []),
        ({"a_trainval.record": ONE * 2, "val.record": ONE}, {"val": 1},
         ["a_trainval.record"]),
        ({"val.tfrecord": ONE, "valid.tfrecord": ONE}, {"val": 1}, ["valid.tfrecord"]),
    ],
)  # fmt: skip
def test_splits_are_named_by_files_and_folders(tmp_path, files, found, unused):
    splits = find_splits(write_records(tmp_path / "data", files))
    assert splits.format == "tfrecord" and splits.unused == unused
    datasets = {s: read_coco(*splits[s], training=False) for s in splits}
    assert {split: len(dataset) for split, dataset in datasets.items()} == found


def test_roboflow_exports_have_a_label_map_in_each_folder(tmp_path):
    text = 'item {\n    name: "cat",\n    id: 1,\n    display_name: "Cat"\n}\n'
    files = {}
    for split in ("train", "valid", "test"):
        files[f"{split}/Cells.tfrecord"] = ONE
        files[f"{split}/Cells_label_map.pbtxt"] = text
    datasets = open_dataset(write_records(tmp_path / "data", files))
    assert list(datasets) == ["train", "val", "test"]
    assert all(dataset.class_names == ("Cat",) for dataset in datasets.values())


def test_a_file_stands_for_its_shards_and_for_every_split(tmp_path):
    root = write_records(tmp_path, {**SHARDS, "label_map.pbtxt": LABEL_MAP})
    splits = find_splits(root / "a_train.record-00001-of-00002")
    assert len(read_coco(*splits.locate("val"), training=False)) == 2
    forced = f"tfrecord:{root}"
    assert find_format(forced) == ("tfrecord", str(root), [])


def test_records_without_a_training_split_are_told_its_name(tmp_path):
    root = write_records(tmp_path / "data", {"val.tfrecord": ONE})
    with pytest.raises(
        ValueError, match="call its file, folder or key train"
    ) as caught:
        read_data(TrainingOptions(data=str(root)), None)
    assert "instances" not in str(caught.value)


def test_a_pattern_is_refused_with_what_stands_for_all_shards(tmp_path):
    write_records(tmp_path, SHARDS)
    for place in (tmp_path, f"tfrecord:{tmp_path}", "ram://nothing"):
        for name in ("a_*", "a_train.record-?????-of-00002", "a_train.record@2"):
            with pytest.raises(ValueError, match="place of a pattern .* one of them"):
                find_splits(f"{place}/{name}")
    with pytest.raises(ValueError, match=r"or tfds:NAME\. Received"):
        find_splits(f"{tmp_path}/a_train")


def test_the_label_map_may_lie_above_and_beside_other_texts(tmp_path):
    files = {
        "valid/a.tfrecord": ONE,
        "my_labels.pbtxt": LABEL_MAP,
        "graph.pbtxt": "node",
    }
    root = write_records(tmp_path, files)
    for path in (root, root / "valid", root / "valid" / "a.tfrecord"):
        dataset = read(path, "val", training=False)
        assert dataset.class_names == ("cat", "dog")
        assert "my_labels.pbtxt)" in dataset.summary()
    (root / "valid").rename(root / "other")
    dataset = read(root / "other")
    assert dataset.class_names == ("cat", "dog")
    assert "label map is taken from" in dataset.summary()


def test_without_a_label_map_classes_are_the_texts_of_all_splits(tmp_path):
    texts = ([b"dog"], [b""], [b"k\xe4fer"])
    records = [record(n, text=text) for n, text in enumerate(texts)]
    files = {"train.tfrecord": records, "val.tfrecord": ONE}
    datasets = open_dataset(write_records(tmp_path / "data", files))
    assert datasets["train"].class_names == ("cat", "dog")
    problems = [p.text + ": " + p.reason for p in datasets["train"].report.problems]
    assert problems == [
        "train.tfrecord record 2 object 1 (label 1, text ''): "
        "object has no class text, and there is no label map",
        "train.tfrecord record 3 object 1 (label 1, text 'k\\udce4fer'): "
        "category is not in the file",
    ]
    assert datasets["val"][0].labels.tolist() == [0]


def damaged(data, position):
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


GOOD = record(1)
PAIR = {"xmin": [0.1, 0.2]}
FOREIGN = framed(example({"image": [b"x"], "label": [3]}))
TWICE = "item { id: 1 name: 'a' } item { id: 1 name: 'b' }"
MAP = {"label_map.pbtxt": LABEL_MAP}
PIXELS = [record(1, xmin=[10], ymin=[20], xmax=[40], ymax=[40])] * 2
NO_TEXT = {"train.tfrecord": [record(1, text=None)]}


@pytest.mark.parametrize(
    ("files", "words"),
    [
        # Files.
        ({"train.tfrecord": GOOD + GOOD[:-9]},
         "train.tfrecord/record-2@ cannot be read file ends within it Copy the file"),
        ({"train.tfrecord": GOOD + GOOD[:7]}, "record-2@ file ends within it"),
        ({"train.tfrecord": GOOD[:7]}, "record-1@ file ends within it"),
        ({"train.tfrecord": GOOD + damaged(GOOD, 60) + GOOD},
         "1 bad of 3 images train.tfrecord/record-2@ wrong checksum: copy the file"),
        ({"train.tfrecord": GOOD + damaged(GOOD, 3) + GOOD},
         "1 bad of 2 images train.tfrecord/record-2@ length has a wrong checksum"),
        ({"train.tfrecord": b"<html>" * 9}, "train.tfrecord record 1 begins with <html>"),
        ({"train.tfrecord": gzip.compress(GOOD)}, "train.tfrecord GZIP unpack it"),
        ({"train.tfrecord.gz": gzip.compress(GOOD)}, "train.tfrecord.gz GZIP unpack it"),
        ({"train-00000-of-00003.tfrecord": ONE, "train-00002-of-00003.tfrecord": ONE},
         "train-00001-of-00003.tfrecord copy 2 of 3"),
        ({"train.tfrecord": b""}, "at least one record copy train.tfrecord 0 bytes"),
        ({"train-00000-of-00001": ONE, "train-00000-of-00002": ONE,
          "train-00001-of-00002": ONE}, "remove the older one train-?-of-00002"),
        ({"a.tfrecord": ONE, "b.tfrecord": ONE}, "rename them a b"),
        ({"dataset_info.json": "{}", "x-train.tfrecord": ONE}, "give them as tfds:"),
        # Label maps.
        (NO_TEXT, "label map label_map.pbtxt item { id: 1 name: 'cat' } neither"),
        ({"label_map.pbtxt": b"\xff\xfei", **NO_TEXT}, "label_map.pbtxt no valid UTF-16"),
        ({"label_map.pbtxt": TWICE, **NO_TEXT}, "label_map.pbtxt line 1 second the id 1"),
        ({"a.pbtxt": LABEL_MAP, "b.pbtxt": LABEL_MAP, **NO_TEXT}, "one label map a.pbtxt"),
        ({"label_map.pbtxt": "", **NO_TEXT}, "label_map.pbtxt it has no item"),
        ({"my_labelmap.pbtxt": "1: cat", "train.tfrecord": ONE},
         "my_labelmap.pbtxt line 1: '1' must be item"),
        ({"annotations/a.pbtxt": LABEL_MAP, "annotations/b.pbtxt": LABEL_MAP, **NO_TEXT},
         "with neither several label maps annotations/a.pbtxt copy the right one"),
        ({"train.tfrecord": [record(1, label=[0]), record(2)], **MAP},
         "count from 0 item { id: 0 name: 'background' } labels 0, 1 ids 1 to 2"),
        ({"train.tfrecord": [record(1, label=[0], text=None)],
          "label_map.pbtxt": "item { id: 1 name: 'cat' }"}, "count from 0 labels 0"),
        # Records.
        ({"a_train.tfrecord": ONE * 3, **MAP,
          "train.tfrecord": [*PIXELS, record(1, xmin=[0.0], ymin=[0.0])]},
         "divide xmin and xmax by its width 2 of 3 boxes train.tfrecord record 1 object 1 "
         "(10, 20, 40, 40)"),
        ({"train.tfrecord": framed(b"\xff" * 30)}, "record-1@ is no tf.train.Example"),
        ({"train.tfrecord": FOREIGN},
         "record-1@ no image in image/encoded Object Detection API image, label"),
        ({"train.tfrecord": GOOD + record(1, encoded=[b"GIF89a, a picture"])},
         "train.tfrecord/record-2@ /1.jpg is GIF convert it to 8-bit JPEG or PNG"),
        ({"train.tfrecord": [record(1, encoded=[picture()[:900]])]}, "record-1@ truncated"),
        ({"train.tfrecord": [record(1, height=[51])]},
         "record-1@ is 50 high and 100 wide, its annotation says 51 and 100"),
        ({"train.tfrecord": [record(1, height=[-2])]}, "record-1@ positive integers -2"),
        ({"train.tfrecord": [record(1, height=[50, 50])]},
         "record-1@ 2 values of image/height must have one"),
        ({"train.tfrecord": [record(1, **PAIR)]},
         "record-1@ lists of different lengths 2 values of bbox/xmin 1 of bbox/ymax"),
        ({"train.tfrecord": [record(1, is_crowd=[0, 1])]}, "record-1@ 2 of is_crowd"),
    ],
)  # fmt: skip
def test_each_fault_is_named_with_file_and_record(tmp_path, files, words):
    root = write_records(tmp_path / "data", files)
    with pytest.raises(ValueError) as caught:
        read(root)
    for word in words.split():
        assert word in str(caught.value), f"{word!r} is not in {caught.value}"


@pytest.mark.parametrize(
    ("changes", "reason", "words"),
    [
        ({"label": [3], "text": None}, "class is not in the label map", "(label 3"),
        ({"label": [1.5]}, "class is not in the label map", "(label 1.5"),
        ({"label": None, "text": [b"cow"]}, "class is not in the label map", "'cow'"),
        ({"label": [2]}, "class text and label map disagree", "(label 2, text 'cat')"),
        ({"label": None, "text": None}, "object has neither a label nor a class", ""),
        ({"xmin": [12.0]}, "corners are not in parts of the image", "(12, 0.4, 0.4"),
        ({"xmin": [float("nan")]}, "box is not four finite numbers", "nan"),
        ({"xmin": [b"?"]}, "box is not four finite numbers", "'?'"),
        ({"xmin": [-0.5], "xmax": [0.0]}, "box lies outside the image", ""),
        ({"xmin": [0.5]}, "box has a width or height <= 0", ""),
        ({"xmax": [1.5]}, "clipped", ""),
        ({"difficult": [2]}, "flag is neither true nor false", "difficult=2"),
    ],
)
def test_objects_that_cannot_be_used_are_dropped_and_named(
    tmp_path, changes, reason, words
):
    files = {
        "train.tfrecord": [GOOD, record(2, **changes)],
        "label_map.pbtxt": LABEL_MAP,
    }
    report = read(write_records(tmp_path / "data", files)).report
    summary = report.summary()
    assert reason in summary and words in summary, summary
    assert "train.tfrecord record 2 object 1" in summary, summary
    assert len(report.problems) == 1


TURNED = {"encoded": [picture(exif=exif(6))]}
UPRIGHT = {"height": [100], "width": [50]}
BACKGROUND = "item { id: 0 name: 'background' }" + LABEL_MAP


@pytest.mark.parametrize(
    ("files", "kind", "words"),
    [
        ({"data/train.tfrecord": ONE}, "no_label_map", "no label map of the objects: cat"),
        ({"data/train.tfrecord": ONE, "annotations/label_map.pbtxt": LABEL_MAP},
         "distant_label_map", "annotations/label_map.pbtxt"),
        ({"data/train.tfrecord": ONE, "data/label_map.pbtxt": BACKGROUND},
         "background_item", "item 0, background no class"),
        ({"data/train.tfrecord": [record(1, label=[7]),
                                  record(2, label=[7], text=[b"dog"])]},
         "doubtful_labels", "label 7 has the class texts cat, dog"),
        ({"data/train.tfrecord": ONE, "data/val.tfrecord": [record(2, label=[8])]},
         "doubtful_labels", "class text cat has the labels 1, 8"),
        ({"data/train.tfrecord": [record(1, label=[0]), *ONE, record(2, label=[2])],
          "data/label_map.pbtxt": LABEL_MAP}, "doubtful_labels", "label 0 begin with 1"),
        ({"data/train-00000-of-00002": ONE, "data/train-00001-of-00002": b""},
         "file_without_records", "train-00001-of-00002 has 0 bytes"),
        ({"data/train.tfrecord": [record(1, height=None, width=None, **TURNED)]},
         "doubtful_orientation", "1 images EXIF train.tfrecord record 1"),
        ({"data/train.tfrecord": [record(1, **UPRIGHT, **TURNED)]},
         "exif_orientation", ""),
    ],
)  # fmt: skip
def test_doubts_are_said_by_summary_and_scan(tmp_path, files, kind, words):
    root = write_records(tmp_path, files) / "data"
    findings = scan_splits(find_splits(root), use_tensorflow=False).findings
    found = {one.kind: one.text for one in findings if one.split == "train"}
    doubts = {"doubtful_labels", "distant_label_map", "background_item"}
    doubts |= {"file_without_records", "doubtful_orientation"}
    assert found.keys() & doubts <= {kind}
    for word in words.split():
        assert word in found[kind], found[kind]
        assert word in read(root).summary()
    names = {"no_label_map": ("cat",), "background_item": ("cat", "dog")}
    names["distant_label_map"] = ("cat", "dog")
    if kind in names:
        assert read(root).class_names == names[kind]


def test_bad_records_are_skipped_on_request_and_others_keep_their_ids(tmp_path):
    records = [record(n, source_id=[b"%d" % (n + 5)]) for n in range(3)]
    records[1] = damaged(records[1], 50)
    root = write_records(tmp_path / "data", {"train.tfrecord": records})
    dataset = read(root, skip_bad_images=True)
    assert [one.image_id for one in dataset] == [5, 7]
    (bad,) = dataset.report.bad_images
    assert bad.code == "corrupt_image" and "record-2@" in bad.name


def test_the_index_is_made_once_and_anew_when_a_file_changes(tmp_path, monkeypatch):
    files = {"train.tfrecord": ONE, "label_map.pbtxt": LABEL_MAP}
    root = write_records(tmp_path / "data", files)
    calls, read_files = [], tfrecord._read_files

    def counted(*args):
        calls.append(args)
        return read_files(*args)

    monkeypatch.setattr(tfrecord, "_read_files", counted)
    assert len(read(root)) == len(read(root)) == len(calls) == 1
    write_records(root, {"train.tfrecord": ONE * 2})
    assert len(read(root)) == len(read(root)) == len(calls) == 2
    write_records(root, {"label_map.pbtxt": LABEL_MAP.replace("cat", "Cat")})
    with pytest.raises(ValueError, match="class text and label map disagree"):
        read(root)
    assert len(calls) == 3


def test_progress_counts_records(tmp_path, progress):
    root = write_records(tmp_path / "data", {"train.tfrecord": ONE * 3})
    assert find_splits(root, progress)["train"]
    assert progress.told == [3, 1, 1, 1, "closed"]


def test_scan_finds_in_records_what_it_finds_in_files(source, converted):
    results = [scan_splits(find_splits(path)) for path in (source, converted)]
    old, new = (
        [(one.kind, one.split, one.count) for one in result.findings]
        for result in results
    )
    assert old == new
    assert {"exif_orientation", "converted_format"} <= {kind for kind, *_ in old}
    path = converted / "train-00001-of-00002.tfrecord"
    path.write_bytes(damaged(path.read_bytes(), 90))
    findings = scan_splits(find_splits(converted)).findings
    (finding,) = (one for one in findings if one.kind == "corrupt_image")
    assert "train-00001-of-00002.tfrecord/record-1@" in finding.text
    assert "checksum" in finding.text
    assert finding.pictures[0].path.startswith(str(path))


@pytest.mark.parametrize("target", ["coco", "voc", "yolo", "csv", "tfrecord"])
def test_images_are_taken_out_of_records(converted, tmp_path, target):
    out = tmp_path / "again"
    made = convert_dataset(find_splits(converted), target, out)
    assert (made.num_images, made.num_boxes) == (4, 4)
    before, after = (read(path, keep_empty=True) for path in (converted, out))
    for old, new in zip(before, sorted(after, key=lambda r: os.path.basename(r.path)),
                        strict=True):  # fmt: skip
        with open_image(old.path) as first, open_image(new.path) as second:
            assert first.read() == second.read()


def test_links_are_refused(source, converted, tmp_path):
    for path, target in ((source, "tfrecord"), (converted, "voc")):
        with pytest.raises(ValueError, match="cannot be linked.*--images copy"):
            convert_dataset(find_splits(path), target, tmp_path / "x", link=True)


def test_an_image_in_a_record_is_a_source_of_predictions(source, converted):
    path = read(converted, keep_empty=True)[2].path
    assert expand_source(path) == ([path], True)
    pixels = load_file(path)
    np.testing.assert_array_equal(pixels, load_file(str(source / "2.jpg")))
    assert pixels.shape == (42, 74, 3)


def test_remote_records_are_read_through_tensorflow(converted, source):
    import tensorflow as tf

    # `ram://` is TensorFlow's file system in memory; gs:// goes the same way.
    root = "ram://bucket/set"
    for name in os.listdir(converted):
        with tf.io.gfile.GFile(f"{root}/{name}", "wb") as file:
            file.write((converted / name).read_bytes())
    for path in (root, f"tfrecord:{root}/", f"{root}/train-00000-of-00002.tfrecord"):
        assert len(read(path, keep_empty=True)) == 4
    for old, new in zip(batches(source), batches(root), strict=True):
        np.testing.assert_array_equal(old["images"], new["images"])
    with pytest.raises(ValueError, match="Only TFRecords are read"):
        find_splits("voc:ram://bucket/set")
    with pytest.raises((ValueError, OSError), match="ram://nothing"):
        find_splits("ram://nothing/here")


def mutated(data, rng, places, kinds=(0, 1, 2)):
    """Bytes with one or two of them changed (0), left out (1) or put in (2)."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 3)):
        kind, place = rng.choice(kinds), int(rng.choice(places)) % len(data)
        if kind == 0:
            data[place] = rng.integers(256)
        elif kind == 1:
            del data[place : place + int(rng.integers(1, 9))]
        else:
            data[place:place] = rng.bytes(rng.integers(1, 9))
    return bytes(data)


@pytest.mark.fuzz
def test_damaged_files_are_refused_or_read_as_they_were(tmp_path):
    rng, whole = np.random.default_rng(0), record(0) + record(1) + record(2)
    root = write_records(tmp_path / "data", {"train.tfrecord": whole})
    options = {"skip_bad_images": True, "check_images": "header"}
    expected = [one.boxes.tolist() for one in read(root, **options)]
    num_read = 0
    count = inputs(60)
    for _ in range(count):
        data = mutated(whole, rng, range(len(whole)))
        write_records(root, {"train.tfrecord": data})
        try:
            dataset = read(root, **options)
        except ValueError as error:
            assert "train.tfrecord" in str(error)
            continue
        num_read += 1
        assert all(one.boxes.tolist() == expected[0] for one in dataset)
        assert len(dataset) == 3 or dataset.report.bad_images or data[-4:] != whole[-4:]
    assert count / 3 < num_read < count


@pytest.mark.fuzz
def test_damaged_examples_under_right_checksums_are_bad_images_or_read(tmp_path):
    rng, plain = np.random.default_rng(1), example(features())
    begin = plain.index(picture()) - 40
    # The bytes of the image are left alone: decoders judge those.
    places = [*range(begin + 40), *range(begin + 40 + len(picture()), len(plain))]
    count = inputs(300)
    kinds = [(0,), (0, 1, 2)] * (count // 2)
    records = [framed(mutated(plain, rng, places, some)) for some in kinds]
    files = {"train.tfrecord": [record(0), *records], "label_map.pbtxt": LABEL_MAP}
    root = write_records(tmp_path / "data", files)
    dataset = read(root, skip_bad_images=True, check_images="header", keep_empty=True)
    report = dataset.report
    assert len(dataset) + len(report.bad_images) == 1 + count // 2 * 2
    assert len(dataset) > count // 15 and len(report.bad_images) > count // 3
    assert all("/record-" in bad.name for bad in report.bad_images)
    for one in dataset:
        assert np.isfinite(one.boxes).all() and set(one.labels) <= {0, 1}
