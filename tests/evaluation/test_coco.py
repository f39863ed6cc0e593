import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.evaluation.scene import metrics_of
from vfnet_tf.evaluation.coco import (
    METRICS,
    CocoEvaluator,
    format_table,
    read_results,
    save_metrics,
    xyxy_to_xywh,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "coco_results"
TRUTH = GOLDEN / "instances_val2014_100.json"
RESULTS = GOLDEN / "instances_val2014_fakebbox100_results.json"

# What the COCO API's own demo prints for this pair of files.
PRINTED = "0.505 0.697 0.573 0.586 0.519 0.501 0.387 0.594 0.595 0.640 0.566 0.564"
PRINTED = dict(zip(METRICS, PRINTED.split(), strict=True))


def annotation(number, image_id, category_id, bbox, **more):
    values = {"id": number, "image_id": image_id, "category_id": category_id}
    area = bbox[2] * bbox[3]
    return {**values, "bbox": bbox, "area": area, "iscrowd": 0, **more}


def write_truth(tmp_path, annotations, num_images=2, categories=None):
    """Images 1..n of 200x200; categories 5 "cat" and 9 "dog"."""
    categories = categories or [{"id": 5, "name": "cat"}, {"id": 9, "name": "dog"}]
    images = [{"id": i + 1, "height": 200, "width": 200} for i in range(num_images)]
    path = tmp_path / "truth.json"
    content = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content))
    return path


def detections(*images, rows=None):
    """Pads lists of (box, score, label), one list per image, to a batch."""
    rows = rows or max(1, *(len(image) for image in images))
    boxes = np.zeros((len(images), rows, 4), "float32")
    scores = np.zeros((len(images), rows), "float32")
    labels = np.full((len(images), rows), -1, "int32")
    for i, image in enumerate(images):
        for j, (box, score, label) in enumerate(image):
            boxes[i, j], scores[i, j], labels[i, j] = box, score, label
    counts = np.array([len(image) for image in images], "int32")
    values = {"boxes": boxes, "scores": scores, "labels": labels}
    return {**values, "num_detections": counts}


@pytest.fixture
def cat_and_dog(tmp_path):
    """A cat at (10, 10, 60, 60) in image 1, a dog at (100, 100, 180, 180) in 2."""
    return write_truth(
        tmp_path,
        [
            annotation(1, 1, 5, [10, 10, 50, 50]),
            annotation(2, 2, 9, [100, 100, 80, 80]),
        ],
    )


CAT = ((10, 10, 60, 60), 0.9, 0)
DOG = ((100, 100, 180, 180), 0.8, 1)


def measured(truth, *images, **options):
    """Metrics of detections in the images 1, 2, ..."""
    evaluator = CocoEvaluator(truth, **options)
    evaluator.update(np.arange(len(images)) + 1, detections(*images))
    return evaluator.evaluate()


@pytest.mark.filterwarnings("ignore:10 of 80 classes")
def test_the_demo_pair_gives_every_digit_that_the_coco_api_prints():
    metrics = metrics_of(TRUTH, RESULTS)
    assert {name: f"{metrics[name]:.3f}" for name in METRICS} == PRINTED


@pytest.mark.filterwarnings("ignore:10 of 80 classes")
def test_all_metrics_equal_pycocotools_to_the_last_bit(capsys):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = COCO(str(TRUTH))
    reference = COCOeval(truth, truth.loadRes(str(RESULTS)), "bbox")
    reference.evaluate()
    reference.accumulate()
    reference.summarize()
    metrics = metrics_of(TRUTH, RESULTS)
    assert [metrics[name] for name in METRICS] == reference.stats.tolist()
    # Class by class: person is the first column of precision.
    person = reference.eval["precision"][:, :, 0, 0, 2]
    assert metrics["per_class"]["person"]["AP"] == np.mean(person[person > -1])
    assert metrics["per_class"]["person"]["AP50"] == np.mean(person[0])


