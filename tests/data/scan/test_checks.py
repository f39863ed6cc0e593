import hashlib
import io
import json
import os
import pathlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from tests import planted_defects
from tests.image_files import exif
from tests.layouts import CSV, LABEL, XML, YOLO, coco_json, write_layout
from tests.planted_defects import encoded
from vfnet_tf.data.formats import coco as coco_reader
from vfnet_tf.data.formats.coco import find_coco_splits
from vfnet_tf.data.formats.readers import find_splits
from vfnet_tf.data.scan import checks
from vfnet_tf.data.scan import kinds as known
from vfnet_tf.data.scan.checks import scan_splits, unreadable
from vfnet_tf.data.scan.findings import Finding, ScanResult
from vfnet_tf.data.scan.kinds import KINDS
from vfnet_tf.data.scan.lookalikes import group_lookalikes
from vfnet_tf.reports.scan import scan_page

STOPPING = {"unreadable_split", "no_train_split", "no_validation_split"}
STOPPING |= {"no_train_boxes", "dropped_box", "unreadable_data", "no_usable_image"}
# Of other formats, or known to `find_splits` alone.
STOPPING |= {"unused_labels", "unused_split", "no_label_map", "doubtful_labels"}
STOPPING |= {"file_without_records", "doubtful_orientation", "distant_label_map"}
STOPPING |= {"background_item"}


