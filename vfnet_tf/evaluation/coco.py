"""COCO detection metrics: streaming, keyed by image id, equal to pycocotools.

pycocotools does the matching and the integration. Its copy of the ground truth has no
masks, which saves memory, and is numbered from 1, since pycocotools takes a match with
annotation id 0 for none.
"""

import contextlib
import dataclasses
import io
import json
import os
import warnings

import numpy as np

from vfnet_tf.data.text import read_json_file
from vfnet_tf.data.values import is_blank, read_crowd, read_id, read_number
from vfnet_tf.files import replacing

# (is it precision, IoU threshold or None for the mean of .5:.95, area, detections), in
# the order in which pycocotools prints the metrics.
_DEFINITIONS = {
    "AP": (True, None, "all", 100),
    "AP50": (True, 0.5, "all", 100),
    "AP75": (True, 0.75, "all", 100),
    "APs": (True, None, "small", 100),
    "APm": (True, None, "medium", 100),
    "APl": (True, None, "large", 100),
    "AR1": (False, None, "all", 1),
    "AR10": (False, None, "all", 10),
    "AR100": (False, None, "all", 100),
    "ARs": (False, None, "small", 100),
    "ARm": (False, None, "medium", 100),
    "ARl": (False, None, "large", 100),
}
METRICS = tuple(_DEFINITIONS)
"""The 12 COCO metrics in the order in which pycocotools prints them."""

# Keeps the json short; a thousandth of a pixel changes no printed metric.
_BOX_DECIMALS = 3
_MAX_LISTED = 20


@dataclasses.dataclass(frozen=True, eq=False)
class PrecisionCurves:
    """Precision over recall, as COCOeval accumulates it with 100 detections an image.

    Attributes:
        iou_thresholds: float `[T]`, 0.5 to 0.95.
        recalls: float `[R]`, 0 to 1.
        areas: A names, `"all"`, `"small"`, `"medium"`, `"large"`.
        precision: float `[T, R, K, A]`, classes in the order of their labels; NaN
            without ground truth. Its mean over T and R is the AP of a class.
    """

    iou_thresholds: np.ndarray
    recalls: np.ndarray
    areas: tuple
    precision: np.ndarray


