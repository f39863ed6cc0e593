"""The page of `vfnet evaluate --report`."""

import os

import numpy as np

from vfnet_tf import drawing
from vfnet_tf.evaluation import error_types, operating_point
from vfnet_tf.evaluation.calibration import MIN_IOU, calibrate
from vfnet_tf.evaluation.matching import match_detections
from vfnet_tf.reports import evaluation_figures as figures
from vfnet_tf.reports import web_page
from vfnet_tf.reports.curves import history_figures

_NUM_IMAGES = 6
_NUM_CONFUSIONS = 12
_FIGURE_WIDTH = 420
_PICTURE_WIDTH = 300
_MEANINGS = {
    "AP": "average precision, mean over IoU 0.50 to 0.95 and over the classes",
    "AP50": "at IoU 0.50: found at all",
    "AP75": "at IoU 0.75: placed well",
    "APs": "of objects up to 32 x 32 pixels",
    "APm": "of objects up to 96 x 96 pixels",
    "APl": "of larger objects",
    "AR1": "recall with one detection of each class in an image",
    "AR10": "with ten",
    "AR100": "with a hundred",
    "ARs": "of objects up to 32 x 32 pixels",
    "ARm": "of objects up to 96 x 96 pixels",
    "ARl": "of larger objects",
}
# Colours in the gallery, distinct for the colour-blind too.
_RIGHT, _FALSE, _MISSED = (35, 120, 225), (228, 50, 45), (255, 165, 0)


def write_report(
    path,
    evaluator,
    results,
    metrics,
    *,
    about="",
    image_paths=None,
    history=None,
    score_threshold=None,
):
    """Writes the report of an evaluation as one self-contained file.

    Args:
        path: of the html file.
        evaluator: `CocoEvaluator` after its `evaluate`.
        results: the evaluated list in COCO's results format.
        metrics: dict of `CocoEvaluator.evaluate`.
        about: str, a line under the title.
        image_paths: dict from image id to file, for the gallery; or a text with the reason
            why there is none.
        history: path of a run's history.csv, or None.
        score_threshold: float for the confusion matrix and the gallery; None takes the
            one with the largest F1.

    Returns:
        The path, a `pathlib.Path`.
    """
    matches = match_detections(evaluator, results)
    names = list(metrics["per_class"])
    point = operating_point.operating_point(matches, score_threshold)
    chosen = "given" if score_threshold is not None else "where F1 is largest"
    page = web_page.WebPage(f"Evaluation: AP {_number(metrics['AP'])}", about)
    _add_metrics(page, evaluator, matches, metrics, point, chosen)
    _add_history(page, history)
    _add_classes(page, evaluator.curves, matches, names, point)
    _add_sizes(page, matches, metrics)
    _add_calibration(page, matches)
    _add_errors(page, matches)
    _add_confusion(page, matches, names, point)
    _add_gallery(page, matches, names, point, image_paths)
    return page.save(path)


def _add_metrics(page, evaluator, matches, metrics, point, chosen):
    rows = [(name, metrics[name], text) for name, text in _MEANINGS.items()]
    at_point = [
        ("score threshold", point.score_threshold),
        ("precision", point.precision),
        ("recall", point.recall),
        ("F1", point.f1),
    ]
    page.add(
        "Metrics",
        web_page.table_html(("metric", "value", "what it measures"), rows),
        web_page.table_html((f"at one threshold, {chosen}", "value"), at_point),
        note=(
            f"{len(evaluator.image_ids)} images, {len(matches.gt_labels)} objects of "
            f"{matches.num_classes} classes, {len(matches.scores)} detections. The twelve "
            "are COCO's. The second table takes detections from one score on, of all "
            "classes together, at IoU 0.5: the sections on confusions and images use "
            "this threshold too."
        ),
    )


def _add_history(page, history):
    if history is None:
        return
    try:
        drawn = history_figures(history)
    except ValueError as error:
        page.add("Training", note=f"No curves: {error}")
        return
    page.add(
        "Training",
        _figures(drawn),
        note="Solid: training. Dashed, or named val_: validation.",
    )