def states(root):
    """dict path -> content and time of each file below a folder."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {
        path: (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in files
    }


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    root = tmp_path_factory.mktemp("planted")
    planted_defects.write(root)
    return root


@pytest.fixture(scope="module")
def result(planted):
    before = states(planted)
    result = scan_splits(find_coco_splits(planted), image_size=(128, 160))
    assert states(planted) == before, "a scan never writes to the data"
    return result


@pytest.mark.parametrize("kind", sorted(set(KINDS) - STOPPING))
def test_each_planted_defect_is_found_and_named(result, kind):
    texts = [finding.text for finding in result.by_kind()[kind]]
    for part in planted_defects.EXPECTED[kind]:
        assert any(part in text for text in texts), texts


def test_a_defect_is_found_once_and_nothing_else_is(result):
    numbers = {kind: len(found) for kind, found in result.by_kind().items()}
    twice = {"undecodable_image", "corrupt_image", "leakage", "degenerate_box"}
    # One for each split: those without a Cell, and what is small in each.
    several = {"class_without_boxes": 3, "small_box": 1, "commonly_small_boxes": 1}
    for kind, number in numbers.items():
        assert number == several.get(kind, 1 + (kind in twice)), (kind, numbers)
    levels = [finding.level for finding in result.findings]
    assert levels == sorted(levels, key=known.LEVELS.index)
    assert not result.is_safe() and not result.is_safe(strict=True)


def test_pictures_show_the_boxes_as_the_file_has_them(result):
    found = result.by_kind()
    ((picture,),) = [finding.pictures for finding in found["outside_box"]]
    assert pathlib.Path(picture.path).name == "boxes.jpg"
    assert picture.boxes == ((200, 10, 220, 30),) and picture.names == ()
    ((picture,),) = [finding.pictures for finding in found["conflicting_box"]]
    assert picture.boxes == ((70, 10, 120, 60), (70, 10, 120, 60))
    assert picture.names == ("cell", "platelet")
    ((picture,),) = [finding.pictures for finding in found["bad_box"]]
    assert picture.boxes == ()
    names = [
        [pathlib.Path(picture.path).name for picture in finding.pictures]
        for finding in found["leakage"]
    ]
    expected = [["leak.jpg", "leaked.jpg"], ["photo.jpg", "photo_small.jpg"]]
    assert sorted(names) == expected


def test_the_json_holds_all_and_has_the_documented_keys(result):
    content = json.loads(json.dumps(result.to_json(), allow_nan=False))
    text = pathlib.Path(__file__).parents[3].joinpath("docs/scan.md").read_text()
    split = content["splits"]["train"]
    finding = next(f for f in content["findings"] if f["images"])
    keys = [*content, *split, *finding, *finding["images"][0]]
    missing = [key for key in (*keys, *KINDS) if f"`{key}`" not in text]
    assert not missing, f"describe in docs/scan.md: {missing}"
    assert content["version"] == 1 and content["image_size"] == [128, 160]
    assert len(content["findings"]) == len(result.findings)
    assert sum(content["num_findings"].values()) == len(result.findings)
    assert content["is_safe"] is False
    (small,) = [f for f in content["findings"] if f["kind"] == "many_objects"]
    assert small["level"] == "warning" and small["split"] == "train"
    assert len(small["images"][0]["boxes"]) == 320


@pytest.fixture
def val(coco, tmp_path):
    (tmp_path / "val").mkdir()
    writer = type(coco)(tmp_path / "val")
    fresh(writer, 50)
    writer.box([5, 5, 20, 20])
    return writer


def fresh(writer, seed, height=60, width=80, **changes):
    """An image of its own: those of two writers would be the same."""
    path = writer.image(height, width, **changes)
    path.write_bytes(encoded(seed, height, width))
    return path


def scanned(image_size=(100, 300), progress=checks._NoProgress, **writers):
    splits = {name: (w.save(), w.directory) for name, w in writers.items()}
    options = {"image_size": image_size, "progress": progress}
    return scan_splits(splits, use_tensorflow=False, **options)


def fill(writer, count=10):
    """An image with a row of good boxes."""
    path = fresh(writer, 40, 100, 300)
    for number in range(count):
        box = [25 * number, 10, 20, 30]
        writer.box(box, image_id=len(writer.content["images"]))
    return path


def kinds_of(result):
    return [finding.kind for finding in result.findings]


def test_a_clean_dataset_has_no_finding(coco, val):
    fill(coco)
    result = scanned(train=coco, val=val)
    assert result.findings == [] and result.is_safe(strict=True)
    assert not (coco.directory.parent / "cache").exists()


def test_statistics_by_hand(coco, val):
    fill(coco, 10)
    fresh(coco, 41, 50, 40)
    coco.box([0, 0, 20, 50], image_id=2)
    coco.box([0, 0, 40, 40], image_id=2, iscrowd=1)
    # 100x300 fits into 50x100 by a third, 50x40 by 5 / 4.
    split = scanned(train=coco, val=val, image_size=(50, 100)).splits["train"]
    np.testing.assert_array_equal(split.image_sizes, [[100, 300], [50, 40]])
    np.testing.assert_array_equal(split.objects_per_image, [10, 1])
    assert split.class_counts == {"cell": 11}
    numbers = split.to_json()
    assert numbers["images"] == 2 and numbers["boxes"] == 11
    assert numbers["crowd_regions"] == 1 and numbers["boxes_by_class"] == {"cell": 11}
    assert numbers["image_width"] == {"min": 40, "mean": 170, "max": 300}
    # Heights 30 * 33 / 100 and 50 * 63 / 50, as sizes are whole pixels.
    mean = round((10 * 9.9 + 63) / 11, 3)
    expected = {"min": 9.9, "mean": mean, "max": 63}
    assert numbers["box_height_at_training_size"] == expected
    np.testing.assert_allclose(split.aspect_ratios, [20 / 30] * 10 + [20 / 50])


def test_small_is_meant_at_the_training_size(coco, val):
    fill(coco, 10)
    coco.box([10, 50, 24, 16])
    coco.box([50, 50, 24, 15])
    result = scanned(train=coco, val=val, image_size=(50, 150))  # half
    (finding,) = result.findings
    assert finding.kind == "small_box" and finding.count == 1
    assert "1 of 12 boxes (8.3 %) have a side below 8 pixels" in finding.text
    assert finding.pictures[0].boxes == ((50, 50, 74, 65),)
    assert scanned(train=coco, val=val, image_size=(100, 300)).findings == []


def test_the_smallest_boxes_are_listed_first_and_not_more_than_a_hundred(coco, val):
    fresh(coco, 1, 100, 3000)
    for number in range(120):
        coco.box([25 * number, 10, 20, 8 - number / 20])
    result = scanned(train=coco, val=val, image_size=(100, 3000))
    found = result.by_kind()
    assert list(found) == ["commonly_small_boxes", "small_box"]
    (finding,) = found["small_box"]
    assert finding.count == 119 and len(finding.pictures) == checks.MAX_LISTED_BOXES
    assert finding.pictures[0].boxes[0][0] == 25 * 119


def test_all_bad_boxes_are_found_not_three(coco, val):
    fill(coco)
    for number in range(7):
        coco.box([5, 5, -number, 9])
    result = scanned(train=coco, val=val)
    assert kinds_of(result) == ["degenerate_box"] * 7
    assert "annotation 17 in 0.jpg ([5, 5, -6, 9])" in result.findings[-1].text


def test_a_reason_that_is_not_known_is_a_warning_all_the_same(coco, val, monkeypatch):
    fill(coco)
    coco.box([5, 5, 0, 9])
    monkeypatch.setattr(coco_reader, "BAD_SIZE", "box is on its head")
    (finding,) = scanned(train=coco, val=val).findings
    assert finding.kind == "dropped_box" and "on its head" in finding.text


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        ([10, 10, 50, 40], ["duplicate_box"]),
        ([10, 10, 50, 36], ["duplicate_box"]),  # IoU 0.9
        ([10, 10, 50, 35], []),
        ([70, 60, 50, 40], []),  # no overlap
    ],
)
def test_two_boxes_on_one_object(coco, val, second, expected):
    fill(coco)
    fresh(coco, 3, 100, 130)
    coco.box([10, 10, 50, 40], image_id=2)
    coco.box(second, image_id=2)
    assert kinds_of(scanned(train=coco, val=val)) == expected


def test_exif_that_the_annotated_size_ignores_is_a_conflict(coco, val):
    fill(coco)
    path = fresh(coco, 3, 60, 80)
    path.write_bytes(encoded(3, 60, 80, exif=exif(6)))
    (finding,) = scanned(train=coco, val=val).findings
    assert finding.kind == "size_conflict"
    assert "(EXIF orientation 6 applied)" in finding.text


def copies(coco, val, change, seed=7):
    """Kinds found where val has a changed copy of a picture of train."""
    fill(coco)
    fresh(coco, seed, 240, 320)
    coco.box([5, 5, 80, 80], image_id=2)
    image = Image.open(io.BytesIO(encoded(seed, 240, 320)))
    content = change(image)
    copy = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    path = val.image(copy.height, copy.width)
    path.write_bytes(content)
    val.box([5, 5, 80, 80], image_id=2)
    result = scanned(train=coco, val=val)
    found = [f for f in result.findings if f.kind != "exif_orientation"]
    assert all("almost the same pixels" in finding.text for finding in found)
    return [finding.kind for finding in found]


def turned(image):
    """The same picture, stored lying on its side as telephones do."""
    lying = image.transpose(Image.Transpose.ROTATE_90)
    return encoded(0, image=lying, exif=exif(6))


COPIES = {
    "turned": turned,
    "quality 40": lambda image: encoded(0, image=image, quality=40),
    "PNG": lambda image: encoded(0, image=image, format="PNG"),
    "smaller": lambda image: encoded(0, image=image.resize((200, 150)), quality=80),
    "grey": lambda image: encoded(0, image=image.convert("L")),
    "comment": lambda image: encoded(0, image=image, comment=b"another hash"),
}


@pytest.mark.parametrize("change", COPIES.values(), ids=COPIES)
def test_a_copy_encoded_anew_leaks_too(coco, val, change):
    assert copies(coco, val, change) == ["leakage"]


def moved(image):
    """The same camera a moment later: something of a twentieth of the width moved."""
    image = image.copy()
    image.paste(image.crop((100, 100, 116, 116)), (200, 40))
    return encoded(0, image=image)


OTHERS = {
    "moved": moved,
    "mirrored": lambda image: encoded(0, image=ImageOps.mirror(image)),
    "cropped": lambda image: encoded(0, image=image.crop((0, 0, 300, 230))),
    "stretched": lambda image: encoded(0, image=image.resize((200, 180))),
    "darker": lambda image: encoded(0, image=image.point(lambda value: value * 0.9)),
}


@pytest.mark.parametrize("change", OTHERS.values(), ids=OTHERS)
def test_a_picture_that_differs_is_no_copy(coco, val, change):
    assert copies(coco, val, change) == []


def test_real_photographs_are_no_copies_but_found_when_saved_again(
    shared_data, tmp_path
):
    splits = find_coco_splits(shared_data("coco_mini"))
    thumbs, ratios, count = [], [], 0
    for _, folder in splits.values():
        for path in sorted(pathlib.Path(folder).glob("*.jpg"))[:20]:
            image = Image.open(path)
            again = Image.open(io.BytesIO(encoded(0, image=image, quality=50)))
            half = image.resize((image.width // 2, image.height // 2))
            for copy in (image, again, half):
                thumb, _ = checks._thumbnail(copy, 1)
                thumbs.append(np.frombuffer(thumb, "uint8"))
                ratios.append(copy.width / copy.height)
            count += 1
    groups = group_lookalikes(np.array(thumbs), np.array(ratios))
    assert groups == [[3 * n, 3 * n + 1, 3 * n + 2] for n in range(count)]


def test_lookalikes_by_hand():
    rows = np.full((6, 256), 100, "uint8")
    rows[:, ::2] = 160  # a contrast of 30
    rows[1] += 3  # root mean square 3
    rows[2] += 6  # 6 from the first, 3 from the second: one group with it
    rows[3] += 11
    rows[4, :4] += 24  # cells differ by more than 16, also from the third
    assert group_lookalikes(rows, np.ones(6)) == [[0, 1, 2, 5], [3], [4]]
    ratios = np.array([1, 1, 1, 1, 1, 1.03])
    assert group_lookalikes(rows, ratios) == [[0, 1, 2], [3], [4], [5]]
    # With a contrast of 5 a difference of 1 is little, of 2 it is not; with none no
    # picture is known again.
    faint = np.full((5, 256), 10, "uint8")
    faint[:3, ::2] = 20
    faint[1] += 1
    faint[2] -= 2
    assert group_lookalikes(faint, np.ones(5)) == [[0, 1], [2], [3], [4]]


def test_lookalikes_are_found_across_the_blocks_of_the_search():
    thumbs = np.random.default_rng(0).integers(0, 256, (5000, 256)).astype("uint8")
    thumbs[4990] = thumbs[3]
    thumbs[2500] = thumbs[3]
    thumbs[4000] = thumbs[3000]
    groups = group_lookalikes(thumbs, np.ones(5000))
    larger = [group for group in groups if len(group) > 1]
    assert larger == [[3, 2500, 4990], [3000, 4000]]
    assert group_lookalikes(thumbs[:0], np.ones(0)) == []


def test_one_file_in_two_splits_is_looked_at_once_and_leaks(coco, val, progress):
    fill(coco)
    path = fresh(coco, 60)
    coco.box([5, 5, 20, 20], image_id=2)
    entry = {"id": 9, "file_name": str(path), "height": 60, "width": 80}
    val.content["images"].append(entry)
    val.box([5, 5, 20, 20], image_id=9)
    assert kinds_of(scanned(train=coco, val=val, progress=progress)) == ["leakage"]
    assert progress.told == [2, 1, 1, "closed", 1, 1, "closed"]


def test_without_boxes_or_splits_there_is_nothing_to_train_on(coco, val):
    fresh(coco, 4)
    found = kinds_of(scanned(train=coco))
    assert found[0] == "no_train_boxes" and "no_validation_split" in found
    result = scanned(val=val)
    assert kinds_of(result) == ["no_train_split"] and not result.is_safe()


def test_a_split_that_cannot_be_read_is_an_error_and_the_other_is_scanned(coco, val):
    fill(coco)
    coco.box([5, 5, 0, 9])
    val.save = lambda: val.file.write_text("{") and val.file
    result = scanned(train=coco, val=val)
    assert kinds_of(result) == ["unreadable_split", "degenerate_box"]
    assert "must be valid json" in result.findings[0].text
    assert list(result.splits) == ["train"]


def test_a_class_that_val_does_not_list_stops_the_training(coco, val):
    fill(coco)
    val.content["categories"] = [{"id": 7, "name": "blob"}]
    result = scanned(train=coco, val=val)
    (finding,) = result.by_kind()["unreadable_split"]
    assert finding.split == "val" and "missing=['cell']" in finding.text
    assert result.splits["val"].class_counts == {"blob": 1}


def test_few_boxes_and_twenty_times_as_many_are_an_imbalance(coco, val):
    coco.content["categories"].append({"id": 8, "name": "rare"})
    val.content["categories"].append({"id": 8, "name": "rare"})
    val.box([30, 30, 20, 20], category_id=8)
    fill(coco, 11)
    for number in range(10):
        box = [25 * number, 60, 20, 30]
        coco.box(box, category_id=8)
    assert scanned(train=coco, val=val).findings == []
    coco.content["annotations"].pop()
    (finding,) = scanned(train=coco, val=val).findings
    assert finding.kind == "class_imbalance" and finding.level == "note"
    assert finding.text == "11 boxes of cell, 9 of rare; fewer than 10 boxes: rare (9)"


def test_a_test_split_without_annotations_is_as_coco_has_it(coco, val, tmp_path):
    fill(coco)
    (tmp_path / "test").mkdir()
    test = type(coco)(tmp_path / "test")
    fresh(test, 70)
    del test.content["annotations"]
    assert scanned(train=coco, val=val, test=test).findings == []


def test_levels_decide_what_is_safe():
    def with_kinds(*kinds):
        findings = [Finding(kind, "train", "") for kind in kinds]
        return ScanResult((800, 1333), 8, {}, findings)

    note, warning = with_kinds("small_box"), with_kinds("small_box", "bad_box")
    assert note.is_safe() and note.is_safe(strict=True)
    assert warning.is_safe() and not warning.is_safe(strict=True)
    assert not with_kinds("leakage").is_safe()
    assert {kind.level for kind in KINDS.values()} == set(known.LEVELS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_threads": -1}, "num_threads=-1"),
        ({"small_side": -1}, "small_side=-1"),
        ({"small_side": float("nan")}, "small_side=nan"),
        ({"image_size": (800, 0)}, r"image_size=\(800, 0\)"),
        ({"image_size": (1333, 800)}, "short <= long"),
    ],
)
def test_settings_that_are_none_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        scan_splits({}, **arguments)


def test_an_interrupt_does_not_go_through_all_files_first(coco, progress):
    for seed in range(30):
        fresh(coco, seed)
    looked = []

    class Stop(progress):
        def add(self):
            raise KeyboardInterrupt

    files = checks._ImageChecker(1, looked.append, Stop)
    paths = [str(path) for path in sorted(coco.directory.glob("*.jpg"))]
    with pytest.raises(KeyboardInterrupt):
        files.inspect(paths)
    assert progress.told == [30, "closed"] and len(looked) < 30


# What is in the folder -> kinds of its errors, parts of their texts, usable images.
ALL_BAD = {
    "no image is there": (
        {"train.json": coco_json("a.png", "b.png"), "val.json": coco_json("c.png")}
        | {"other.png": None},
        {"no_usable_image", "missing_image"},
        ["train a.png", "train b.png", "val c.png", "all 2 images are bad"],
        0,
    ),
    "no image can be decoded": (
        {"d.csv": CSV + "a.png,10,20,40,40,cat\n", "a.png": "text"},
        {"no_usable_image", "undecodable_image"},
        ["a.png is not an image"],
        0,
    ),
    "ids are no numbers": (
        {"train.json": coco_json("a.png").replace('"id": 0', '"id": "0"')}
        | {"a.png": None},
        {"no_usable_image", "bad_image_entry"},
        ["a.png must have an integer id"],
        0,
    ),
    "every xml is broken": (
        {"train/a.xml": "<annotation", "train/a.png": None}
        | {"valid/b.xml": "<html/>", "valid/b.png": None},
        {"no_usable_image"},
        ["train/a.xml is no valid xml", "valid/b.xml is no annotation"],
        0,
    ),
    "no xml has an object": (
        {"train/a.xml": "<annotation></annotation>", "train/a.png": None},
        {"no_train_boxes"},
        [],
        1,
    ),
    "a json is broken": (
        {"train.json": coco_json("a.png"), "val.json": "{oops", "a.png": None},
        {"unreadable_split"},
        ["val The annotation file must be valid json"],
        1,
    ),
    "an image in place of a list": (
        {"data.yaml": YOLO + "train: a\nval: val.png\n", "a/a.png": None}
        | {"a/a.txt": LABEL, "val.png": None},
        {"unreadable_split"},
        ["val A list of images is no text: it has a zero byte", "val.png"],
        1,
    ),
    "a csv is broken": (
        {"train.csv": CSV + "a.png,10,20,40,40,cat\n", "a.png": None}
        | {"val.csv": CSV + "b.png,1,1,9,9," + "x" * 2**18},
        {"unreadable_split"},
        ["val The file must be CSV", "val.csv"],
        1,
    ),
    "a csv has no line": (
        {"train.csv": CSV + "a.png,10,20,40,40,cat\n", "a.png": None}
        | {"val.csv": CSV},
        {"unreadable_split"},
        ["val The annotation file must list at least one image", "val.csv (val)"],
        1,
    ),
    "a list of pascal voc is broken": (
        {"Annotations/a.xml": XML, "a.png": None}
        | {"ImageSets/train.txt": "a\n", "ImageSets/val.txt": "\x00b\x00"},
        {"unreadable_split"},
        ["val A list of images must be text", "val.txt"],
        1,
    ),
    "the folder of a split is missing": (
        {"data.yaml": YOLO + "train: a\nval: nowhere\n", "a/a.png": None}
        | {"a/a.txt": LABEL},
        {"unreadable_split"},
        ["val `val` must name existing folders", "'nowhere'"],
        1,
    ),
    "the images of a split are nowhere": (
        {"train.json": coco_json("a.png"), "train/a.png": None}
        | {"val.json": coco_json("b.png")},
        {"unreadable_split"},
        ["val No folder with the images", "val.json"],
        1,
    ),
    "two files for a split": (
        {"train.json": coco_json("a.png"), "a.png": None}
        | {"val2014.json": "{}", "val2017.json": "{}"},
        {"unreadable_split"},
        ["val There must be one annotation file", "val2014.json"],
        1,
    ),
}


@pytest.mark.parametrize("name", ALL_BAD)
def test_whatever_is_bad_is_a_finding_and_hides_no_other_split(tmp_path, name):
    files, kinds, texts, num_images = ALL_BAD[name]
    splits = find_splits(write_layout(tmp_path, files))
    result = scan_splits(splits, use_tensorflow=False)
    errors = [f for f in result.findings if f.level == "error"]
    found = {finding.kind for finding in errors}
    # A wrong label file makes a bad image, whichever kind that is.
    assert kinds <= found <= kinds | {"bad_image_entry", "no_train_boxes"}
    for text in texts:
        assert any(text in f"{f.split} {f.text}" for f in errors), (text, errors)
    assert sum(split.num_images for split in result.splits.values()) == num_images
    assert json.dumps(result.to_json(), allow_nan=False)
    scan_page(result, "bad data").save(tmp_path / "page.html")


def test_data_without_any_split_is_a_result_too(tmp_path):
    result = unreadable(ValueError("a\nb"), (100, 200), 4)
    (finding,) = result.findings
    assert (finding.kind, finding.text) == ("unreadable_data", "a b")
    assert result.to_json()["image_size"] == [100, 200] and not result.is_safe()
    scan_page(result, "no data").save(tmp_path / "page.html")


def unread(root):
    """dict kind -> texts of the findings on what is not read."""
    splits = find_splits(root)
    result = scan_splits(splits, use_tensorflow=False)
    kinds = ("unused_labels", "unread_image", "unlisted_file", "unused_split")
    return {
        kind: " ".join(f.text for f in found)
        for kind, found in result.by_kind().items()
        if kind in (*kinds, "passed_over")
    }


def test_what_is_not_read_is_counted_and_named(tmp_path):
    root = write_layout(
        tmp_path / "set",
        {
            "data.yaml": YOLO + "train: images/train\n",
            "images/train/a.png": None,
            "labels/train/a.txt": LABEL,
            "labels/train/gone.txt": LABEL,
            "labels/train/classes.txt": "cat",
            "notes.txt": "no label",
            **{f"images/train/{n}": "x" for n in ("b.gif", "c.HEIC", "d.jfif")},
            "images/more/e.png": None,
            "images/train/._a.png": "x",
            "images/train/Thumbs.db": "x",
        },
    )
    os.mkfifo(root / "pipe.png")
    (root / "dead.png").symlink_to("nowhere.png")
    (root / "images/train/linked").symlink_to(tmp_path / "outside")
    write_layout(tmp_path / "outside", {"f.png": None})
    found = unread(root)
    assert len(found) == 4
    assert "1 files" in found["unused_labels"] and "gone.txt" in found["unused_labels"]
    assert "3 files" in found["unread_image"]
    assert "b.gif, c.HEIC, d.jfif" in found["unread_image"]
    assert "images/more: e.png" in found["unlisted_file"]
    assert "f.png" not in found["unlisted_file"], "behind a link it is read"
    assert "2 files" in found["passed_over"]
    for text in ("._a.png, Thumbs.db (is hidden", "pipe.png (is no regular file"):
        assert text in found["passed_over"]
    assert "dead.png (does not exist, it is a link to nothing)" in found["passed_over"]
    # Named by the file itself, only the folders of the images are searched.
    alone = unread(root / "data.yaml")
    assert "gone.txt" in alone["unused_labels"] and "unlisted_file" not in alone


def test_labels_that_no_list_names_and_images_without_labels_are_told(tmp_path):
    files = {f"Annotations/{name}.xml": XML for name in "ab"}
    files |= {f"JPEGImages/{name}.png": None for name in "abc"}
    files |= {"ImageSets/Main/train.txt": "a\n", "ImageSets/Main/rest.txt": "b\n"}
    found = unread(write_layout(tmp_path, files))
    assert "b.xml" in found["unused_labels"]
    assert "b.png, c.png" in found["unlisted_file"]
    assert "ImageSets/Main/rest.txt" in found["unused_split"]


def test_one_folder_seen_by_two_names_is_no_other_folder(tmp_path):
    files = {"train.json": coco_json("a.png"), "images/a.png": None}
    root = write_layout(tmp_path, files)
    (root / "train").symlink_to("images")
    assert find_splits(root)["train"][1] == str(root / "train")
    assert unread(root) == {}


def test_of_files_in_many_folders_there_is_one_finding(tmp_path):
    files = {"train.json": coco_json("a.png"), "a.png": None}
    files |= {f"more/{number}/x.png": None for number in range(9)}
    splits = find_splits(write_layout(tmp_path, files))
    result = scan_splits(splits, use_tensorflow=False)
    (finding,) = result.by_kind()["unlisted_file"]
    assert finding.count == 9 and finding.text.startswith(f"9 files in {tmp_path}: ")
    assert "more/0/x.png, more/1/x.png, more/2/x.png, ..." in finding.text


def test_a_pipe_among_the_images_is_named_and_nothing_waits_for_it(tmp_path):
    files = {"data.yaml": YOLO + "train: images\n", "images/a.png": None}
    files |= {"labels/a.txt": LABEL, "images/b.png": None}
    root = write_layout(tmp_path, files)
    os.mkfifo(root / "images/pipe.png")
    os.mkfifo(root / "labels/b.txt")
    os.mkfifo(root / "other.yaml")
    splits = find_splits(root)
    result = scan_splits(splits, use_tensorflow=False)
    texts = [finding.text for finding in result.findings if finding.level == "error"]
    assert sorted(texts) == [
        "images/b.png labels/b.txt is no regular file, but a pipe",
        "images/pipe.png is no regular file, but a pipe",
    ]
