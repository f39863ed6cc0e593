"""`vfnet oracle`: the oracle study of the paper (Table 1) for any checkpoint."""

import dataclasses
import json
import pathlib
from typing import Literal


@dataclasses.dataclass(frozen=True)
class OracleOptions:
    """Replace predictions by the truth, one kind at a time, and measure the AP again.

    Before NMS the centerness, the boxes or the class scores of the foreground points, those
    that would learn an object in training, become what they should be: the oracle study of
    the paper (Sec. 3, Table 1). The table is Markdown. Detectors without centerness have
    four columns of the ten; VFNet's score is the IACS. Without --data it measures on the
    generated images that training without --data uses.
    """

    checkpoint: pathlib.Path
    """run directory (its best weights), .weights.h5, .pth of the official code, or the
    name of a published model"""
    data: str | None = None
    """folder or file in COCO, Pascal VOC, YOLO, CSV or TFRecord format, or tfds:NAME, as
    vfnet train takes it, or one COCO json or TFRecord"""
    split: Literal["train", "val", "test"] = "val"
    """which part of the data"""
    images: pathlib.Path | None = None
    """folder of the images, where it is not found beside the annotations"""
    out: pathlib.Path | None = None
    """json file for the numbers, the 12 COCO metrics and the AP of each class by column"""
    config: str | None = None
    """name or file of a config, for weights without a config.json beside"""
    batch_size: int = 1
    """images at a time; more pays on GPUs"""
    max_canvas_shapes: int | None = None
    """pad to at most so many shapes, which fills batches better; by default each image to
    its own multiple of 32, as vfnet evaluate does"""
    limit: int | None = None
    """measure on the first so many images only"""
    skip_bad_images: bool = False
    """go on without unreadable images, and list them, instead of stopping"""
    backend: Literal["pycocotools", "faster-coco-eval"] = "pycocotools"
    """of the metrics; the second is quicker on thousands of images and needs the extra
    fast-eval"""


OPTIONS = OracleOptions


def run(options):
    """Measures all columns and prints the table; returns the exit status."""
    from vfnet_tf.cli.evaluation_options import check_data

    check_data(options)
    if options.out is not None and options.out.suffix != ".json":
        raise ValueError(f"--out must be a .json file. Received: --out {options.out}")

    from vfnet_tf.data.formats.readers import read_split
    from vfnet_tf.inference.evaluate import check_classes
    from vfnet_tf.inference.load import load_checkpoint
    from vfnet_tf.paper.oracle import ORACLES, format_oracle_table
    from vfnet_tf.progress import Progress

    detector, config, weights = load_checkpoint(options.checkpoint, options.config)
    print(f"checkpoint {weights}")
    dataset = read_split(
        options.data,
        options.split,
        image_dir=options.images,
        class_names=config.class_names or None,
        skip_bad_images=options.skip_bad_images,
        limit=options.limit,
        progress=Progress,
        log=print,
    )
    print(f"data       {dataset.summary()}", flush=True)
    check_classes(detector, dataset)
    columns, metrics = measure_dataset(
        detector,
        dataset,
        config,
        batch_size=options.batch_size,
        max_canvas_shapes=options.max_canvas_shapes,
        backend=options.backend,
    )
    if options.out is not None:
        write_numbers(options.out, config, weights, dataset, columns, metrics)
        print(f"numbers    {options.out}")
    table = format_oracle_table(columns, metrics, config.name, is_of_paper(config))
    print(f"\n{table}\n\nOf foreground points is replaced, before NMS:")
    for name, text in ORACLES.items():
        if any(column.oracle == name for column in columns):
            print(f"  {name:<10}  {text}")
    return 0


def is_of_paper(config):
    """Whether a config's detector is that of Table 1, FCOS with ATSS."""
    return (config.model.detector, config.model.assigner) == ("fcos", "atss")


def measure_dataset(
    detector,
    dataset,
    config,
    *,
    batch_size=1,
    max_canvas_shapes=None,
    backend="pycocotools",
):
    """The oracle study of a detector over all images of a dataset, with progress.

    Args:
        detector, dataset, config, batch_size, max_canvas_shapes: see
            `inference.dataset.detect_dataset`.
        backend: see `CocoEvaluator`.

    Returns:
        Tuple of `OracleColumn`, and for each the dict of `CocoEvaluator.evaluate`.
    """
    from vfnet_tf.evaluation.coco import CocoEvaluator
    from vfnet_tf.inference.dataset import read_batches
    from vfnet_tf.paper.oracle import OracleStudy
    from vfnet_tf.progress import Progress

    study = OracleStudy(detector, CocoEvaluator(dataset, backend=backend))
    batches = read_batches(dataset, config, batch_size, max_canvas_shapes)
    progress = Progress(len(dataset))
    for batch in batches.as_numpy_iterator():
        study.update(batch)
        progress.add(len(batch["image_id"]))
    progress.close()
    return study.columns, study.evaluate()


def write_numbers(path, config, weights, dataset, columns, metrics):
    """Writes all columns as json: AP in [0, 1], null where there is no object."""
    numbers = {
        "config": config.name,
        "weights": str(weights),
        "annotations": str(dataset.report.annotation_file),
        "num_images": len(dataset),
        "columns": [
            {
                "oracle": column.oracle,
                "with_centerness": column.with_centerness,
                **_without_nan(values),
            }
            for column, values in zip(columns, metrics, strict=True)
        ],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")


def _without_nan(values):
    if isinstance(values, dict):
        return {name: _without_nan(value) for name, value in values.items()}
    return None if values != values else values
