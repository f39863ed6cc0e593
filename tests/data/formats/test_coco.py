import json
import os
import zlib

import numpy as np
import pytest
from PIL import Image

from tests.image_files import exif
from vfnet_tf.data import dataset as datasets
from vfnet_tf.data.formats.coco import find_coco_splits, read_coco
from vfnet_tf.data.images.inspect import ImageHeader, inspect_image


def test_boxes_labels_and_ids_by_hand(coco):
    coco.content["categories"] = [{"id": 9, "name": "far"}, {"id": 4, "name": "near"}]
    path = coco.image(48, 64)
    coco.box([1, 2, 10, 20.5], category_id=9)
    coco.box([0, 0, 64, 48], category_id=4)
    dataset = coco.read()
    assert dataset.class_names == ("near", "far")
    assert dataset.category_ids == (4, 9)
    (record,) = dataset
    assert (record.image_id, record.path) == (1, str(path))
    assert (record.height, record.width) == (48, 64)
    np.testing.assert_array_equal(record.boxes, [[1, 2, 11, 22.5], [0, 0, 64, 48]])
    np.testing.assert_array_equal(record.labels, [1, 0])
    np.testing.assert_array_equal(record.annotation_ids, [1, 2])
    assert record.boxes.dtype == "float32" and record.labels.dtype == "int32"
    assert (dataset.num_classes, dataset.num_boxes, len(dataset)) == (2, 2, 1)


def test_class_names_fix_the_labels_and_drop_the_others(coco):
    coco.content["categories"] = [{"id": i, "name": n} for i, n in enumerate("abc")]
    coco.image()
    for category_id in range(3):
        coco.box([1, 2, 10, 20], category_id=category_id)
    dataset = coco.read(class_names=["c", "a"], strict=True)
    assert dataset.class_names == ("c", "a") and dataset.category_ids == (2, 0)
    np.testing.assert_array_equal(dataset[0].labels, [1, 0])
    assert dataset.report.dropped == {datasets.OTHER_CLASS: 1}
    assert dataset.report.problems == []


def test_a_class_that_the_file_lacks_is_an_error_with_both_lists(coco):
    coco.image(box=[1, 2, 10, 20])
    with pytest.raises(ValueError) as error:
        coco.read(class_names=["cell", "dog"])
    assert "Expected: ['cell', 'dog']. Found: ['cell']" in str(error.value)
    assert "missing=['dog']" in str(error.value)


def test_crowds_are_set_aside_and_counted(coco):
    coco.image(box=[1, 2, 10, 20])
    coco.box([0, 0, 60, 40], iscrowd=1)
    dataset = coco.read(strict=True)
    assert len(dataset[0].boxes) == 1 and dataset[0].num_crowd == 1
    assert dataset.report.num_crowd == 1 and not dataset.report.dropped


@pytest.mark.filterwarnings("error:overflow")
@pytest.mark.parametrize(
    "bbox, changes, reason",
    [
        *(
            ([1, 2, side, 20], {}, datasets.BAD_BOX)
            for side in (float("nan"), float("inf"), "20 px", 10**400)
        ),
        ([1, 2, 10], {}, datasets.BAD_BOX),
        (None, {}, datasets.BAD_BOX),
        ([1, 2, -10, 20], {}, datasets.BAD_SIZE),
        ([1, 2, 10, 0], {}, datasets.BAD_SIZE),
        ([1, 2, 10, 20], {"area": 0}, datasets.BAD_AREA),
        ([1, 2, 10, 20], {"area": float("inf")}, datasets.BAD_AREA),
        ([64, 2, 10, 20], {}, datasets.OUTSIDE),
        ([-10, 2, 10, 20], {}, datasets.OUTSIDE),
        ([1, 500, 10, 20], {}, datasets.OUTSIDE),
        ([1e300, 1, 1e300, 20], {}, datasets.OUTSIDE),
        *(
            ([1, 2, 10, 20], {"category_id": number}, datasets.UNKNOWN_CATEGORY)
            for number in (8, None, [7], "7", 7.5)
        ),
        *(
            ([1, 2, 10, 20], {"image_id": number}, datasets.UNKNOWN_IMAGE)
            for number in ("1", 99, {})
        ),
        ("[1, 2, 10, 20]", {}, datasets.BAD_BOX),
        ([1, 2, 10, 0], {"iscrowd": 1}, datasets.BAD_SIZE),
        ([1, 2, 10, 20], {"area": "large"}, datasets.BAD_AREA),
        ([5, 5, 5, 5], {"id": 1}, datasets.DUPLICATE),
    ],
)
def test_a_bad_annotation_is_dropped_and_named_and_refused_if_strict(
    coco, bbox, changes, reason
):
    coco.image(box=[5, 5, 5, 5])
    coco.box(bbox, **changes)
    file = coco.save()
    dataset = read_coco(file, coco.directory)
    assert len(dataset[0].boxes) == 1
    assert dataset.report.dropped == {reason: 1}
    name = f"annotation {changes.get('id', 2)}"
    assert f"1 dropped, {reason}: {name}" in dataset.summary()
    assert str(file) in dataset.summary()
    with pytest.raises(ValueError, match=f"{name}.*{reason}"):
        read_coco(file, coco.directory, strict=True)