class CocoEvaluator:
    """Collects detections batch by batch and computes the COCO metrics.

    A detection inside a crowd box is neither right nor wrong, as in pycocotools.

    Args:
        dataset: a dataset with `records` (each with `image_id`), `category_ids`,
            `class_names` and `annotation_file`, evaluated over the images of its
            records; or the path of a COCO annotation file, evaluated over all of its
            images. If `annotation_file` is None, the ground truth is the `boxes` and
            `labels` of the records.
        category_ids: COCO category id of each label; the default is the dataset's, or
            the file's in ascending order.
        image_ids: the images to evaluate over, if fewer.
        backend: `"pycocotools"`, or `"faster-coco-eval"`: the same numbers, quicker on
            thousands of images; needs the extra `fast-eval`.

    Attributes:
        truth: dict with `annotations`, the ground truth: each with `image_id`,
            `category_id`, `bbox` `[x, y, width, height]`, `area`, `iscrowd`.
        image_ids, category_ids, class_names: tuples; the latter two by label.
        curves: `PrecisionCurves` of the latest `evaluate`, None before.

    Raises:
        ValueError: an unreadable or incomplete annotation file, an unknown category.
        ImportError: the chosen backend is not installed.
    """

    def __init__(
        self, dataset, category_ids=None, *, image_ids=None, backend="pycocotools"
    ):
        self._coco_class, self._eval_class = _load_backend(backend)
        self.backend = backend
        if hasattr(dataset, "records"):
            truth, path = _truth_of_dataset(dataset)
            if category_ids is None:
                category_ids = dataset.category_ids
            if image_ids is None:
                image_ids = [int(record.image_id) for record in dataset.records]
        else:
            path = os.fspath(dataset)
            truth = _read_truth(path)
        self.annotation_file = path
        names = {c["id"]: str(c.get("name", c["id"])) for c in truth["categories"]}
        if category_ids is None:
            category_ids = sorted(names)
        category_ids = tuple(_as_python(value) for value in category_ids)
        unknown = [value for value in category_ids if value not in names]
        if unknown or not category_ids or len(set(category_ids)) != len(category_ids):
            raise ValueError(
                "`category_ids` must be distinct categories of the annotation file. "
                f"Received: category_ids={_shortened(category_ids)}, the categories of "
                f"{path} are {_shortened(sorted(names))}"
            )
        known = {image["id"] for image in truth["images"]}
        image_ids = known if image_ids is None else {_as_python(i) for i in image_ids}
        if image_ids - known or not image_ids:
            raise ValueError(
                "`image_ids` must be images of the annotation file, at least one. "
                f"Received: image_ids without an entry in {path}: "
                f"{_shortened(sorted(image_ids - known))}, of {len(image_ids)} images"
            )
        self.category_ids = category_ids
        self.class_names = tuple(names[value] for value in category_ids)
        self.image_ids = tuple(sorted(image_ids))
        self.truth = _clean_truth(truth, image_ids, path)
        self._warn_of_classes_without_truth()
        self._truth_index = self._build_index(self.truth)
        self.reset()

    def reset(self):
        """Removes all detections; the ground truth stays."""
        self._detections = {}
        self.num_duplicates = 0
        self.curves = None

    def update(self, image_ids, detections):
        """Adds the detections of a batch.

        Args:
            image_ids: int `[B]`. Rows of -1 are padding. Only the first detections of an
                image count; `num_duplicates` counts the others.
            detections: dict of arrays or tensors: `boxes` float `[B, D, 4]` xyxy in
                pixels of the ORIGINAL image, `scores` float `[B, D]`, `labels` int
                `[B, D]` in [0, K), -1 pads, and optionally `num_detections` int `[B]`:
                further rows are padding too.

        Raises:
            ValueError: shapes do not agree, an image is not evaluated, a label has no
                category, or a box or score is not finite.
        """
        image_ids = np.asarray(image_ids).reshape(-1)
        boxes = np.asarray(detections["boxes"]).astype("float32")
        scores = np.asarray(detections["scores"]).astype("float32")
        labels = np.asarray(detections["labels"])
        rows = scores.shape
        if (
            scores.ndim != 2
            or boxes.shape != (*rows, 4)
            or labels.shape != rows
            or image_ids.shape != rows[:1]
        ):
            raise ValueError(
                "Detections must be boxes [B, D, 4], scores [B, D], labels [B, D] of B "
                f"image ids. Received: boxes={boxes.shape}, scores={rows}, "
                f"labels={labels.shape}, image_ids={image_ids.shape}"
            )
        is_detection = labels >= 0
        if detections.get("num_detections") is not None:
            counts = np.asarray(detections["num_detections"]).reshape(-1, 1)
            is_detection &= np.arange(rows[1]) < counts
        evaluated = self._evaluated_images
        for row, image_id in enumerate(image_ids.tolist()):
            if image_id == -1:
                continue
            if image_id not in evaluated:
                raise ValueError(
                    "Detections must be of an image that is evaluated. Received: "
                    f"image_id={image_id}, not among the {len(evaluated)} images of "
                    f"{self.annotation_file}"
                )
            if image_id in self._detections:
                self.num_duplicates += 1
                continue
            keep = is_detection[row]
            self._add(image_id, boxes[row][keep], scores[row][keep], labels[row][keep])

    @property
    def _evaluated_images(self):
        return self._truth_index.imgs

    def _add(self, image_id, boxes, scores, labels):
        if labels.size and labels.max() >= len(self.category_ids):
            raise ValueError(
                f"Labels must be below the number of classes {len(self.category_ids)}. "
                f"Received: label={labels.max()} for image_id={image_id}"
            )
        if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
            raise ValueError(
                "Boxes and scores must be finite (did training diverge?). Received: "
                f"NaN or infinity for image_id={image_id}"
            )
        self._detections[image_id] = (boxes, scores, labels)

    def results(self):
        """Lists the detections in COCO's results format.

        Returns:
            list of dicts with `image_id`, `category_id`, `bbox`, `[x, y, width,
            height]`, and `score`, boxes in original pixels to a thousandth, in the
            order of `update`. Scores keep the precision of float32.
        """
        results = []
        for image_id, (boxes, scores, labels) in self._detections.items():
            for box, score, label in zip(
                xyxy_to_xywh(boxes).tolist(), scores, labels.tolist(), strict=True
            ):
                results.append(
                    {
                        "image_id": image_id,
                        "category_id": self.category_ids[label],
                        "bbox": [round(value, _BOX_DECIMALS) for value in box],
                        # str of a float32 is the shortest text of its value
                        "score": float(str(score)),
                    }
                )
        return results

    def save_results(self, path):
        """Writes `results()` as json for evaluation servers, whole or not at all."""
        _write_json(path, self.results())

    def evaluate(self, results=None):
        """Computes the metrics over all evaluated images.

        Images without detections count with their objects missed.

        Args:
            results: list of `read_results`, to evaluate in place of the detections of
                `update`.

        Returns:
            dict with the 12 floats of `METRICS`, each in [0, 1], or NaN without ground
            truth (pycocotools prints -1), and `per_class`:
            `{class name: {"AP": float, "AP50": float}}` in the order of the labels.
        """
        if results is not None:
            return self._evaluate(results)
        missing = len(self.image_ids) - len(self._detections)
        if missing:
            warnings.warn(
                f"{missing} of {len(self.image_ids)} images of {self.annotation_file} "
                "were never given to `update`: they count as images without detections",
                stacklevel=2,
            )
        if self.num_duplicates:
            warnings.warn(
                f"{self.num_duplicates} images came to `update` again; the detections "
                "of their first time count",
                stacklevel=2,
            )
        return self._evaluate(self.results())

    def _evaluate(self, results):
        # Copies, since pycocotools writes ids into the detections.
        annotations = [
            {
                **result,
                "id": number,
                "area": result["bbox"][2] * result["bbox"][3],
                "iscrowd": 0,
            }
            for number, result in enumerate(results, start=1)
        ]
        detections = self._build_index({**self.truth, "annotations": annotations})
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = self._eval_class(self._truth_index, detections, "bbox")
            evaluation.params.imgIds = list(self.image_ids)
            evaluation.params.catIds = sorted(self.category_ids)
            evaluation.evaluate()
            evaluation.accumulate()
        metrics = {name: _measure(evaluation, name) for name in METRICS}
        columns = {value: k for k, value in enumerate(sorted(self.category_ids))}
        order = [columns[value] for value in self.category_ids]
        self.curves = _precision_curves(evaluation, order)
        metrics["per_class"] = {
            name: {
                key: _measure(evaluation, key, columns[category_id])
                for key in ("AP", "AP50")
            }
            for name, category_id in zip(
                self._distinct_names(), self.category_ids, strict=True
            )
        }
        return metrics

    def _distinct_names(self):
        counts = {name: self.class_names.count(name) for name in self.class_names}
        return [
            name if counts[name] == 1 else f"{name} ({category_id})"
            for name, category_id in zip(
                self.class_names, self.category_ids, strict=True
            )
        ]

    def _build_index(self, content):
        # The constructor of pycocotools reads only files.
        with contextlib.redirect_stdout(io.StringIO()):
            index = self._coco_class()
            index.dataset = content
            index.createIndex()
        return index

    def _warn_of_classes_without_truth(self):
        present = {
            annotation["category_id"]
            for annotation in self.truth["annotations"]
            if not annotation["iscrowd"]
        }
        absent = [
            name
            for name, category_id in zip(
                self.class_names, self.category_ids, strict=True
            )
            if category_id not in present
        ]
        if absent:
            warnings.warn(
                f"{len(absent)} of {len(self.class_names)} classes have no object in "
                f"the {len(self.image_ids)} images of {self.annotation_file}; their AP "
                f"is NaN and left out of the mean: {_shortened(absent)}",
                stacklevel=3,
            )


