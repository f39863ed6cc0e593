"""COCO metrics of a detector on a dataset, or of a file of detections."""

import os
import pathlib

from vfnet_tf.evaluation.coco import (
    CocoEvaluator,
    format_table,
    read_results,
    save_metrics,
)
from vfnet_tf.inference.dataset import (
    config_at_size,
    describe_views,
    detect_dataset,
    detect_views,
    view_sizes,
)
from vfnet_tf.inference.load import output_folder
from vfnet_tf.inference.predictor import Predictor
from vfnet_tf.inference.runtime import RuntimePredictor
from vfnet_tf.progress import Progress


def evaluate(
    detector,
    data=None,
    *,
    split="val",
    config=None,
    image_dir=None,
    batch_size=1,
    max_canvas_shapes=None,
    image_size=None,
    tta=(),
    limit=None,
    skip_bad_images=False,
    out=None,
    report=None,
    score_threshold=None,
    backend="pycocotools",
    verbose=True,
):
    """Measures a detector on a dataset by the COCO metrics.

    Args:
        detector: a run directory (its best weights), a `.weights.h5`, an official
            `.pth` or `.safetensors`, an exported `.tflite` or `.onnx` file, a
            `Predictor`, or a `DenseDetector`.
        data: `DetectionDataset`, or a path as `open_dataset` takes it; None takes the
            generated images.
        split: `"train"`, `"val"` or `"test"`, the part of `data` if that is a path.
        config: `Config`, name or path, for weights without a `config.json` beside them.
            It says how images become network inputs.
        image_dir: folder of the images; None looks beside the annotations.
        batch_size: int, images at a time.
        max_canvas_shapes: int, padded shapes at most. None gives each image its own
            multiple of 32, as in the official code.
        image_size: (short, long) in pixels, or (height, width) if the config does not
            keep the ratio, in place of the config's.
        tta: sizes of the views for test-time augmentation, each plain and mirrored, or
            `"official"`; empty for none.
        limit: int, number of images to take, from the first; None takes all.
        skip_bad_images: bool, whether unreadable images are left out.
        out: folder for `detections.json` and `metrics.json`; `"beside"` for
            `evaluation_SPLIT` beside the weights; None writes nothing.
        report: path of an html file to write, see `reports`.
        score_threshold: float, for the pictures of `report`.
        backend: `"pycocotools"` or `"faster-coco-eval"`.
        verbose: bool, whether to print the steps and the table.

    Returns:
        dict from `"AP"`, `"AP50"`, ... to floats in [0, 1], see
        `CocoEvaluator.evaluate`.

    Raises:
        ValueError: for data, weights or settings that do not fit.

    >>> metrics = vfnet_tf.evaluate("runs/mine", "cells")  # doctest: +SKIP
    """
    from vfnet_tf.data.dataset import DetectionDataset
    from vfnet_tf.data.formats.readers import read_split

    say = print if verbose else lambda *lines, **options: None
    given_config = config
    model, config, source = _open(detector, config, say)
    predictor = model if isinstance(model, RuntimePredictor) else None
    tta = tta or getattr(detector, "tta_sizes", ())
    if predictor is not None:
        _check_file_settings(
            config=given_config,
            image_size=image_size,
            tta=tta,
            max_canvas_shapes=max_canvas_shapes,
            batch_size=None if batch_size == 1 else batch_size,
        )
    config = config_at_size(config, image_size, bool(tta))
    views = view_sizes(config, tta)
    if isinstance(data, DetectionDataset):
        dataset = data if limit is None else data.subset(min(limit, len(data)))
    else:
        dataset = read_split(
            data,
            split,
            image_dir=image_dir,
            class_names=config.class_names or None,
            skip_bad_images=skip_bad_images,
            limit=limit,
            progress=Progress if verbose else None,
            log=say,
        )
    say(f"data       {dataset.summary()}", flush=True)
    check_classes(predictor.detector if predictor else model, dataset)
    evaluator = CocoEvaluator(dataset, backend=backend)
    if out == "beside":
        out = _folder_beside(detector, source, split, views, image_size)
    if predictor is not None:
        _predict_dataset(predictor, dataset, evaluator)
    elif views:
        say(f"views      {describe_views(views)}", flush=True)
        detect_views(model, dataset, config, evaluator, views)
    else:
        detect_dataset(
            model,
            dataset,
            config,
            evaluator,
            batch_size=batch_size,
            max_canvas_shapes=max_canvas_shapes,
        )
    if out is not None:
        # Before the metrics, so that an error in these does not lose the detections.
        evaluator.save_results(pathlib.Path(out) / "detections.json")
        say(f"detections {pathlib.Path(out) / 'detections.json'}", flush=True)
    history = None if source is None else source.with_name("history.csv")
    return _finish(
        evaluator,
        None,
        out,
        say,
        report,
        about=source or type(model).__name__,
        image_paths={record.image_id: record.path for record in dataset.records},
        history=history if history is not None and history.is_file() else None,
        score_threshold=score_threshold,
    )