def test_numbers_are_read_whatever_a_json_has_them_like(coco):
    coco.content["categories"] = [{"id": 7.0, "name": "cell"}]
    coco.image(id=3.0)
    coco.content["images"][0].update(height="48", width=64.0)
    coco.box([1, "2", "10.0", 2e1], id=5.0, image_id=3, category_id=7, area="200")
    coco.box([1, 2, 10, 20], id=6, image_id=3.0, category_id=7.0)
    coco.box([1, 2, 10, 20], image_id=3, area=float("nan"), iscrowd=float("nan"))
    del coco.content["annotations"][1]["iscrowd"]
    (record,) = dataset = coco.read(strict=True)
    assert record.boxes.tolist() == [[1, 2, 11, 22]] * 3
    assert (record.image_id, dataset.category_ids) == (3, (7,))
    assert record.annotation_ids.tolist() == [5, 6, 3]


def test_classes_that_look_alike_are_told(coco):
    names = ["cat", "cat ", "CAT", "dog", "a light", "a  light", "k\u00f6ter"]
    coco.content["categories"] = [{"id": i, "name": n} for i, n in enumerate(names)]
    coco.image()
    coco.box([1, 2, 10, 20], category_id=1)
    report = coco.read().report
    expected = [("cat", "cat ", "CAT"), ("a light", "a  light")]
    assert report.similar_classes == expected
    assert "look alike, are they one? 'cat', 'cat ', 'CAT'" in report.summary()


def test_a_tiny_box_is_dropped_by_rule_even_if_strict(coco):
    coco.image(box=[5, 5, 5, 5])
    coco.box([1, 2, 0.9, 20])
    coco.box([1, 2, 1e-9, 20])  # of no width in float32
    coco.box([1, 2, 1, 1])
    dataset = coco.read(strict=True)
    assert len(dataset[0].boxes) == 2
    assert dataset.report.dropped == {datasets.TINY: 2}


def test_a_box_over_the_border_is_clipped_and_counted(coco):
    coco.image(48, 64, box=[-5, 40, 20, 20])
    dataset = coco.read()
    np.testing.assert_array_equal(dataset[0].boxes, [[0, 40, 15, 48]])
    assert dataset.report.num_clipped == 1
    assert "1 boxes clipped to their image: annotation 1 in 0.jpg" in dataset.summary()
    with pytest.raises(ValueError, match="annotation 1 in 0.jpg"):
        coco.read(strict=True)


def test_rounding_over_the_border_is_no_mistake(coco):
    coco.image(48, 64, box=[50.5, 10, 13.51, 38.02])
    dataset = coco.read(strict=True)
    np.testing.assert_array_equal(dataset[0].boxes, [[50.5, 10, 64, 48]])
    assert dataset.report.num_clipped == 0


def test_one_id_for_two_different_annotations_is_an_error(coco):
    coco.image()
    coco.box([1, 2, 10, 20], id=5)
    coco.box([3, 2, 10, 20], id=5)
    with pytest.raises(ValueError, match="Annotation ids must be unique.*id=5"):
        coco.read()


def test_annotations_without_ids_are_read(coco):
    coco.image(box=[1, 2, 10, 20])
    coco.box([1, 2, 10, -20])
    for annotation in coco.content["annotations"]:
        del annotation["id"]
    dataset = coco.read()
    np.testing.assert_array_equal(dataset[0].annotation_ids, [-1])
    assert "annotations[1] in 0.jpg" in dataset.summary()


def test_images_without_objects_are_dropped_or_kept_as_asked(coco):
    coco.image()
    coco.image(box=[1, 2, 10, 20])
    dropped = coco.read()
    assert [record.image_id for record in dropped] == [2]
    assert "1 images without objects dropped" in dropped.summary()
    for options in ({"keep_empty": True}, {"training": False}):
        kept = coco.read(**options)
        assert [record.image_id for record in kept] == [1, 2]
        assert kept[0].boxes.shape == (0, 4) and kept[0].labels.shape == (0,)
        assert "1 images without objects kept" in kept.summary()


