"""Time of one image in Keras and in ONNX Runtime, two threads each.

`python benchmarks/onnx_runtime.py runs/mine 480 640` needs a run directory with a
`model.onnx`, as `vfnet export runs/mine --format onnx` writes it. Further files, such as
quantised ones, can follow. All take turns, so that other work on the machine disturbs
them alike.
"""

import pathlib
import statistics
import sys
import time

import numpy as np


def measure(ways, image, repeats=7):
    """Median seconds of each way, after one call that does not count.

    Args:
        ways: dict name -> function of an image.
        image: float32 `[1, H, W, 3]`.
        repeats: int.

    Returns:
        dict name -> float.
    """
    seconds = {name: [] for name in ways}
    for _ in range(repeats + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way(image)
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}


def main(run_dir, height, width, *files):
    """Prints milliseconds of the run's detector, one way a line."""
    import onnxruntime

    import vfnet_tf

    if "tensorflow" not in sys.modules:
        vfnet_tf.speed_up_inference()
    import tensorflow as tf

    detector = vfnet_tf.Predictor.from_checkpoint(run_dir).detector
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    ways = {"Keras": tf.function(lambda images: detector(images, training=False))}
    for file in (pathlib.Path(run_dir, "model.onnx"), *files):
        run = onnxruntime.InferenceSession(str(file), options).run
        ways[str(file)] = lambda images, run=run: run(None, {"images": images})
    image = np.zeros((1, int(height), int(width), 3), "float32")
    for name, median in measure(ways, image).items():
        print(f"{name:<40}{1000 * median:8.0f} ms")


if __name__ == "__main__":
    main(*sys.argv[1:])