def evaluate_results(
    results,
    data,
    *,
    split="val",
    image_dir=None,
    out=None,
    report=None,
    score_threshold=None,
    backend="pycocotools",
    verbose=True,
):
    """Measures the detections in a file by the COCO metrics.

    Args:
        results: path of a json file in COCO's results format.
        data, split, image_dir, out, report, score_threshold, backend, verbose: see
            `evaluate`.

    Returns:
        dict of metrics, see `evaluate`.

    Raises:
        ValueError: for results that do not fit the data.
    """
    from vfnet_tf.data.formats.readers import find_splits

    say = print if verbose else lambda *lines, **options: None
    splits = find_splits(data, Progress if verbose else None)
    say(f"format     {splits.description}")
    annotations, beside = splits.locate(split)
    evaluator = CocoEvaluator(annotations, backend=backend)
    found = read_results(results, evaluator)
    say(f"results     {results}\nannotations {annotations}\n")
    image_paths = None
    if report is not None:
        image_paths = _image_paths(annotations, image_dir or beside)
    return _finish(
        evaluator,
        found,
        out,
        say,
        report,
        about=results,
        image_paths=image_paths,
        score_threshold=score_threshold,
    )


def check_classes(detector, dataset):
    """Raises a ValueError if a dataset has another number of classes than a detector."""
    if dataset.num_classes != detector.num_classes:
        raise ValueError(
            f"The data must have the {detector.num_classes} classes of the detector. "
            f"Received: {dataset.num_classes} classes in "
            f"{dataset.report.annotation_file}"
        )


def _check_file_settings(**settings):
    """Raises a ValueError for settings that an exported file fixes."""
    given = [f"{name}={value!r}" for name, value in settings.items() if value]
    if given:
        raise ValueError(
            "An exported file runs image by image, at the size and by the config in the "
            f"file. Received: {', '.join(given)}"
        )


def _open(detector, config, say):
    """(detector or file predictor, `Config`, path of the weights or None)."""
    from vfnet_tf.config import load_config
    from vfnet_tf.inference.load import load_checkpoint

    if isinstance(detector, RuntimePredictor):
        return detector, detector.config, None
    if isinstance(detector, Predictor):
        return detector.detector, detector.config, None
    if not isinstance(detector, str | os.PathLike):
        if config is None:
            raise ValueError(
                "A detector needs `config`, which says how images become network inputs, "
                "such as vfnet_tf.load_config('vfnet_r50_fpn_1x_coco'). "
                "Received: config=None"
            )
        return detector, load_config(config), None
    path = pathlib.Path(detector).expanduser()
    threads = os.cpu_count() or 1
    if path.suffix == ".tflite":
        from vfnet_tf.inference.litert import LiteRTPredictor

        predictor = LiteRTPredictor(path, num_threads=threads)
    elif path.suffix == ".onnx":
        from vfnet_tf.inference.onnx import OnnxPredictor

        predictor = OnnxPredictor(path, num_threads=threads)
    else:
        detector, config, weights = load_checkpoint(path, config)
        say(f"checkpoint {weights}")
        return detector, config, pathlib.Path(weights)
    say(f"model      {path}")
    return predictor, predictor.config, path


def _folder_beside(detector, source, split, views, image_size):
    if source is None:
        raise ValueError(
            "`out` must be a folder or None where the detector comes from no file. "
            "Received: out='beside'"
        )
    if source.suffix in (".tflite", ".onnx"):
        return source.with_name(f"{source.stem}_{split}")
    folder = output_folder(detector) or source.parent
    suffix = "_tta" if views else ""
    if image_size is not None:
        suffix += "_{}x{}".format(*image_size)
    return folder / f"evaluation_{split}{suffix}"


def _predict_dataset(predictor, dataset, evaluator):
    """Gives the detections of an exported file to an evaluator, with progress."""
    progress = Progress(len(dataset))
    for record in dataset.records:
        found = predictor(record.path)
        arrays = {name: getattr(found, name) for name in ("boxes", "scores", "labels")}
        batch = {name: array[None] for name, array in arrays.items()}
        evaluator.update([record.image_id], batch)
        progress.add()
    progress.close()


def _image_paths(annotations, image_dir):
    """Dict from image id to file, or a str: the reason why the images are missing."""
    from vfnet_tf.data.formats.coco import read_coco

    try:
        # The report opens only the few images that it shows.
        dataset = read_coco(annotations, image_dir, training=False, check_images=False)
    except ValueError as error:
        return str(error)
    return {record.image_id: record.path for record in dataset.records}


def _finish(evaluator, results, out, say, report, *, about, **pictures):
    """Computes, writes, prints and reports the metrics."""
    metrics = evaluator.evaluate() if results is None else evaluator.evaluate(results)
    if out is not None:
        save_metrics(pathlib.Path(out) / "metrics.json", metrics)
        say(f"metrics    {pathlib.Path(out) / 'metrics.json'}\n")
    say(format_table(metrics))
    if report is not None:
        from vfnet_tf.reports.evaluation import write_report

        path = write_report(
            report,
            evaluator,
            evaluator.results() if results is None else results,
            metrics,
            about=f"{about} on {evaluator.annotation_file}",
            **pictures,
        )
        say(f"\nreport     {path}")
    return metrics
