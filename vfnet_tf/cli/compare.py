"""`vfnet compare RUN_A RUN_B ...`: settings, metrics and curves of several runs."""

import dataclasses
import pathlib
from typing import Literal

import tyro

from vfnet_tf.reports.comparison import compare_runs, text_table, write_comparison


@dataclasses.dataclass(frozen=True)
class CompareOptions:
    """Compare run directories: settings that differ, metrics, curves, classes.

    Metrics are those that training left (metrics.json, of the best weights) and those
    of `vfnet evaluate --checkpoint RUN` (RUN/evaluation_SPLIT). Nothing is trained or
    detected here. Differences are to the first run.
    """

    runs: tyro.conf.Positional[tuple[pathlib.Path, ...]]
    """two or more run directories"""
    out: pathlib.Path | None = None
    """html file to write, with the curves of all runs in common axes"""
    data: pathlib.Path | None = None
    """folder or annotation file of COCO format: compares error types and how well scores
    tell the IoU, from each run's evaluation_SPLIT/detections.json"""
    split: Literal["train", "val", "test"] = "val"
    """which evaluations --data is for"""


OPTIONS = CompareOptions


def run(options):
    """Prints and writes the comparison; returns the exit status."""
    if len(options.runs) < 2:
        raise ValueError(
            "Two run directories or more must be given. Received: "
            f"{' '.join(map(str, options.runs)) or 'none'}"
        )
    runs, tables = compare_runs(options.runs, options.data, options.split)
    for title, (header, rows), _ in tables:
        print(f"{title}\n{text_table(header, rows) if rows else '  none'}\n")
    if options.out is not None:
        print(f"page       {write_comparison(options.out, runs, tables)}")
    return 0