def test_small_images_are_left_out_of_training_only(coco):
    coco.image(31, 64, box=[1, 2, 10, 20])
    coco.image(32, 32, box=[1, 2, 10, 20])
    dataset = coco.read()
    assert [record.image_id for record in dataset] == [2]
    assert dataset.report.num_small_images == 1
    assert len(coco.read(training=False)) == 2


def cut(path, count):
    path.write_bytes(path.read_bytes()[:-count])


def make(path, file_format, height=48):
    Image.fromarray(np.zeros((height, 64), "uint8")).save(path, file_format)


def make_cut_png(path):
    make(path, "PNG")
    cut(path, 12)


@pytest.mark.parametrize("check_images", ["full", "header"])
@pytest.mark.parametrize(
    "spoil, reason",
    [
        (os.remove, "does not exist"),
        (lambda path: cut(path, 500), "truncated"),
        (lambda path: cut(path, 2), "truncated"),
        (lambda path: path.write_text("hello"), "is not an image"),
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: make(path, "GIF"), "is GIF"),
        (make_cut_png, "is truncated"),
        (
            lambda path: make(path, "JPEG", 50),
            "is 50 high and 64 wide, its annotation says 48 and 64",
        ),
    ],
)
def test_a_bad_image_stops_the_reading_or_is_skipped_and_listed(
    coco, spoil, reason, check_images
):
    coco.image()
    spoil(coco.image())
    coco.box([1, 2, 10, 20])
    coco.box([1, 2, 10, 20], image_id=2)
    with pytest.raises(ValueError, match=f"1 bad of 2 images:\n  1.jpg: .*{reason}"):
        coco.read(check_images=check_images)
    dataset = coco.read(check_images=check_images, skip_bad_images=True, strict=True)
    assert [record.image_id for record in dataset] == [1]
    assert dataset.report.bad_images[0][0] == "1.jpg"
    assert "1 bad images skipped:\n    1.jpg" in dataset.summary()
    assert dataset.report.dropped == {datasets.SKIPPED_IMAGE: 1}
    assert dataset.report.problems == []


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"id": 1}, "has id 1, as 0.jpg has"),
        ({"id": "a"}, "must have an integer id >= 0, has 'a'"),
        ({"id": "2"}, "must have an integer id >= 0, has '2'"),
        *(
            ({"id": number}, "must have an integer id")
            for number in (2.5, True, [2], 2**63, float("nan"), -1)
        ),
        ({"file_name": "1.jpg\0"}, "another name, as this one has a zero byte"),
        ({"file_name": "1.jpg\ud83d"}, "another name, as this one is not valid UTF-8"),
        ({"height": 0}, "size of positive integers"),
        ({"width": None}, "size of positive integers"),
    ],
)
def test_a_bad_image_entry_stops_the_reading(coco, changes, reason):
    coco.image()
    coco.image()
    coco.content["images"][1].update(changes)
    coco.box([1, 2, 10, 20])
    with pytest.raises(ValueError, match=f"1.jpg.*: .*{reason}"):
        coco.read()
    dataset = coco.read(skip_bad_images=True)
    assert [record.path for record in dataset] == [str(coco.directory / "0.jpg")]


def test_all_bad_images_are_counted_and_twenty_are_named(coco):
    for _ in range(23):
        os.remove(coco.image(box=[1, 2, 10, 20]))
    with pytest.raises(ValueError, match="23 bad of 23") as error:
        coco.read()
    message = str(error.value)
    assert "19.jpg" in message and "20.jpg" not in message
    assert message.endswith("and 3 more")


def test_a_size_that_the_file_omits_is_read_from_the_image(coco):
    coco.image(48, 64)
    coco.image(40, 50)
    del coco.content["images"][0]["height"], coco.content["images"][0]["width"]
    coco.content["images"][1]["height"] = 40.0
    coco.box([1, 2, 10, 20])
    coco.box([1, 2, 10, 20], image_id=2)
    for check_images in ("full", False):
        dataset = coco.read(check_images=check_images)
        assert dataset.sizes == [(48, 64), (40, 50)]


def test_an_orientation_that_agrees_with_the_annotation_is_kept(coco):
    path = coco.image(48, 64)
    Image.open(path).save(path, exif=exif(6))
    coco.box([1, 2, 10, 60])
    entry = coco.content["images"][0]
    entry["height"], entry["width"] = 64, 48
    (record,) = coco.read()
    assert (record.height, record.width, record.orientation) == (64, 48, 6)
    entry["height"], entry["width"] = 48, 64
    with pytest.raises(ValueError, match="EXIF orientation 6 applied"):
        coco.read()


