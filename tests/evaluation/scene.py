"""Ground truth and detections as tuples, matched: small enough to work by hand."""

from types import SimpleNamespace

from vfnet_tf.evaluation.coco import CocoEvaluator, read_results
from vfnet_tf.evaluation.matching import match_detections

CATEGORY_IDS = (5, 9, 7)  # of the labels 0, 1, 2


def evaluator(objects, image_ids=(1, 2)):
    """What the analyses ask of a `CocoEvaluator`.

    Args:
        objects: list of (image id, label, [x, y, width, height]), crowds with a fourth
            value, True.
        image_ids: tuple of ints.
    """
    annotations = [
        {
            "image_id": image_id,
            "category_id": CATEGORY_IDS[label],
            "bbox": bbox,
            "area": bbox[2] * bbox[3],
            "iscrowd": int(bool(crowd)),
        }
        for image_id, label, bbox, *crowd in objects
    ]
    return SimpleNamespace(
        truth={"annotations": annotations},
        image_ids=image_ids,
        category_ids=CATEGORY_IDS,
        class_names=("cat", "dog", "owl"),
    )


def results(found):
    """List in COCO's results format of (image id, label, bbox, score)."""
    return [
        {
            "image_id": image_id,
            "category_id": CATEGORY_IDS[label],
            "bbox": bbox,
            "score": score,
        }
        for image_id, label, bbox, score in found
    ]


def match(objects, found, iou_threshold=0.5):
    """`Matches` of `evaluator(objects)` and `results(found)`."""
    return match_detections(evaluator(objects), results(found), iou_threshold)


def metrics_of(truth, results, **options):
    """Metrics of results by an annotation file, both as `read_results` takes them."""
    evaluator = CocoEvaluator(truth, **options)
    return evaluator.evaluate(read_results(results, evaluator))