def _add_classes(page, curves, matches, names, point):
    shown = matches.scores >= point.score_threshold
    count = len(names)
    objects = np.bincount(matches.gt_labels, minlength=count)
    true, false = (
        np.bincount(matches.labels[rows & shown], minlength=count)
        for rows in (matches.is_true, matches.is_false)
    )
    rows = []
    for label, name in enumerate(names):
        precision = curves.precision[:, :, label]
        by_iou = precision[:, :, 0].mean(axis=1)
        rows.append(
            (
                name,
                by_iou.mean(),
                by_iou[0],
                by_iou[5],
                *precision[:, :, 1:].mean(axis=(0, 1)),
                operating_point.ratio(true[label], true[label] + false[label]),
                operating_point.ratio(true[label], objects[label]),
                objects[label],
                true[label] + false[label],
            )
        )
    header = ("class", "AP", "AP50", "AP75", "APs", "APm", "APl")
    header += ("precision", "recall", "objects", "detections")
    page.add(
        "Classes",
        web_page.table_html(header, rows),
        note=(
            "Precision, recall and detections are those at score >= "
            f"{point.score_threshold:.3f} and IoU 0.5. A dash: nothing to measure on."
        ),
    )
    page.add(
        "Precision and recall",
        _figures(
            [
                figures.precision_recall(curves),
                figures.precision_recall_by_class(curves, names),
            ]
        ),
        note=(
            "Precision is the best at this recall or a higher one, as COCO counts; AP is "
            "the area below."
        ),
    )


def _add_sizes(page, matches, metrics):
    borders = (0, 32**2, 96**2, np.inf)
    # COCO's ranges share their borders; here an object on a border counts as smaller.
    counts = [
        int(np.sum((matches.gt_areas > low) & (matches.gt_areas <= high)))
        for low, high in zip(borders[:-1], borders[1:], strict=True)
    ]
    names = ("small", "medium", "large")
    rows = [
        (name, metrics[f"AP{name[0]}"], metrics[f"AR{name[0]}"], count)
        for name, count in zip(names, counts, strict=True)
    ]
    values = [metrics[f"AP{name[0]}"] for name in names]
    page.add(
        "Sizes",
        web_page.table_html(("size", "AP", "AR", "objects"), rows),
        _figures([figures.ap_by_size(names, values)]),
        note=(
            "By the area of an object in its original image: up to 32 x 32 pixels, up to "
            "96 x 96, above."
        ),
    )


def _add_calibration(page, matches):
    near, everything = calibrate(matches), calibrate(matches, min_iou=0.0)
    rows = [
        (name, len(one.scores), one.pearson, one.spearman, one.gap)
        for name, one in ((f"IoU >= {MIN_IOU}", near), ("all", everything))
    ]
    header = ("detections", "number", "Pearson", "Spearman", "mean distance")
    page.add(
        "Score and IoU",
        web_page.table_html(header, rows),
        _figures([figures.calibration_density(near), figures.calibration_bins(near)]),
        note=(
            "VFNet learns a score that is the IoU of its box (the paper's IACS): on the "
            "dashed line it would be exactly that. The IoU is that with the best object "
            f"of the detection's class. The figures show detections with IoU >= {MIN_IOU}; "
            "in the table's second row those on the background count too, with the IoU "
            "that they have. Red: means by bins of the score. For ranking, only Spearman "
            "matters; the distance says whether a score can be read as an IoU."
        ),
    )


def _add_errors(page, matches):
    costs = error_types.error_costs(matches)
    texts = {**error_types.ERROR_TYPES, **error_types.SPECIAL_TYPES}
    entries = {**costs["main"], **costs["special"]}
    rows = [
        (name, entry["count"], f"{100 * entry['cost']:.2f}", texts[name])
        for name, entry in entries.items()
    ]
    header = ("error", "number", "costs AP50, points", "what it is")
    page.add(
        "Errors",
        web_page.table_html(header, rows),
        _figures([figures.error_costs(costs)]),
        note=(
            "Each wrong detection, of whatever score, has one type (TIDE, Bolya et al. "
            "2020); its cost is what AP50, now "
            f"{100 * costs['AP']:.2f}, would gain if this type alone were mended. Many "
            "errors of low scores cost little. Costs do not add up. The grey ones are "
            "limits: no wrong detection at all, no object missed at all."
        ),
    )