def test_a_header_claiming_too_many_pixels_is_refused_before_decoding(tmp_path):
    path = tmp_path / "bomb.png"
    Image.fromarray(np.zeros((8, 8), "uint8")).save(path)
    contents = bytearray(path.read_bytes())
    contents[16:24] = (20000).to_bytes(4, "big") + (8000).to_bytes(4, "big")
    # The checksum of the header must fit.
    contents[29:33] = zlib.crc32(contents[12:29]).to_bytes(4, "big")
    path.write_bytes(contents)
    with pytest.warns(Image.DecompressionBombWarning):
        assert "20000 x 8000 pixels" in inspect_image(path).error


ONE = '{"id": 1, "name": "a"}'


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "must be valid json"),
        ("[]", "the format of results"),
        ('{"images": [], "annotations": []}', "'categories' is missing"),
        ('{"images": 1, "annotations": [], "categories": []}', "'images' is missing"),
        ('{"images": [1], "annotations": [], "categories": []}', "'images' is missing"),
        # Categories alone, of a file without images.
        ('"categories": []', "one category"),
        (f'"categories": [{ONE}]', "at least one image"),
        ('"categories": [{"id": "1"}]', "integer id and a name"),
        ('"categories": [{"id": "1", "name": "a"}]', "integer id and a name"),
        ('"categories": [{"id": 1, "name": " "}]', "integer id and a name"),
        ('"categories": [{"id": 1, "name": "\\udce4"}]', r"in UTF-8. .*\\udce4"),
        (f'"categories": [{ONE}], "categories": []', "'categories' comes twice"),
        (f'"categories": [{ONE}, {{"id": 1, "name": "b"}}]', "ids must be unique"),
        (f'"categories": [{ONE}, {{"id": 2, "name": "a"}}]', "names must be unique"),
    ],
)
def test_a_malformed_file_is_named_with_its_fault(tmp_path, text, message):
    if text.startswith('"'):
        text = f'{{"images": [], "annotations": [], {text}}}'
    file = tmp_path / "bad.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        read_coco(file, tmp_path)
    assert str(file) in str(error.value)


def test_missing_files_and_folders_are_named(coco):
    with pytest.raises(ValueError, match="must exist.*nowhere.json"):
        read_coco(coco.directory / "nowhere.json", coco.directory)
    coco.image()
    with pytest.raises(ValueError, match="`image_dir` must be an existing folder"):
        read_coco(coco.save(), coco.directory / "nowhere")


def test_an_empty_dataset_says_what_was_expected_and_found(coco):
    coco.image()
    coco.box([1, 2, 10, 20], category_id=1)
    with pytest.raises(ValueError, match="must not be empty") as error:
        coco.read()
    message = str(error.value)
    assert "Expected classes: ['cell']. Found categories: ['cell']" in message
    assert "1 dropped, category is not in the file: annotation 1 in 0.jpg" in message


def test_a_file_without_annotations_serves_evaluation_only(coco):
    coco.image()
    del coco.content["annotations"]
    assert len(coco.read(training=False)) == 1
    with pytest.raises(ValueError, match="'annotations' is missing"):
        coco.read()


def test_a_subset_takes_the_first(coco):
    for _ in range(3):
        coco.image(box=[1, 2, 10, 20])
    dataset = coco.read()
    assert [record.image_id for record in dataset.subset(2)] == [1, 2]
    assert dataset.subset(2).category_ids == dataset.category_ids
    with pytest.raises(ValueError, match="between 1 and 3"):
        dataset.subset(4)


def test_good_images_are_remembered_and_changed_ones_are_read_again(coco, own_cache):
    path = coco.image(box=[1, 2, 10, 20])
    coco.read()
    (cache_file,) = (own_cache / "image_checks").iterdir()
    assert str(path) in json.loads(cache_file.read_text())
    assert len(os.listdir(coco.directory)) == 2  # Nothing beside the user's files.
    coco.read()
    cut(path, 500)
    with pytest.raises(ValueError, match="0.jpg"):
        coco.read()


@pytest.mark.parametrize("changed", ["size", "time"])
def test_a_remembered_image_of_another_size_or_time_is_read_again(
    coco, own_cache, changed
):
    path = coco.image(box=[1, 2, 10, 20])
    coco.read()
    before = os.stat(path)
    path.write_bytes(bytes(before.st_size - (changed == "size")))
    is_later = changed == "time"
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + is_later))
    with pytest.raises(ValueError, match="0.jpg"):
        coco.read()


