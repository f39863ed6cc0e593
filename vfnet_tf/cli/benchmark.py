"""`vfnet benchmark EXPORT`: latency and memory of an exported detector."""

import dataclasses
import json
import pathlib

import tyro

from vfnet_tf.files import write_file


@dataclasses.dataclass(frozen=True)
class BenchmarkOptions:
    """Measure the latency and the memory of an exported detector.

    A SavedModel is measured stage by stage, from the bytes of JPEG files to detections;
    an .onnx or .tflite file as the network alone, with NMS if the file has it. Each
    number of images and threads gets processes of its own. Of a run or a published model
    the SavedModel is measured, which is written first if there is none.
    """

    export: tyro.conf.Positional[pathlib.Path]
    """a SavedModel's directory, an .onnx or .tflite file, a run directory, or the name of
    a published model"""
    batches: tuple[int, ...] = (1, 8)
    """numbers of images"""
    threads: tuple[int, ...] = (1, 2)
    """numbers of threads"""
    repeats: int = 5
    """timed runs of each figure"""
    json: pathlib.Path | None = None
    """also write the figures to this file"""


OPTIONS = BenchmarkOptions


def run(options):
    """Measures and prints a table; returns the exit status."""
    from vfnet_tf.cli.demo import find_model
    from vfnet_tf.export import latency

    path = options.export
    if path.suffix not in (".onnx", ".tflite"):
        path = find_model(path)
    rows = latency.measure(path, options.batches, options.threads, options.repeats)
    if options.json is not None:
        write_file(options.json, json.dumps(rows, indent=2) + "\n")
    return 0