def read_results(results, evaluator):
    """Reads and checks results for `CocoEvaluator.evaluate`.

    Args:
        results: path of a json in COCO's results format, or such a list.
        evaluator: `CocoEvaluator`.

    Returns:
        list of dicts. A warning names categories that the evaluator leaves out.

    Raises:
        ValueError: the file cannot be read, a result lacks one of its four keys or is
            of an image that is not evaluated.
    """
    place = "the list of results"
    if not isinstance(results, (list, tuple)):
        place = os.fspath(results)
        results = read_json_file(place)
    results = _checked_results(results, place)
    unknown_images = {r["image_id"] for r in results} - set(evaluator._evaluated_images)
    if unknown_images:
        raise ValueError(
            "Results must be of images in the annotation file. Received: in "
            f"{place} image ids {_shortened(sorted(unknown_images, key=str))} that "
            f"{evaluator.annotation_file} does not have"
        )
    unknown = {r["category_id"] for r in results} - set(evaluator.category_ids)
    if unknown:
        warnings.warn(
            f"Results in {place} of categories {_shortened(sorted(unknown, key=str))} "
            f"are left out: {evaluator.annotation_file} has no such category. Category "
            "ids are meant here, not labels that count from 0",
            stacklevel=2,
        )
    return results


def format_table(metrics, per_class=True):
    """Metrics as a table of text.

    Args:
        metrics: the dict of `CocoEvaluator.evaluate`.
        per_class: bool, add a row for each class.

    Returns:
        str of several lines with three decimals; `-` for NaN.
    """
    lines = []
    for title, names in (("precision", METRICS[:6]), ("recall", METRICS[6:])):
        cells = "  ".join(f"{name} {_cell(metrics[name])}" for name in names)
        lines.append(f"{title:<10} {cells}")
    classes = metrics.get("per_class") or {}
    if per_class and classes:
        width = max(len("class"), *(len(name) for name in classes))
        lines += ["", f"{'class':<{width}}     AP   AP50"]
        lines += [
            f"{name:<{width}}  {_cell(row['AP']):>5}  {_cell(row['AP50']):>5}"
            for name, row in classes.items()
        ]
    return "\n".join(lines)