@pytest.mark.filterwarnings("ignore:10 of 80 classes")
def test_streaming_in_batches_equals_the_results_file():
    evaluator = CocoEvaluator(TRUTH)
    labels = {value: k for k, value in enumerate(evaluator.category_ids)}
    by_image = {image_id: [] for image_id in evaluator.image_ids}
    for result in json.loads(RESULTS.read_text()):
        x, y, w, h = result["bbox"]
        row = ((x, y, x + w, y + h), result["score"], labels[result["category_id"]])
        by_image[result["image_id"]].append(row)
    # Backwards, to show that the order of the images does not matter.
    order = sorted(by_image, reverse=True)
    for start in range(0, len(order), 7):
        ids = order[start : start + 7]
        evaluator.update(ids, detections(*(by_image[i] for i in ids), rows=60))
    metrics = evaluator.evaluate()
    assert {name: f"{metrics[name]:.3f}" for name in METRICS} == PRINTED


@pytest.mark.filterwarnings("ignore:10 of 80 classes")
def test_the_fast_backend_gives_the_same_numbers():
    pytest.importorskip("faster_coco_eval")
    fast = metrics_of(TRUTH, RESULTS, backend="faster-coco-eval")
    slow = metrics_of(TRUTH, RESULTS)
    for name in METRICS:
        assert fast[name] == pytest.approx(slow[name], abs=1e-12)


def test_exact_boxes_reach_one_everywhere_that_is_measured(cat_and_dog):
    metrics = measured(cat_and_dog, [CAT], [DOG])
    found = [metrics[name] for name in ("AP", "AP50", "AR1", "APm")]
    assert found == pytest.approx([1.0] * 4)
    assert math.isnan(metrics["APs"])  # 50x50 and 80x80 are both medium
    one = {"AP": pytest.approx(1.0), "AP50": pytest.approx(1.0)}
    assert metrics["per_class"] == {"cat": one, "dog": one}


def test_half_of_the_objects_found_gives_51_of_101_recall_points(tmp_path):
    path = write_truth(
        tmp_path,
        [annotation(1, 1, 5, [0, 0, 50, 50]), annotation(2, 2, 5, [0, 0, 50, 50])],
        categories=[{"id": 5, "name": "cat"}],
    )
    found, wrong = ((0, 0, 50, 50), 0.9, 0), ((100, 100, 150, 150), 0.5, 0)
    metrics = measured(path, [found], [wrong])
    # Recall levels 0, .01, .. .50 have precision 1, the 50 above have 0.
    assert metrics["AP50"] == pytest.approx(51 / 101)
    assert metrics["AR100"] == pytest.approx(0.5)


def test_the_iou_threshold_is_respected(cat_and_dog):
    # 30 of the cat's 50 columns: IoU 0.6, right at thresholds .50, .55 and .60.
    metrics = measured(cat_and_dog, [((10, 10, 40, 60), 0.9, 0)], [DOG])
    assert metrics["per_class"]["cat"]["AP50"] == pytest.approx(1.0)
    assert metrics["per_class"]["cat"]["AP"] == pytest.approx(0.3)
    assert metrics["AP75"] == pytest.approx(0.5)


def test_images_without_detections_count_as_missed(cat_and_dog):
    metrics = measured(cat_and_dog, [CAT], [])
    assert metrics["per_class"]["dog"] == {"AP": 0.0, "AP50": 0.0}
    assert metrics["AP"] == pytest.approx(0.5)


def test_no_detection_at_all_is_zero_and_no_crash(cat_and_dog):
    metrics = measured(cat_and_dog, [], [])
    assert metrics["AP"] == 0.0 and metrics["AR100"] == 0.0
    assert metrics_of(cat_and_dog, [])["AP"] == 0.0


def test_images_that_never_came_are_named_by_their_number(cat_and_dog):
    with pytest.warns(UserWarning, match="1 of 2 images .* never given"):
        assert measured(cat_and_dog, [CAT])["AP"] == pytest.approx(0.5)


def test_padding_rows_and_padding_images_are_skipped(cat_and_dog):
    evaluator = CocoEvaluator(cat_and_dog)
    batch = detections([CAT], [DOG], [CAT, CAT], rows=3)
    batch["scores"][:2, 1:] = 0.99  # would be false positives if they were read
    counts = batch.pop("num_detections")  # labels alone tell the padding
    evaluator.update([1, 2, -1], batch)
    assert len(evaluator.results()) == 2
    batch["labels"][:] = 0  # num_detections alone tells the padding
    evaluator.reset()
    evaluator.update([1, 2, -1], {**batch, "num_detections": counts})
    assert len(evaluator.results()) == 2


