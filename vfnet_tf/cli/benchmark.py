"""`vfnet benchmark`: speed and memory, in multiples of one matrix product."""

import dataclasses
import pathlib
import resource
import subprocess
import sys
import time
from typing import Literal

MEASUREMENTS = ("forward", "small", "train", "layers")


@dataclasses.dataclass(frozen=True)
class BenchmarkOptions:
    """Measure forward pass, post-processing, training step and the star convolution.

    Times are given in seconds and in G, the time of one 4096x4096x4096 float32 matrix
    product of the same process, taken before and after each figure: machines differ, and
    they are shared. Memory is the peak resident size of a process that does nothing else.
    """

    config: str = "vfnet_r50_fpn_1x_coco"
    """name or file of a config"""
    only: tuple[Literal["forward", "small", "train", "layers"], ...] = MEASUREMENTS
    """what to measure"""
    precision: Literal["float32", "mixed_bfloat16"] = "float32"
    """dtype policy of the model"""
    repeats: int = 5
    """timed runs of each figure, of which the fastest counts"""
    in_process: bool = False
    """measure in this process; otherwise each figure gets a fresh one"""
    json: pathlib.Path | None = None
    """also write the figures to this file"""
    debug: bool = False
    """show the stack trace of an error"""


def run(options):
    """Measures and prints a table; returns the exit status."""
    import json

    rows = []
    for name in options.only:
        if options.in_process:
            rows += _measure(name, options)
        else:
            rows += _measure_in_fresh_process(name, options)
    print(format_rows(rows))
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    return 0


def _measure_in_fresh_process(name, options):
    import json
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "rows.json"
        command = [sys.executable, "-m", "vfnet_tf.cli.benchmark", "--in-process"]
        command += ["--config", options.config, "--precision", options.precision]
        command += ["--repeats", str(options.repeats), "--only", name]
        command += ["--json", str(path)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return json.loads(path.read_text(encoding="utf-8"))


def format_rows(rows):
    """The figures as a text table."""
    lines = [f"{'figure':44} {'seconds':>9} {'G':>7} {'peak memory':>12}"]
    for row in rows:
        if "ratio" in row:
            lines.append(f"{row['name']:44} {'':>9} {row['ratio']:6.2f}x")
            continue
        lines.append(
            f"{row['name']:44} {row['seconds']:9.4f} {row['in_g']:7.3f} "
            f"{row['peak_gb']:9.2f} GB"
        )
    return "\n".join(lines)


def _measure(name, options):
    import keras
    import tensorflow as tf

    from vfnet_tf import builder

    keras.config.set_dtype_policy(options.precision)
    timer = _Timer(options.repeats)
    if name == "layers":
        return _layers(timer, tf)
    detector = builder.build_detector(options.config)
    if name == "train":
        return _training_step(timer, tf, detector)
    height, width = (800, 1344) if name == "forward" else (320, 320)
    images = tf.random.normal((1, height, width, 3))
    size = f"1x{height}x{width}"
    forward = tf.function(lambda x: detector(x, training=False)["refined_boxes"])
    rows = [timer.row(f"forward {size}", lambda: forward(images).numpy())]

    # A trained detector's candidates: the class bias of an untrained one lets none pass.
    outputs = detector(images, training=False)
    generator = tf.random.Generator.from_seed(0)
    logits = generator.normal(outputs["class_logits"].shape, -6.0, 1.5)
    from vfnet_tf.detectors.postprocess import postprocess

    sizes = [h * w for h, w in detector.level_shapes(height, width)]
    after = tf.function(
        lambda boxes, logits: postprocess(
            boxes,
            tf.sigmoid(logits),
            sizes,
            tf.constant([[float(height), float(width)]]),
        )
    )
    boxes = outputs["refined_boxes"]
    row = timer.row(
        f"post-processing {size}", lambda: after(boxes, logits)["scores"].numpy()
    )
    share = {"name": "  share of the forward pass", "ratio": 0.0}
    share["ratio"] = row["seconds"] / rows[0]["seconds"]
    return [*rows, row, share]


def _training_step(timer, tf, detector):
    import numpy as np

    from vfnet_tf.training.optimizers import SGD

    detector.compile(optimizer=SGD(1e-5))
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 200, (2, 20, 2)).astype("float32")
    sides = rng.uniform(8, 100, (2, 20, 2)).astype("float32")
    boxes = np.concatenate([corners, corners + sides], axis=-1)
    batch = {
        "images": tf.random.normal((2, 256, 320, 3)),
        "boxes": tf.constant(np.minimum(boxes, [320, 256, 320, 256]), tf.float32),
        "labels": tf.constant(rng.integers(0, detector.num_classes, (2, 20)), tf.int32),
        "image_size": tf.constant([[256.0, 320.0]] * 2),
    }
    step = tf.function(detector.train_step)
    return [
        timer.row("training step 2x256x320", lambda: step((batch,))["loss"].numpy())
    ]


def _layers(timer, tf):
    from vfnet_tf.layers import StarDeformableConv2D
    from vfnet_tf.ops.convolution import conv2d

    features = tf.random.normal((1, 100, 168, 256))
    distances = tf.random.uniform((1, 100, 168, 4), 0.0, 10.0)
    star = StarDeformableConv2D(256)
    star(features[:, :8, :8], distances[:, :8, :8])
    plain = tf.function(lambda x: conv2d(x, star.kernel.value))
    starred = tf.function(star.call)
    rows = [
        timer.row("3x3 convolution 100x168x256", lambda: plain(features).numpy()),
        timer.row(
            "star convolution 100x168x256",
            lambda: starred(features, distances).numpy(),
        ),
    ]
    ratio = rows[1]["seconds"] / rows[0]["seconds"]
    return [*rows, {"name": "  star to plain", "ratio": ratio}]


class _Timer:
    """Fastest of several runs, in seconds and in multiples of a matrix product."""

    def __init__(self, repeats):
        import tensorflow as tf

        self.repeats = repeats
        self._product = tf.function(tf.matmul)

    def row(self, name, function):
        before = self._unit()
        function()  # traces
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        function()
        seconds = self._best(function)
        peak = max(peak, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        unit = min(before, self._unit())
        return {
            "name": name,
            "seconds": seconds,
            "in_g": seconds / unit,
            "g_seconds": unit,
            "peak_gb": peak * 1024 / 1e9,
        }

    def _unit(self):
        import tensorflow as tf

        matrix = tf.random.normal((4096, 4096))
        self._product(matrix, matrix)
        return self._best(lambda: self._product(matrix, matrix)[0, 0].numpy(), 3)

    def _best(self, function, repeats=None):
        times = []
        for _ in range(repeats or self.repeats):
            start = time.perf_counter()
            function()
            times.append(time.perf_counter() - start)
        return min(times)


def main(arguments=None):
    """Entry point of `scripts/benchmark.py` and `vfnet benchmark`."""
    import tyro

    return run(tyro.cli(BenchmarkOptions, args=arguments))


if __name__ == "__main__":
    raise SystemExit(main())