def save_metrics(path, metrics):
    """Writes metrics as json, NaN as null (json has no NaN), whole or not at all."""
    plain = {name: _without_nan(metrics[name]) for name in METRICS}
    plain["per_class"] = {
        name: {key: _without_nan(value) for key, value in row.items()}
        for name, row in metrics.get("per_class", {}).items()
    }
    _write_json(path, plain, indent=2)


def xyxy_to_xywh(boxes):
    """Turns corner boxes into COCO's `(x, y, width, height)`.

    Args:
        boxes: float `[..., 4]` `(x1, y1, x2, y2)`.

    Returns:
        float64 `[..., 4]`.
    """
    boxes = np.asarray(boxes, "float64")
    return np.concatenate([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], axis=-1)


def _load_backend(backend):
    if backend == "pycocotools":
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        return COCO, COCOeval
    if backend == "faster-coco-eval":
        try:
            from faster_coco_eval import COCO, COCOeval_faster
        except ImportError as error:
            raise ImportError(
                "The backend faster-coco-eval is not installed: "
                "pip install 'vfnet_tf[fast-eval]'"
            ) from error
        return COCO, COCOeval_faster
    raise ValueError(
        "`backend` must be 'pycocotools' or 'faster-coco-eval'. Received: "
        f"backend={backend!r}"
    )


def _measure(evaluation, name, column=None):
    """Averages one metric over all classes, or takes one class; NaN if undefined."""
    is_precision, threshold, area, num_detections = _DEFINITIONS[name]
    parameters = evaluation.params
    a = list(parameters.areaRngLbl).index(area)
    m = list(parameters.maxDets).index(num_detections)
    # precision [IoU, recall, class, area, detections], recall without the second axis.
    # The order of the mean's operands is that of pycocotools, for equal last bits.
    values = np.asarray(evaluation.eval["precision" if is_precision else "recall"])
    values = values[..., a, m]
    if threshold is not None:
        values = values[np.isclose(parameters.iouThrs, threshold)]
    if column is not None:
        values = values[..., column]
    values = values[values > -1]  # -1: no ground truth
    return float(np.mean(values)) if values.size else float("nan")


def _precision_curves(evaluation, order):
    parameters = evaluation.params
    m = list(parameters.maxDets).index(100)
    precision = np.asarray(evaluation.eval["precision"])[..., m][:, :, order]
    return PrecisionCurves(
        iou_thresholds=np.array(parameters.iouThrs),
        recalls=np.array(parameters.recThrs),
        areas=tuple(parameters.areaRngLbl),
        precision=np.where(precision > -1, precision, np.nan),
    )


def _read_truth(path, has_bad_images=False):
    """The content of an annotation file; leaves out bad images if they are allowed."""
    content = read_json_file(path)
    keys = ("images", "annotations", "categories")
    missing = [
        key
        for key in keys
        if not isinstance(content, dict) or not isinstance(content.get(key), list)
    ]
    if missing:
        raise ValueError(
            "A COCO annotation file must have the lists images, annotations and "
            f"categories. Received: path={path} without {', '.join(missing)}"
        )
    for key in ("images", "categories"):
        entries = []
        for number, entry in enumerate(content[key]):
            own_id = read_id(entry.get("id")) if isinstance(entry, dict) else None
            if own_id is not None:
                entries.append({**entry, "id": own_id})
            elif key == "categories" or not has_bad_images:
                raise ValueError(
                    f"Each entry of {key} must have an integer id. Received: "
                    f"path={path} with entry {number}: {entry!r:.200}"
                )
        content[key] = entries
    return content