def test_an_image_that_comes_twice_counts_once_and_is_told(cat_and_dog):
    evaluator = CocoEvaluator(cat_and_dog)
    evaluator.update([1, 2], detections([CAT], [DOG]))
    evaluator.update([1], detections([((0, 0, 5, 5), 0.99, 0)]))
    assert evaluator.num_duplicates == 1
    with pytest.warns(UserWarning, match="1 images came to `update` again"):
        assert evaluator.evaluate()["AP"] == pytest.approx(1.0)


def test_results_have_category_ids_and_xywh_boxes_in_coco_format(cat_and_dog):
    evaluator = CocoEvaluator(cat_and_dog)
    box = (100.12345, 100.0, 180.0, 181.5)
    evaluator.update([2], detections([(box, 0.1, 1)]))
    (result,) = evaluator.results()
    assert result == {
        "image_id": 2,
        "category_id": 9,
        "bbox": [100.123, 100.0, 79.877, 81.5],
        "score": 0.1,  # not 0.10000000149
    }
    assert np.float32(result["score"]) == np.float32(0.1)


def test_saved_results_evaluate_to_the_same_metrics(cat_and_dog, tmp_path):
    evaluator = CocoEvaluator(cat_and_dog)
    batch = detections([((11, 9, 58, 61), 0.9, 0), (DOG[0], 0.7, 1)], [DOG])
    evaluator.update([1, 2], batch)
    path = tmp_path / "new" / "detections.json"
    evaluator.save_results(path)
    assert json.loads(path.read_text()) == evaluator.results()
    assert [p.name for p in path.parent.iterdir()] == ["detections.json"]
    saved = metrics_of(cat_and_dog, path)
    np.testing.assert_equal(saved, evaluator.evaluate())


def test_labels_follow_the_given_order_of_categories(cat_and_dog):
    evaluator = CocoEvaluator(cat_and_dog, category_ids=(9, 5))
    assert evaluator.class_names == ("dog", "cat")
    evaluator.update([1, 2], detections([(CAT[0], 0.9, 1)], [(DOG[0], 0.8, 1)]))
    metrics = evaluator.evaluate()
    assert [r["category_id"] for r in evaluator.results()] == [5, 5]
    assert metrics["per_class"]["dog"]["AP"] == 0.0
    assert list(metrics["per_class"]) == ["dog", "cat"]


def test_objects_of_categories_that_are_not_evaluated_do_not_count(cat_and_dog):
    metrics = measured(cat_and_dog, [CAT], [], category_ids=(5,))
    assert metrics["AP"] == pytest.approx(1.0)


def test_a_detection_inside_a_crowd_is_neither_right_nor_wrong(tmp_path):
    crowd = annotation(2, 2, 5, [0, 0, 200, 200], iscrowd=1)
    truth = [annotation(1, 1, 5, [10, 10, 50, 50]), crowd]
    inside = ((120, 120, 160, 160), 0.99, 0)  # higher score than the right one
    found = [CAT], [inside, inside]
    path = write_truth(tmp_path, truth)
    assert measured(path, *found, category_ids=(5,))["AP"] == pytest.approx(1.0)
    # The same without the flag: the two boxes are false positives ahead of the cat.
    crowd["iscrowd"] = 0
    path = write_truth(tmp_path, truth)
    assert measured(path, *found, category_ids=(5,))["AP"] < 0.2


def test_size_classes_go_by_the_area_of_the_annotation(tmp_path):
    # A box of 50x50 = 2500 (medium) whose mask covers 900 pixels (small: < 32 * 32).
    path = write_truth(tmp_path, [annotation(1, 1, 5, [10, 10, 50, 50], area=900.0)])
    metrics = measured(path, [CAT], [], category_ids=(5,))
    assert metrics["ARs"] == pytest.approx(1.0) and math.isnan(metrics["ARm"])


def test_annotation_id_zero_can_be_found(tmp_path):
    # pycocotools marks a match with the id, and reads 0 as "no match".
    path = write_truth(tmp_path, [annotation(0, 1, 5, [10, 10, 50, 50])])
    metrics = measured(path, [CAT], [], category_ids=(5,))
    assert metrics["AP"] == pytest.approx(1.0)


