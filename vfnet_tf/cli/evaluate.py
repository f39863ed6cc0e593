"""`vfnet evaluate`: the 12 COCO metrics and the AP of each class."""

import dataclasses
import pathlib
from typing import Literal

from vfnet_tf.inference.dataset import describe_views, detect_dataset, detect_views


@dataclasses.dataclass(frozen=True)
class EvaluateOptions:
    """Evaluate a detector, or a file of detections, by the COCO metrics.

    Detections go to OUT/detections.json in COCO's results format, as evaluation servers
    take it, metrics to OUT/metrics.json. Give --checkpoint to run a detector, --model to
    run an exported one, or --results to evaluate detections that exist. Without --data
    it evaluates on the generated images that training without --data uses.
    """

    checkpoint: pathlib.Path | None = None
    """run directory (its best weights), .weights.h5, or .pth of the official code"""
    model: pathlib.Path | None = None
    """.tflite file of `vfnet export --format litert`, run on the CPU in place of a
    checkpoint; images are fitted into its size"""
    data: str | None = None
    """folder or file in COCO, Pascal VOC, YOLO or CSV format, or tfds:NAME, as vfnet
    train takes it, or one COCO json"""
    split: Literal["train", "val", "test"] = "val"
    """which part of the data"""
    images: pathlib.Path | None = None
    """folder of the images, where it is not found beside the annotations"""
    results: pathlib.Path | None = None
    """json in COCO's results format to evaluate, in place of a checkpoint"""
    out: pathlib.Path | None = None
    """folder for the json files; by default evaluation_SPLIT in the run directory,
    FILE_SPLIT beside a --model, and nothing is written for --results"""
    config: str | None = None
    """name or file of a config, for weights without a config.json beside"""
    batch_size: int = 1
    """images at a time; more pays on GPUs"""
    max_canvas_shapes: int | None = None
    """pad to at most so many shapes, as training's own evaluation does (4); by default
    each image to its own multiple of 32, as the official code and predict do"""
    image_size: tuple[int, int] | None = None
    """short and long side in pixels that images are resized to fit into (height and width
    if the config stretches images); by default those of training. The paper's large
    models are also tested at 1200 1800"""
    tta: bool = False
    """test-time augmentation: one NMS over each image at four sizes, plain and mirrored;
    eight times the work and more, image by image. It costs accuracy where the sizes are
    far from those of training"""
    tta_sizes: tuple[tuple[int, int], ...] = ()
    """--tta at these sizes, pairs of short and long side in pixels (height and width if
    the config stretches images); by default the official 800 1200 900 1300 1000 1500
    1200 1600, for images that training had at 800 1333"""
    limit: int | None = None
    """evaluate on the first so many images only"""
    skip_bad_images: bool = False
    """go on without unreadable images, and list them, instead of stopping"""
    report: pathlib.Path | None = None
    """html file to write: metrics, curves, confusions, calibration of the scores, error
    types, best and worst images, all in one file (docs/reports.md)"""
    score_threshold: float | None = None
    """--report: score from which on detections count in its confusions and images; by
    default the one with the largest F1"""
    backend: Literal["pycocotools", "faster-coco-eval"] = "pycocotools"
    """the same numbers; the second is quicker on thousands of images and needs the
    extra fast-eval"""
    debug: bool = False
    """show the stack trace of an error"""


def run(options):
    """Evaluates as `options` say; returns the exit status."""
    given = (options.checkpoint, options.model, options.results)
    if sum(value is not None for value in given) != 1:
        raise ValueError(
            "Give one of --checkpoint, --model and --results. Received: --checkpoint "
            f"{options.checkpoint}, --model {options.model}, --results {options.results}"
        )
    if options.report is not None and options.report.is_dir():
        raise ValueError(
            "--report must be a file to write, such as report.html. Received: the "
            f"folder {options.report}"
        )
    if options.score_threshold is not None and options.report is None:
        raise ValueError(
            "--score-threshold is for the pictures of --report; metrics take all "
            f"detections. Received: --score-threshold {options.score_threshold} without "
            "--report"
        )
    check_data(options)
    if options.model is not None:
        _evaluate_model(options)
        return 0
    if (options.tta or options.tta_sizes) and (
        options.results or options.batch_size != 1 or options.max_canvas_shapes
    ):
        raise ValueError(
            "--tta runs a detector image by image, each on its own canvas: it goes with "
            "none of --results, --batch-size, --max-canvas-shapes. Received: --results "
            f"{options.results}, --batch-size {options.batch_size}, "
            f"--max-canvas-shapes {options.max_canvas_shapes}"
        )
    if options.results is not None:
        _evaluate_results(options)
    else:
        _evaluate_checkpoint(options)
    return 0