def _truth_of_dataset(dataset):
    if getattr(dataset, "annotation_file", None) is not None:
        path = os.fspath(dataset.annotation_file)
        return _read_truth(path, has_bad_images=True), path
    annotations = []
    for record in dataset.records:
        rows = [(record.boxes, record.labels, 0)]
        if getattr(record, "num_crowd", 0):
            rows.append((record.crowd_boxes, record.crowd_labels, 1))
        for boxes, labels, is_crowd in rows:
            for box, label in zip(xyxy_to_xywh(boxes).tolist(), labels, strict=True):
                annotations.append(
                    {
                        "image_id": int(record.image_id),
                        "category_id": dataset.category_ids[int(label)],
                        "bbox": box,
                        "iscrowd": is_crowd,
                    }
                )
    truth = {
        "images": [{"id": int(record.image_id)} for record in dataset.records],
        "annotations": annotations,
        "categories": [
            {"id": value, "name": name}
            for value, name in zip(
                dataset.category_ids, dataset.class_names, strict=True
            )
        ],
    }
    return truth, "the dataset's records"


def _clean_truth(truth, image_ids, path):
    """Copies the annotations of the given images without masks; warns of bad ones."""
    annotations, left_out, seen = [], {}, set()
    known_images = {image["id"] for image in truth["images"]}
    known_categories = {category["id"] for category in truth["categories"]}
    for index, source in enumerate(truth["annotations"]):
        source = source if isinstance(source, dict) else {}
        image_id = read_id(source.get("image_id"))
        if image_id in known_images and image_id not in image_ids:
            continue
        own_id = read_id(source.get("id"))
        name = f"annotations[{index}]" if own_id is None else own_id
        category_id = read_id(source.get("category_id"))
        bbox = _finite_numbers(source.get("bbox"), 4)
        is_crowd, wrong_flag = read_crowd(source)
        content = (own_id, image_id, category_id, *(bbox or ()))
        problem = ""
        if image_id not in known_images:
            problem = "are of no image of the file"
        elif category_id not in known_categories:
            problem = "are of no category of the file"
        elif bbox is None:
            problem = "have no box of four finite numbers"
        elif wrong_flag:
            problem = f"have a flag that is neither true nor false ({wrong_flag})"
        elif own_id is not None and content in seen:
            problem = "are listed twice"
        if problem:
            left_out.setdefault(problem, []).append(name)
            continue
        seen.add(content)
        # COCO's sizes are areas of masks, if there are masks.
        area = source.get("area")
        area = bbox[2] * bbox[3] if is_blank(area) else read_number(area)
        if area is None:
            problem = "have an area that is no number"
            left_out.setdefault(problem, []).append(name)
            continue
        annotations.append(
            {
                "id": len(annotations) + 1,
                "image_id": image_id,
                "category_id": category_id,
                "bbox": bbox,
                "area": area,
                "iscrowd": int(is_crowd),
            }
        )
    for problem, names in left_out.items():
        warnings.warn(
            f"{len(names)} annotations of {path} {problem} and are left out of the "
            f"evaluation: ids {_shortened(names)}",
            stacklevel=4,
        )
    images = [{"id": value} for value in sorted(image_ids)]
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": c["id"]} for c in truth["categories"]],
    }


def _checked_results(results, place):
    keys = ("image_id", "category_id", "bbox", "score")
    if not isinstance(results, (list, tuple)):
        raise ValueError(
            f"COCO results must be a list. Received: {place} holding "
            f"{type(results).__name__}"
        )
    checked = []
    for number, result in enumerate(results):
        get = result.get if isinstance(result, dict) else {}.get
        values = (
            read_id(get("image_id")),
            read_id(get("category_id")),
            _finite_numbers(get("bbox"), 4),
            read_number(get("score")),
        )
        if None in values:
            raise ValueError(
                "A COCO result must have the integers image_id and category_id, a bbox "
                f"of four finite numbers and a finite score. Received: entry {number} "
                f"of {place}: {result!r:.200}"
            )
        checked.append(dict(zip(keys, values, strict=True)))
    return checked


def _write_json(path, content, indent=None):
    with (
        replacing(path, is_shared=True) as temporary,
        open(temporary, "w", encoding="utf-8") as file,
    ):
        json.dump(content, file, indent=indent, allow_nan=False)


def _finite_numbers(values, count):
    """`values` as a list of `count` finite floats; None if they are not."""
    if not isinstance(values, (list, tuple)) or len(values) != count:
        return None
    found = list(map(read_number, values))
    return None if None in found else found


def _as_python(value):
    return value.item() if isinstance(value, np.generic) else value


def _without_nan(value):
    return None if np.isnan(value) else float(value)


def _cell(value):
    return "-" if value is None or np.isnan(value) else f"{value:.3f}"


def _shortened(values):
    shown = ", ".join(str(value) for value in list(values)[:_MAX_LISTED])
    rest = len(values) - _MAX_LISTED
    return f"{shown} and {rest} more" if rest > 0 else shown
