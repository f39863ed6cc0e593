"""`vfnet evaluate`: the 12 COCO metrics and the AP of each class."""

import dataclasses
import pathlib
from typing import Literal

from vfnet_tf.cli.evaluation_options import (
    check_data,
    check_model_options,
)


@dataclasses.dataclass(frozen=True)
class EvaluateOptions:
    """Evaluate a detector, or a file of detections, by the COCO metrics.

    Detections go to OUT/detections.json in COCO's results format, as evaluation servers
    take it, metrics to OUT/metrics.json. Give --checkpoint to run a detector, --model to
    run an exported one, or --results to evaluate detections that exist. Without --data
    it evaluates on the generated images that training without --data uses.
    """

    checkpoint: pathlib.Path | None = None
    """run directory (its best weights), .weights.h5, .pth of the official code, or the
    name of a published model"""
    model: pathlib.Path | None = None
    """.onnx or .tflite file of `vfnet export`, run on the CPU in place of a checkpoint;
    with .tflite images are fitted into its size"""
    data: str | None = None
    """folder or file in COCO, Pascal VOC, YOLO, CSV or TFRecord format, or tfds:NAME, as
    vfnet train takes it, or one COCO json or TFRecord"""
    split: Literal["train", "val", "test"] = "val"
    """which part of the data"""
    images: pathlib.Path | None = None
    """folder of the images, where it is not found beside the annotations"""
    results: pathlib.Path | None = None
    """json in COCO's results format to evaluate, in place of a checkpoint"""
    out: pathlib.Path | None = None
    """folder for the json files; by default evaluation_SPLIT in the run directory
    (for a name in runs/published/NAME), FILE_SPLIT beside a --model, and nothing is
    written for --results"""
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


OPTIONS = EvaluateOptions


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
    from vfnet_tf.inference.evaluate import evaluate

    check_data(options)
    if options.model is not None:
        check_model_options(options)
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
        return 0
    evaluate(
        options.checkpoint or options.model,
        options.data,
        split=options.split,
        config=options.config,
        image_dir=options.images,
        batch_size=options.batch_size,
        max_canvas_shapes=options.max_canvas_shapes,
        image_size=options.image_size,
        tta="official" if options.tta and not options.tta_sizes else options.tta_sizes,
        limit=options.limit,
        skip_bad_images=options.skip_bad_images,
        out=options.out or "beside",
        report=options.report,
        score_threshold=options.score_threshold,
        backend=options.backend,
    )
    return 0


def _evaluate_results(options):
    from vfnet_tf.inference.evaluate import evaluate_results

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
    evaluate_results(
        options.results,
        options.data,
        split=options.split,
        image_dir=options.images,
        out=options.out,
        report=options.report,
        score_threshold=options.score_threshold,
        backend=options.backend,
    )