def check_data(options):
    """Refuses a `limit` below 1 and `data` that is not there, before anything is loaded."""
    if options.limit is not None and options.limit < 1:
        raise ValueError(f"--limit must be >= 1. Received: --limit {options.limit}")
    if options.data is not None:
        from vfnet_tf.data.formats.readers import find_format

        find_format(options.data)


def _evaluate_results(options):
    from vfnet_tf.evaluation.coco import CocoEvaluator, read_results

    if options.limit is not None:
        raise ValueError(
            "--limit goes with --checkpoint; results are measured by all images of the "
            f"annotations. Received: --limit {options.limit}"
        )
    if options.data is None:
        raise ValueError(
            "--results needs --data, the annotations that it is measured by. Received: "
            f"--results {options.results}"
        )
    annotations, image_dir = find_annotations(options.data, options.split)
    evaluator = CocoEvaluator(annotations, backend=options.backend)
    results = read_results(options.results, evaluator)
    metrics = evaluator.evaluate(results)
    print(f"results     {options.results}\nannotations {annotations}\n")
    image_paths = None
    if options.report is not None:
        image_paths = _image_paths(annotations, options.images or image_dir)
    _report(
        options, metrics, options.out, evaluator, results, options.results, image_paths
    )


def _image_paths(annotations, image_dir):
    """Dict from image id to file, or a str that says why there is none."""
    from vfnet_tf.data.formats.coco import read_coco

    try:
        # Nothing but the few that are shown is ever opened.
        dataset = read_coco(annotations, image_dir, training=False, check_images=False)
    except ValueError as error:
        return str(error)
    return {record.image_id: record.path for record in dataset.records}


def _evaluate_checkpoint(options):
    from vfnet_tf.evaluation.coco import CocoEvaluator
    from vfnet_tf.inference.load import load_checkpoint

    detector, config, weights = load_checkpoint(options.checkpoint, options.config)
    print(f"checkpoint {weights}")
    config = at_image_size(config, options)
    dataset = read_dataset_for(detector, config, options)
    sizes = tta_sizes(options, config)
    out = options.out
    if out is None:
        suffix = "_tta" if sizes else ""
        if options.image_size is not None:
            suffix += "_{}x{}".format(*options.image_size)
        out = weights.parent / f"evaluation_{options.split}{suffix}"
    evaluator = CocoEvaluator(dataset, backend=options.backend)
    if sizes:
        print(f"views      {describe_views(sizes)}", flush=True)
        detect_views(detector, dataset, config, evaluator, sizes)
    else:
        detect_dataset(
            detector,
            dataset,
            config,
            evaluator,
            batch_size=options.batch_size,
            max_canvas_shapes=options.max_canvas_shapes,
        )
    history = weights.with_name("history.csv")
    _finish(options, evaluator, out, weights, dataset, history)


def check_model_options(options):
    """Refuses options that a `model`, a file of one size, cannot follow."""
    names = ("tta", "tta_sizes", "image_size", "config", "max_canvas_shapes")
    unused = [name for name in names if getattr(options, name, None)]
    if options.batch_size != 1:
        unused.append("batch_size")
    if unused:
        listed = ", ".join(f"--{name.replace('_', '-')}" for name in unused)
        raise ValueError(
            "--model runs image by image, at the size and by the config of the file. "
            f"Received: --model with {listed}"
        )


def _evaluate_model(options):
    import os

    from vfnet_tf.evaluation.coco import CocoEvaluator
    from vfnet_tf.inference.litert import LiteRTPredictor
    from vfnet_tf.progress import Progress

    check_model_options(options)
    predictor = LiteRTPredictor(options.model, num_threads=os.cpu_count() or 1)
    print(f"model      {options.model}")
    dataset = read_dataset_for(predictor.detector, predictor.config, options)
    out = options.out
    if out is None:
        out = options.model.with_name(f"{options.model.stem}_{options.split}")
    evaluator = CocoEvaluator(dataset, backend=options.backend)
    progress = Progress(len(dataset))
    for record in dataset.records:
        found = predictor(record.path)
        arrays = {name: getattr(found, name) for name in ("boxes", "scores", "labels")}
        batch = {name: array[None] for name, array in arrays.items()}
        evaluator.update([record.image_id], batch)
        progress.add()
    progress.close()
    _finish(options, evaluator, out, options.model, dataset)