def test_missing_area_and_iscrowd_are_filled(tmp_path):
    bare = {"id": 1, "image_id": 1, "category_id": 5, "bbox": [10, 10, 50, 50]}
    metrics = measured(write_truth(tmp_path, [bare]), [CAT], [], category_ids=(5,))
    assert metrics["APm"] == pytest.approx(1.0)


def test_annotations_that_are_left_out_are_counted_and_named(tmp_path):
    bad = [annotation(number, 1, 5, [10, float("nan"), 5, 5]) for number in (7, 8)]
    path = write_truth(tmp_path, [annotation(1, 1, 5, [10, 10, 50, 50]), *bad])
    with pytest.warns(UserWarning, match="2 annotations .* ids 7, 8"):
        CocoEvaluator(path, category_ids=(5,))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"image_id": "1"}, "are of no image of the file"),
        ({"image_id": 3}, "are of no image of the file"),
        ({"image_id": 2**63}, "are of no image of the file"),
        ({"category_id": "5"}, "are of no category of the file"),
        ({"category_id": [5]}, "are of no category of the file"),
        ({"bbox": "[10, 10, 50, 50]"}, "have no box of four finite numbers"),
        ({"bbox": [10, 10, True, 50]}, "have no box of four finite numbers"),
        ({"bbox": [10, 10, "a", 5]}, "have no box of four finite numbers"),
        ({"bbox": [10, float("nan"), 5, 5]}, "have no box of four finite numbers"),
        ({"iscrowd": "some"}, "neither true nor false .iscrowd='some'"),
        ({"area": "large"}, "have an area that is no number"),
        ({"id": 1}, "are listed twice"),
    ],
)
def test_what_the_ground_truth_cannot_use_is_left_out_and_named(
    tmp_path, changes, reason
):
    good = annotation(1, 1, 5, [10, 10, 50, 50])
    path = write_truth(tmp_path, [good, {**good, "id": 7, **changes}])
    with pytest.warns(UserWarning, match=f"1 annotations .* {reason}.* ids "):
        metrics = measured(path, [CAT], [], category_ids=(5,))
    assert metrics["AP"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"id": 1.0, "image_id": 1.0, "category_id": 5.0},
        {"bbox": ["10", "10.0", " 50", "5e1"], "area": "2500"},
        {"iscrowd": "0", "ignore": "false"},
        {"iscrowd": None, "area": None},
        {"iscrowd": float("nan"), "area": float("nan")},
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_values_and_text_are_read_whatever_they_are_written_like(
    tmp_path, changes, encoding
):
    path = write_truth(tmp_path, [{**annotation(1, 1, 5, [10, 10, 50, 50]), **changes}])
    path.write_text(path.read_text(), encoding=encoding)
    result = {
        "image_id": 1.0,
        "category_id": 5,
        "bbox": [10, 10, "50", 50],
        "score": "1",
    }
    results = tmp_path / "results.json"
    results.write_text(json.dumps([result]), encoding=encoding)
    assert metrics_of(path, results, category_ids=(5,))["AP"] == pytest.approx(1.0)


def test_a_class_without_objects_is_warned_of_and_left_out_of_the_mean(tmp_path):
    path = write_truth(tmp_path, [annotation(1, 1, 5, [10, 10, 50, 50])])
    with pytest.warns(UserWarning, match="1 of 2 classes .* dog"):
        metrics = measured(path, [CAT], [DOG])
    assert metrics["AP"] == pytest.approx(1.0)
    assert math.isnan(metrics["per_class"]["dog"]["AP"])


def test_a_dataset_is_evaluated_over_its_own_images_and_labels(cat_and_dog):
    dataset = SimpleNamespace(
        records=[SimpleNamespace(image_id=2)],
        category_ids=(9, 5),
        class_names=("dog", "cat"),
        annotation_file=cat_and_dog,
    )
    with pytest.warns(UserWarning, match="1 of 2 classes .* cat"):
        evaluator = CocoEvaluator(dataset)
    assert evaluator.image_ids == (2,)
    evaluator.update([2], detections([(DOG[0], 0.8, 0)]))
    assert evaluator.evaluate()["AP"] == pytest.approx(1.0)
    with pytest.raises(ValueError, match="image_id=1"):
        evaluator.update([1], detections([CAT]))


