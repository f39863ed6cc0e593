"""`vfnet convert-data`: converts a dataset to another format."""

import dataclasses
import pathlib
import sys
from typing import Annotated, Literal

import tyro

from vfnet_tf.foreign_text import terminal_text


@dataclasses.dataclass(frozen=True)
class ConvertDataOptions:
    """Write a dataset in another format: COCO, Pascal VOC, YOLO, CSV or TFRecord.

    vfnet convert-data VOCdevkit/VOC2007 --to coco --out voc2007_coco

    All splits are converted. Bad boxes are left out and said, as in training. What the
    new format does not have is said too. docs/data.md describes the formats. Exit
    status: 0, 1 if a split could not be read and was left out, 2 if nothing was written.
    """

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SOURCE")]
    """as vfnet train --data takes it: folder, file or tfds:NAME; it is not changed"""
    to: Literal["coco", "voc", "yolo", "csv", "tfrecord"]
    """the format to write"""
    out: pathlib.Path
    """folder to write, absent or empty"""
    images: Literal["copy", "link"] = "copy"
    """copy the images, or make symbolic links to them; TFRecords hold copies only"""
    skip_bad_images: bool = False
    """go on without unreadable images, and list them, instead of stopping"""


OPTIONS = ConvertDataOptions


def run(options):
    """Converts all splits; returns the exit status."""
    from vfnet_tf.data.formats.conversion import convert_dataset
    from vfnet_tf.data.formats.readers import find_splits
    from vfnet_tf.progress import Progress

    splits = find_splits(options.source, Progress)
    print(f"format     {splits.description}", flush=True)
    conversion = convert_dataset(
        splits,
        options.to,
        options.out,
        link=options.images == "link",
        skip_bad_images=options.skip_bad_images,
        progress=Progress,
    )
    for summary in conversion.summaries:
        print(f"read       {summary}")
    for loss in conversion.losses:
        print(f"lost       {loss}")
    for note in conversion.notes:
        print(f"note       {note}")
    print(
        f"written    {options.out}: {options.to}, {conversion.num_images} images, "
        f"{conversion.num_boxes} boxes"
    )
    for split, fault in conversion.faults.items():
        text = terminal_text(f"the split {split} was left out: {fault}")
        print(f"error: {text}", file=sys.stderr)
    return 1 if conversion.faults else 0