def _finish(options, evaluator, out, source, dataset, history=None):
    # Before the metrics: they cost minutes less than the detections did.
    evaluator.save_results(out / "detections.json")
    print(f"detections {out / 'detections.json'}", flush=True)
    metrics = evaluator.evaluate()
    image_paths = {record.image_id: record.path for record in dataset.records}
    results = evaluator.results() if options.report is not None else None
    _report(options, metrics, out, evaluator, results, source, image_paths, history)


def _report(
    options, metrics, out, evaluator, results, source, image_paths, history=None
):
    from vfnet_tf.evaluation.coco import format_table, save_metrics

    if out is not None:
        save_metrics(out / "metrics.json", metrics)
        print(f"metrics    {out / 'metrics.json'}\n")
    print(format_table(metrics))
    if options.report is None:
        return
    from vfnet_tf.reports.evaluation import write_report

    path = write_report(
        options.report,
        evaluator,
        results,
        metrics,
        about=f"{source} on {evaluator.annotation_file}",
        image_paths=image_paths,
        history=history if history is not None and history.is_file() else None,
        score_threshold=options.score_threshold,
    )
    print(f"\nreport     {path}")


def read_dataset(options, class_names=None):
    """The dataset that `data`, `split`, `images` and `limit` of the options name.

    Args:
        options: `EvaluateOptions`.
        class_names: the detector's classes in the order of its labels, None for all of
            the annotation file.

    Returns:
        `DetectionDataset` of all its images, those without objects too.
    """
    from vfnet_tf.data.formats.coco import read_coco
    from vfnet_tf.data.synthetic import make_synthetic_dataset

    data = options.data
    if data is None:
        data = make_synthetic_dataset()
        print(f"data       none given (--data): the generated images in {data}")
    annotations, image_dir = find_annotations(data, options.split)
    dataset = read_coco(
        annotations,
        options.images or image_dir,
        class_names=class_names,
        skip_bad_images=options.skip_bad_images,
        training=False,
    )
    if options.limit is not None:
        dataset = dataset.subset(min(options.limit, len(dataset)))
    return dataset


def read_dataset_for(detector, config, options):
    """`read_dataset` with the classes of a detector, and a line that says what it is.

    Raises:
        ValueError: if the data has another number of classes.
    """
    dataset = read_dataset(options, config.class_names or None)
    print(f"data       {dataset.summary()}", flush=True)
    if dataset.num_classes != detector.num_classes:
        raise ValueError(
            f"The data must have the {detector.num_classes} classes of the detector. "
            f"Received: {dataset.num_classes} classes in "
            f"{dataset.report.annotation_file}"
        )
    return dataset


def find_annotations(data, split):
    """(annotation file, image folder) of a split, with a line on the data's format."""
    from vfnet_tf.data.formats.readers import find_splits
    from vfnet_tf.progress import Progress

    splits = find_splits(data, Progress)
    print(f"format     {splits.description}")
    return splits.locate(split)


def at_image_size(config, options):
    """The config with the `image_size` of the options, if they have one.

    Raises:
        ValueError: for sizes that are none, or together with views of other sizes.
    """
    if options.image_size is None:
        return config
    from vfnet_tf.config import override
    from vfnet_tf.data.canvases import check_image_size

    if options.tta or options.tta_sizes:
        raise ValueError(
            "--image-size is for one view of each image, --tta has sizes of its own. "
            f"Received: --image-size {options.image_size} with --tta"
        )
    size = check_image_size(options.image_size, config.data.keep_ratio)
    return override(config, data__image_size=size)


def tta_sizes(options, config):
    """The sizes that `tta` and `tta_sizes` of the options ask for; empty for no TTA.

    Raises:
        ValueError: if the official ones are asked for and the config stretches images.
    """
    if options.tta_sizes or not options.tta:
        return options.tta_sizes
    if not config.data.keep_ratio:
        raise ValueError(
            "The official sizes of --tta keep the ratio of sides, and this config "
            "stretches images: give --tta-sizes, pairs of height and width. Received: "
            f"--tta for the config {config.name!r} with image_size="
            f"{config.data.image_size}"
        )
    from vfnet_tf.data.views import OFFICIAL_SIZES

    return OFFICIAL_SIZES


def main(arguments=None):
    """Entry point of `scripts/evaluate.py` and `vfnet evaluate`."""
    import tyro

    return run(tyro.cli(EvaluateOptions, args=arguments))