def test_a_broken_or_forbidden_cache_is_no_error(coco, own_cache):
    coco.image(box=[1, 2, 10, 20])
    own_cache.write_text("a file where a folder should be")
    assert len(coco.read()) == 1


@pytest.mark.parametrize(
    "json_name, image_folder",
    [
        ("annotations/instances_train2017.json", "train2017"),
        ("annotations/instances_train.json", "train"),
        ("annotations/instances_train.json", "images"),
        ("annotations/train.json", "images/train"),
        ("instances_train.json", "."),
    ],
)
def test_splits_are_found_in_the_usual_layouts(tmp_path, json_name, image_folder):
    file, folder = tmp_path / json_name, tmp_path / image_folder
    file.parent.mkdir(exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "a.jpg").write_bytes(b"")
    file.write_text('{"images": [{"file_name": "a.jpg"}]}')
    assert find_coco_splits(tmp_path) == {"train": (str(file), str(folder))}


def test_what_was_looked_for_is_told(tmp_path):
    with pytest.raises(ValueError, match="must be an existing folder"):
        find_coco_splits(tmp_path / "nowhere")
    (tmp_path / "readme.txt").write_text("")
    with pytest.raises(ValueError, match=r"Looked for annotations.*\['readme.txt'\]"):
        find_coco_splits(tmp_path)
    for year in (2014, 2017):
        text = '{"images": [], "annotations": [], "categories": []}'
        (tmp_path / f"instances_val{year}.json").write_text(text)
    with pytest.raises(ValueError, match="one annotation file for the split 'val'"):
        find_coco_splits(tmp_path)
    (tmp_path / "instances_val2014.json").unlink()
    with pytest.raises(ValueError, match="No folder with the images.*val2017"):
        find_coco_splits(tmp_path)


@pytest.mark.parametrize(
    "name, expected",
    [
        ("bccd", {"train": (205, 2804), "val": (87, 1137), "test": (72, 945)}),
        ("coco_mini", {"train": (38, 273), "val": (65, 579)}),
    ],
)
def test_the_shared_datasets_are_read_whole(shared_data, name, expected):
    splits = find_coco_splits(shared_data(name))
    assert list(splits) == list(expected)
    for split, (file, image_dir) in splits.items():
        dataset = read_coco(file, image_dir, training=split == "train", strict=True)
        assert (len(dataset), dataset.num_boxes) == expected[split]
        assert not dataset.report.dropped


def test_the_report_keeps_all_problems_with_image_and_box(coco):
    path = coco.image(48, 64, box=[5, 5, 5, 5])
    for number in range(5):
        coco.box([1, 2, -number, 20])
    coco.box([-5, 40, 20, 20])
    coco.box([1, 2, True, 4])
    coco.box([1, 2, 3, 4], image_id=99)
    report = coco.read().report
    assert len(report.examples[datasets.BAD_SIZE]) == 3
    reasons = [datasets.BAD_SIZE] * 5
    reasons += [datasets.CLIPPED, datasets.BAD_BOX, datasets.UNKNOWN_IMAGE]
    assert [problem.reason for problem in report.problems] == reasons
    assert report.problems[4] == datasets.Problem(
        datasets.BAD_SIZE,
        "annotation 6 in 0.jpg ([1, 2, -4, 20])",
        str(path),
        (1, 2, -3, 22),
    )
    assert report.problems[5].box == (-5, 40, 15, 60)
    assert report.problems[6].box is None
    assert report.problems[7].path == "" and report.problems[7].box is None


def test_a_function_can_take_the_place_of_the_check_of_images(coco, own_cache):
    path = str(coco.image(48, 64))
    coco.box([1, 2, 10, 20])
    calls = []

    def check(paths):
        calls.append(list(paths))
        return {path: ImageHeader(48, 64, orientation=3)}

    dataset = coco.read(check_images=check)
    assert calls == [[path]] and dataset[0].orientation == 3
    assert not own_cache.exists()
    with pytest.raises(ValueError, match="or a function"):
        coco.read(check_images="all")


def test_an_inspection_lets_look_at_the_decoded_image(coco):
    path, seen = coco.image(48, 64), []
    inspect_image(path, look=lambda image, turn: seen.append((image.size, turn)))
    assert seen == [((64, 48), 1)]

    def fail(image, orientation):
        raise OSError("no such mode")

    assert inspect_image(path, look=fail).error == "cannot be decoded: no such mode"