def test_a_dataset_without_annotation_file_is_evaluated_by_its_records():
    record = SimpleNamespace(
        image_id=1,
        boxes=np.array([[10, 10, 60, 60]], "float32"),
        labels=np.array([0], "int32"),
    )
    dataset = SimpleNamespace(
        records=[record], category_ids=(5,), class_names=("cat",), annotation_file=None
    )
    metrics = measured(dataset, [CAT])
    assert metrics["AP"] == pytest.approx(1.0)
    assert metrics["APm"] == pytest.approx(1.0)


def test_reset_forgets_the_detections_of_the_last_epoch(cat_and_dog):
    evaluator = CocoEvaluator(cat_and_dog)
    evaluator.update([1, 2], detections([DOG], [CAT]))
    assert evaluator.evaluate()["AP"] == 0.0
    evaluator.reset()
    evaluator.update([1, 2], detections([CAT], [DOG]))
    assert evaluator.evaluate()["AP"] == pytest.approx(1.0)
    # Evaluating again changes nothing.
    assert evaluator.evaluate()["AP"] == pytest.approx(1.0)


def test_float16_detections_and_int64_ids_are_taken(cat_and_dog):
    evaluator = CocoEvaluator(cat_and_dog)
    batch = detections([CAT], [DOG])
    batch = {**batch, "boxes": batch["boxes"].astype("float16")}
    batch["scores"] = batch["scores"].astype("float16")
    evaluator.update(np.array([1, 2], "int64"), batch)
    assert evaluator.evaluate()["AP"] == pytest.approx(1.0)
    json.dumps(evaluator.results())


@pytest.mark.filterwarnings("error")
def test_complete_data_give_no_warning_and_nothing_is_printed(cat_and_dog, capsys):
    measured(cat_and_dog, [CAT], [DOG])
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.array([[2], [0]])}, "below the number of classes 2"),
        ({"scores": np.array([[np.nan], [0.5]])}, "image_id=1"),
        ({"boxes": np.full((2, 1, 4), np.inf)}, "diverge"),
        ({"boxes": np.zeros((2, 3, 4))}, r"boxes=\(2, 3, 4\)"),
        ({"labels": np.zeros((2, 2))}, r"labels=\(2, 2\)"),
    ],
)
def test_detections_that_cannot_be_right_are_refused(cat_and_dog, change, message):
    evaluator = CocoEvaluator(cat_and_dog)
    with pytest.raises(ValueError, match=message):
        evaluator.update([1, 2], {**detections([CAT], [DOG]), **change})


def test_a_wrong_number_of_image_ids_is_refused(cat_and_dog):
    with pytest.raises(ValueError, match=r"image_ids=\(1,\)"):
        CocoEvaluator(cat_and_dog).update([1], detections([CAT], [DOG]))


@pytest.mark.parametrize("ids", [(), (5, 5), (5, 7)])
def test_categories_must_be_distinct_and_known(cat_and_dog, ids):
    with pytest.raises(ValueError, match="distinct categories .* are 5, 9"):
        CocoEvaluator(cat_and_dog, category_ids=ids)


@pytest.mark.parametrize("ids", [(), (1, 3)])
def test_images_to_evaluate_must_exist(cat_and_dog, ids):
    with pytest.raises(ValueError, match="images of the annotation file"):
        CocoEvaluator(cat_and_dog, image_ids=ids)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "must exist"),
        ("{", "valid json"),
        ("[]", "without images, annotations, categories"),
        ('{"images": [], "annotations": []}', "without categories"),
        ('{"images": [{}], "annotations": [], "categories": []}', "entry of images"),
        (
            '{"images": [{"id": 1}, {"id": "2"}], "annotations": [], "categories": []}',
            "must have an integer id. .* with entry 1: .*'2'",
        ),
        (
            '{"images": [], "annotations": [], "categories": [{"id": [1]}]}',
            "entry of categories",
        ),
    ],
)
def test_a_broken_annotation_file_is_named(tmp_path, text, message):
    path = tmp_path / "broken.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        CocoEvaluator(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ([[]], "entry 0"),
        ({"a": 1}, "must be a list"),
        ([{"bbox": None}], "bbox of four"),
        ([{"image_id": "1"}], "integers image_id and category_id"),
        ([{"category_id": [5]}], "integers image_id and category_id"),
        ([{"score": float("nan")}], "finite score"),
        ([{"image_id": 3}], "image ids 3"),
    ],
)
def test_a_broken_results_file_is_named(cat_and_dog, tmp_path, results, message):
    good = {"image_id": 1, "category_id": 5, "score": 1, "bbox": [0, 0, 1, 1]}
    if isinstance(results, list) and results[0]:
        results = [{**good, **results[0]}]
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results))
    with pytest.raises(ValueError, match=message) as caught:
        metrics_of(cat_and_dog, path)
    assert str(path) in str(caught.value)