def _add_confusion(page, matches, names, point):
    matrix = operating_point.confusion_matrix(matches, point.score_threshold)
    pairs = operating_point.most_confused(matrix, _NUM_CONFUSIONS)
    objects = matrix[:-1].sum(axis=1)
    rows = [
        (names[i], names[j], number, f"{100 * number / objects[i]:.1f} %")
        for i, j, number in pairs
    ]
    header = ("truly", "detected as", "number", "of its objects")
    parts = [web_page.figure_html(figures.confusion(matrix, names))]
    if rows and len(names) > 2:
        parts.append(web_page.table_html(header, rows))
    many = len(names) > figures.MAX_CLASSES
    page.add(
        "Confusions",
        *parts,
        note=(
            f"Detections with score >= {point.score_threshold:.3f} at IoU >= "
            f"{matches.iou_threshold}. Row: the true class; background has detections "
            "that no object explains, duplicates too. Column: what it was detected as."
            + (" Of the classes, those confused most are shown." if many else "")
        ),
    )


def _add_gallery(page, matches, names, point, image_paths):
    heading = "Best and worst images"
    if not isinstance(image_paths, dict):
        page.add(heading, note=f"Left out: {image_paths or 'no images are known'}.")
        return
    quality = operating_point.image_quality(matches, point.score_threshold)
    groups = operating_point.rank_images(quality, _NUM_IMAGES)
    pictures, missing = [], []
    for group in groups:
        pictures.append([])
        for index in group:
            image_id = int(matches.image_ids[index])
            file = image_paths.get(image_id, f"image {image_id}")
            try:
                picture = _picture(matches, index, file, quality, names, point)
            except OSError:
                missing.append(file)
            else:
                pictures[-1].append(picture)
    notes = [
        "Measure: panoptic quality of an image's boxes, the sum of the IoUs of its right "
        "detections divided by TP + FP/2 + FN/2, at score >= "
        f"{point.score_threshold:.3f} and IoU >= {matches.iou_threshold}. Blue: right. "
        "Red: false. Orange: missed."
    ]
    if missing:
        notes.append(f"{len(missing)} images cannot be read, such as {missing[0]}.")
    parts = []
    for title, group in zip(("Best", "Worst"), pictures, strict=True):
        if group:
            parts += [
                web_page.subheading_html(title),
                web_page.gallery_html(group, _PICTURE_WIDTH),
            ]
    if not parts:
        notes = [f"Left out: {notes[-1]}" if missing else "Left out: nothing to show."]
    page.add(heading, *parts, note=" ".join(notes))


def _picture(matches, index, file, quality, names, point):
    """One image with right, false and missed boxes, as html."""
    from vfnet_tf.data.images.numpy_decode import load_image

    shown = (matches.images == index) & (matches.scores >= point.score_threshold)
    right = np.flatnonzero(shown & matches.is_true)
    false = np.flatnonzero(shown & matches.is_false)
    objects = np.flatnonzero(matches.gt_images == index)
    missed = objects[~np.isin(objects, matches.matched[right])]
    boxes = np.concatenate(
        [matches.boxes[right], matches.boxes[false], matches.gt_boxes[missed]]
    )
    boxes[:, 2:] += boxes[:, :2]
    labels = [
        *matches.labels[right],
        *matches.labels[false],
        *matches.gt_labels[missed],
    ]
    # Right detections have no names, which would cover the picture.
    captions = [""] * len(right)
    captions += [
        f"{names[matches.labels[row]]} {matches.scores[row]:.2f}" for row in false
    ]
    captions += [names[matches.gt_labels[row]] for row in missed]
    colors = [_RIGHT] * len(right) + [_FALSE] * len(false) + [_MISSED] * len(missed)
    drawn = drawing.draw_detections(
        load_image(file), boxes, labels, captions=captions, colors=colors
    )
    caption = (
        f"{os.path.basename(file)}: quality {quality['quality'][index]:.3f}, "
        f"{len(right)} right, {len(false)} false, {len(missed)} missed"
    )
    return web_page.image_html(drawn, caption, max_side=640)


def _figures(drawn):
    return web_page.gallery_html(
        [web_page.figure_html(figure) for figure in drawn], _FIGURE_WIDTH
    )


def _number(value):
    return "–" if np.isnan(value) else f"{value:.3f}"