def test_results_with_labels_in_place_of_category_ids_are_warned_of(cat_and_dog):
    result = {"image_id": 1, "category_id": 0, "bbox": [10, 10, 50, 50], "score": 1.0}
    with pytest.warns(UserWarning, match="categories 0 .* not labels"):
        assert metrics_of(cat_and_dog, [result])["AP"] == 0.0


def test_an_unknown_backend_is_refused(cat_and_dog):
    with pytest.raises(ValueError, match="backend='fastest'"):
        CocoEvaluator(cat_and_dog, backend="fastest")


def test_the_table_shows_the_metrics_and_a_dash_for_what_is_missing():
    metrics = dict.fromkeys(METRICS, 0.5) | {"APs": float("nan")}
    metrics["per_class"] = {
        "cat": {"AP": 0.25, "AP50": 1.0},
        "platypus": {"AP": float("nan"), "AP50": float("nan")},
    }
    assert format_table(metrics).splitlines() == [
        "precision  AP 0.500  AP50 0.500  AP75 0.500  APs -  APm 0.500  APl 0.500",
        "recall     AR1 0.500  AR10 0.500  AR100 0.500  "
        "ARs 0.500  ARm 0.500  ARl 0.500",
        "",
        "class        AP   AP50",
        "cat       0.250  1.000",
        "platypus      -      -",
    ]
    assert len(format_table(metrics, per_class=False).splitlines()) == 2


def test_saved_metrics_are_valid_json_with_null_for_nan(tmp_path):
    metrics = dict.fromkeys(METRICS, 0.5) | {"APs": float("nan")}
    metrics["per_class"] = {"cat": {"AP": float("nan"), "AP50": 1.0}}
    save_metrics(tmp_path / "metrics.json", metrics)
    saved = json.loads((tmp_path / "metrics.json").read_text())
    assert saved["APs"] is None and saved["AP"] == 0.5
    assert saved["per_class"] == {"cat": {"AP": None, "AP50": 1.0}}


def test_classes_of_one_name_stay_apart(tmp_path):
    categories = [{"id": 5, "name": "cat"}, {"id": 9, "name": "cat"}]
    truth = [annotation(1, 1, 5, [0, 0, 9, 9]), annotation(2, 1, 9, [50, 50, 9, 9])]
    evaluator = CocoEvaluator(write_truth(tmp_path, truth, categories=categories))
    evaluator.update([1, 2], detections([], []))
    assert list(evaluator.evaluate()["per_class"]) == ["cat (5)", "cat (9)"]


def test_corner_boxes_become_widths_and_heights():
    boxes = xyxy_to_xywh([[[1, 2, 4, 8]], [[0, 0, 0, 0]]])
    np.testing.assert_array_equal(boxes, [[[1, 2, 3, 6]], [[0, 0, 0, 0]]])


def test_the_curves_are_those_that_the_metrics_average():
    evaluator = CocoEvaluator(TRUTH, category_ids=[18, 1, 2])
    results = json.loads(RESULTS.read_text())
    results = read_results(
        [r for r in results if r["category_id"] in (1, 2, 18)], evaluator
    )
    metrics = evaluator.evaluate(results)
    curves = evaluator.curves
    assert curves.precision.shape == (10, 101, 3, 4)
    assert curves.areas == ("all", "small", "medium", "large")
    # Dog, person, bicycle: by label, not by category id.
    for label, values in enumerate(metrics["per_class"].values()):
        precision = curves.precision[:, :, label, 0]
        assert precision.mean() == pytest.approx(values["AP"])
        assert precision[0].mean() == pytest.approx(values["AP50"])
    small = curves.precision[..., 1]
    assert np.nanmean(small) == pytest.approx(metrics["APs"])
    evaluator.reset()
    assert evaluator.curves is None
