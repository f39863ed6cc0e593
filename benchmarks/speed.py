"""Speed and memory of the detectors, in multiples of one matrix product.

`python benchmarks/speed.py --help` lists what is measured.
"""

import dataclasses
import importlib.metadata
import importlib.util
import itertools
import os
import pathlib
import platform
import resource
import subprocess
import sys
import time
from typing import Literal

from vfnet_tf import processor
from vfnet_tf.export.latency import photograph
from vfnet_tf.paper.model_cards import ARCHITECTURE

MEASUREMENTS = ("forward", "small", "train", "layers")

#: Of the input pipeline: (height, width) of the generated JPEGs, their number, images of
#: a batch and of those prepared at a time, and (height, width) of what is delivered.
DATA_IMAGE_SIZE = (480, 640)
DATA_IMAGES, DATA_BATCH, DATA_PARALLEL = 64, 8, 2
DATA_SIZES = ((800, 1344), (320, 320))

#: Images of the steps whose time is measured.
TRAINING_IMAGES = (2, 4)

#: Input of the table of all models: (height, width).
MODEL_SIZE = (800, 1344)

#: Instruction sets that decide which kernels there are.
SHOWN_FLAGS = {
    *("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni"),
    *("amx_bf16", "amx_int8", "asimd", "bf16", "i8mm", "sve"),
}

#: Rows and columns of the matrices whose product is G.
G_SIZE = 4096

#: Maps of the layers' measurements: (height, width) of P3 at 800x1344 for the star, of
#: C4 for the deformable convolution; channels in and out.
STAR_SIZE, DEFORMABLE_SIZE, CHANNELS = (100, 168), (50, 84), 256

#: Of the share of assignment and losses: (height, width), rows of boxes per image and
#: how many of them are boxes.
LOSSES_SIZE, LOSSES_ROWS, LOSSES_BOXES = (512, 640), 100, 20


@dataclasses.dataclass(frozen=True)
class BenchmarkOptions:
    """Measure forward pass, post-processing, training step and the deformable layers.

    Times are given in seconds, in seconds of all cores, and in G, the time of one
    4096x4096x4096 float32 matrix product, without oneDNN and with it: machines differ,
    and they are shared. CPU seconds far below the cores times the seconds, or products
    that differ from those of an idle machine, show a noisy hour. Memory is the peak
    resident size of a process that does nothing else.
    """

    config: str = "vfnet_r50_fpn_1x_coco"
    """name or file of a config"""
    only: tuple[
        Literal[
            "forward",
            "small",
            "train",
            "jit",
            "jax",
            "layers",
            "losses",
            "model",
            "data",
            "augment",
            "evaluation",
            "product",
        ],
        ...,
    ] = MEASUREMENTS
    """what to measure; jit and jax are the training step that XLA compiles, by
    TensorFlow and by JAX, losses is the share of assignment and losses in a training
    step of 2x512x640, model the config's line of --all, data the input pipeline alone,
    augment the pipeline with each augmentation and each preset, evaluation the COCO
    metrics of 5000 images with 100 detections each, product G alone"""
    all: bool = False
    """instead, a table of all published models: parameters, operations, forward time
    and memory at 1x800x1344"""
    precision: Literal["float32", "mixed_bfloat16"] = "float32"
    """dtype policy of the model"""
    repeats: int = 5
    """timed runs of each figure, of which the fastest counts"""
    in_process: bool = False
    """measure in this process; otherwise each figure gets a fresh one"""
    json: pathlib.Path | None = None
    """also write the figures to this file"""


def run(options):
    """Measures and prints a table; returns the exit status."""
    import json

    rows = []
    if options.all:
        print(describe_machine() + "\n")
        print(format_models([]), flush=True)
        for stem in architectures():
            one = dataclasses.replace(options, config=stem)
            rows += _measure_in_fresh_process("model", one)
            print(format_models(rows[-1:], header=False), flush=True)
    elif options.in_process:
        for name in options.only:
            rows += _measure(name, options)
        print(format_rows(rows))
    else:
        print(describe_machine(), flush=True)
        products = measure_products()
        for name in options.only:
            rows += _measure_in_fresh_process(name, options)
        after = measure_products()
        products = {unit: min(products[unit], after[unit]) for unit in products}
        add_products(rows, products)
        print(f"G: {products['plain']:.3f} s, {products['onednn']:.3f} s with oneDNN")
        print(format_rows(rows))
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    return 0


def _measure_in_fresh_process(name, options, **variables):
    import json
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "rows.json"
        command = [sys.executable, __file__, "--in-process"]
        command += ["--config", options.config, "--precision", options.precision]
        command += ["--repeats", str(options.repeats), "--only", name]
        command += ["--json", str(path)]
        backend = "jax" if name == "jax" else "tensorflow"
        environment = {**os.environ, "KERAS_BACKEND": backend, **variables}
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
        return json.loads(path.read_text(encoding="utf-8"))


def architectures():
    """Names of the shipped COCO configs, one for each distinct architecture."""
    from vfnet_tf.config import list_configs, load_config

    by_model = {}
    for name in list_configs():
        if name.endswith("_coco"):
            model = load_config(name).model
            architecture = tuple(getattr(model, field) for field in ARCHITECTURE)
            by_model.setdefault(architecture, name)
    return list(by_model.values())


def format_models(rows, header=True):
    """Models as a Markdown table."""
    lines = []
    if header:
        size = "x".join(map(str, MODEL_SIZE))
        lines.append(
            f"| config | parameters, M | GFLOP at {size} | forward, s | CPU s | G of the "
            "process | G per TFLOP | memory, GB |\n|---|---|---|---|---|---|---|---|"
        )
    for row in rows:
        per_tflop = row["in_g"] / row["gflop"] * 1000
        lines.append(
            f"| {row['name']} | {row['parameters'] / 1e6:.1f} | {row['gflop']:.0f} "
            f"| {row['seconds']:.2f} | {row['cpu_seconds']:.2f} | {row['in_g']:.2f} "
            f"| {per_tflop:.1f} "
            f"| {row['peak_gb']:.2f} |"
        )
    return "\n".join(lines)


def format_rows(rows):
    """The figures as a Markdown table."""
    lines = [
        "| figure | seconds | CPU seconds | G without oneDNN | G with oneDNN | |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        seconds = row.get("seconds", row.get("first_seconds"))
        cells = [row["name"], *["" if seconds is None else f"{seconds:.4g}"]]
        cells.append(f"{row['cpu_seconds']:.4g}" if "cpu_seconds" in row else "")
        for unit in ("plain", "onednn"):
            key = f"in_g_{unit}"
            cells.append(f"{row[key]:.3f}" if key in row else "")
        cells.append(_further(row))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _further(row):
    """What a row has besides its seconds."""
    if "ratio" in row:
        return f"{row['ratio']:.2f}x"
    if "images_per_second" in row:
        return (
            f"{row['images_per_second']:.1f} images/s, {row['cpu_ms']:.1f} ms of a core "
            f"each, load {row['load']:.1f}"
        )
    if "num_operations" in row:
        return f"{row['num_operations']} operations"
    if "grown_mb" in row:
        return f"{row['grown_mb']:.0f} MB"
    return f"{row['peak_gb']:.2f} GB" if "peak_gb" in row else ""


def describe_machine():
    """One line on processor, settings and versions."""
    flags = sorted(processor.cpu_flags() & SHOWN_FLAGS) or ["no known instruction sets"]
    versions = [
        f"{name} {importlib.metadata.version(name)}"
        for name in ("tensorflow", "keras", "jax", "vfnet_tf")
        if importlib.util.find_spec(name)
    ]
    return (
        f"{len(os.sched_getaffinity(0))} cores of {platform.machine()} "
        f"({', '.join(flags)}); load {os.getloadavg()[0]:.1f}; {', '.join(versions)}"
    )


def add_products(rows, products):
    """Adds to rows with seconds what they are in G, without and with oneDNN.

    Args:
        rows: list of dicts.
        products: dict of seconds, `"plain"` and `"onednn"`.
    """
    for row in rows:
        if "in_g" in row:
            for unit, seconds in products.items():
                row[f"in_g_{unit}"] = row["seconds"] / seconds


def measure_products():
    """Seconds of a matrix product in fresh processes, without oneDNN and with it."""
    found = {}
    for unit, value in {"plain": "0", "onednn": "1"}.items():
        (row,) = _measure_in_fresh_process(
            "product", BenchmarkOptions(), TF_ENABLE_ONEDNN_OPTS=value
        )
        found[unit] = row["seconds"]
    return found


def _measure(name, options):
    if name in {"train", "jit", "losses"}:
        processor.speed_up_training()
    elif name in {"forward", "small", "model"}:
        processor.speed_up_inference()
    import keras
    import tensorflow as tf

    from vfnet_tf import builder

    if name == "jax" and keras.backend.backend() != "jax":
        raise ValueError(
            "In this process the step of JAX needs KERAS_BACKEND=jax. Received: "
            f"backend={keras.backend.backend()}"
        )
    keras.config.set_dtype_policy(options.precision)
    if name == "data":
        return _data(options.repeats)
    if name == "augment":
        return _data(options.repeats, _augmented())
    if name == "evaluation":
        return _evaluation()
    if name in {"jit", "jax"}:
        return _compiled_step(builder.build_detector(options.config), options.repeats)
    timer = _Timer(options.repeats)
    if name == "product":
        return [timer.product()]
    if name == "layers":
        return _layers(timer, tf)
    detector = builder.build_detector(options.config)
    if name == "train":
        return _training_step(timer, tf, detector)
    if name == "losses":
        return _share_of_losses(timer, tf, detector)
    if name == "model":
        return _model(timer, tf, detector, options.config)
    height, width = (800, 1344) if name == "forward" else (320, 320)
    images = tf.random.normal((1, height, width, 3))
    size = f"1x{height}x{width}"
    forward = _forward(tf, detector)
    rows = [timer.row(f"forward {size}", lambda: forward(images)["boxes"].numpy())]

    # A trained detector's candidates: the class bias of an untrained one lets none pass.
    outputs = forward(images)
    generator = tf.random.Generator.from_seed(0)
    logits = generator.normal(outputs["class_logits"].shape, -6.0, 1.5)
    boxes, _, factors = detector.ranking(outputs)
    image_size = tf.constant([[float(height), float(width)]])

    @tf.function(autograph=False)
    def after(boxes, logits):
        scores, canvas_size = tf.sigmoid(logits), (height, width)
        return detector.suppress_candidates(
            *detector.candidates(boxes, scores, factors, canvas_size, image_size)
        )

    row = timer.row(
        f"post-processing {size}", lambda: after(boxes, logits)["scores"].numpy()
    )
    share = {"name": "  share of the forward pass", "ratio": 0.0}
    share["ratio"] = row["seconds"] / rows[0]["seconds"]
    return [*rows, row, share]


def _forward(tf, detector):
    """A forward pass with all outputs: a graph computes nothing for those left out."""
    return tf.function(lambda images: detector(images, training=False), autograph=False)


def _model(timer, tf, detector, name):
    images = tf.random.normal((1, *MODEL_SIZE, 3))
    forward = _forward(tf, detector)
    row = timer.row(name, lambda: forward(images)["boxes"].numpy())
    parameters = sum(
        int(variable.shape.num_elements())
        for variable in (value.value for value in detector.variables)
        if "moving_" not in variable.name
    )
    return [{**row, "parameters": parameters, "gflop": _gflop(tf, detector)}]


def _gflop(tf, detector):
    """Operations of a forward pass in billions; a multiply-add counts as two.

    Convolutions and matrix products alone are counted, groups without the zeros that
    joined groups are convolved with.
    """
    from vfnet_tf.ops import convolution

    kept, convolution.BLOCK_CHANNELS = convolution.BLOCK_CHANNELS, 1
    try:
        function = tf.function(lambda x: detector(x, training=False), autograph=False)
        spec = tf.TensorSpec((1, *MODEL_SIZE, 3), "float32")
        graph = function.get_concrete_function(spec).graph
    finally:
        convolution.BLOCK_CHANNELS = kept
    total = 0
    for operation in graph.get_operations():
        if operation.type in ("Conv2D", "MatMul", "BatchMatMulV2"):
            left, right = (value.shape for value in operation.inputs[:2])
            # What each output sums over: a window of channels, or a row.
            window = right[:3] if operation.type == "Conv2D" else left[-1:]
            outputs = operation.outputs[0].shape.num_elements()
            total += 2 * outputs * window.num_elements()
    return total / 1e9


def _training_step(timer, tf, detector):
    from vfnet_tf.training.optimizers import SGD

    detector.compile(optimizer=SGD(1e-5))
    detector.optimizer.build(detector.trainable_variables)
    rows = []
    for images in TRAINING_IMAGES:
        batch = _training_batch(tf, detector, (256, 320), 20, 20, images)
        step = tf.function(detector.train_step, autograph=False)
        start = time.perf_counter()
        step((batch,))["loss"].numpy()
        seconds = time.perf_counter() - start
        operations = step.get_concrete_function((batch,)).graph.get_operations()
        row = timer.row(
            f"training step {images}x256x320",
            lambda step=step, batch=batch: step((batch,))["loss"].numpy(),
        )
        first = {"first_seconds": seconds, "num_operations": len(operations)}
        rows += [row, {"name": "  the first one, with its graph", **first}]
    return rows


def _compiled_step(detector, repeats):
    """The step of `fit` under XLA, by TensorFlow or JAX, and its compilation."""
    import keras
    import tensorflow as tf

    from vfnet_tf.training.optimizers import SGD

    detector.compile(optimizer=SGD(1e-5), jit_compile=True)
    batch = _training_batch(tf, detector, (256, 320), 20, 20)
    batch = {key: value.numpy() for key, value in batch.items()}
    seconds = []
    for _ in range(1 + repeats):
        start = time.perf_counter()
        float(detector.train_on_batch(batch, return_dict=True)["loss"])
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    name = f"training step 2x256x320, XLA by {keras.backend.backend()}"
    return [
        {"name": name, "seconds": min(seconds[1:]), "peak_gb": peak * 1024 / 1e9},
        {"name": "  the first one, which compiles", "seconds": seconds[0]},
    ]


def _training_batch(tf, detector, size, rows, boxes, images=2):
    """Random images; `boxes` of the `rows` of ground truth of each are no padding."""
    import numpy as np

    height, width = size
    rng = np.random.default_rng(0)
    shape = (images, rows, 2)
    corners = rng.uniform(0, 0.78 * height, shape).astype("float32")
    sides = rng.uniform(8, 0.4 * height, shape).astype("float32")
    corners = np.concatenate([corners, corners + sides], axis=-1)
    labels = rng.integers(0, detector.num_classes, (images, rows))
    labels[:, boxes:] = -1
    corners[:, boxes:] = 0
    return {
        "images": tf.random.normal((images, height, width, 3)),
        "boxes": tf.constant(np.minimum(corners, [width, height] * 2), tf.float32),
        "labels": tf.constant(labels, tf.int32),
        "image_size": tf.constant([[float(height), float(width)]] * images),
    }


def _share_of_losses(timer, tf, detector):
    """Assignment, losses and their gradients to the predictions, beside a whole step."""
    from vfnet_tf.training.optimizers import SGD

    detector.compile(optimizer=SGD(1e-5))
    batch = _training_batch(tf, detector, LOSSES_SIZE, LOSSES_ROWS, LOSSES_BOXES)
    outputs = detector(batch["images"], training=True)
    priors = {
        k: outputs.pop(k) for k in ("points", "strides", "anchors") if k in outputs
    }

    def losses(predictions):
        with tf.GradientTape() as tape:
            tape.watch(predictions)
            parts = detector.compute_losses({**predictions, **priors}, batch)
            total = sum(parts.values())
        return total, tape.gradient(total, predictions, unconnected_gradients="zero")

    compute = tf.function(losses, autograph=False)
    step = tf.function(detector.train_step, autograph=False)
    size = "x".join(map(str, LOSSES_SIZE))
    rows = [
        timer.row(
            f"assignment and losses 2x{size}", lambda: compute(outputs)[0].numpy()
        ),
        timer.row(f"training step 2x{size}", lambda: step((batch,))["loss"].numpy()),
    ]
    ratio = rows[0]["seconds"] / rows[1]["seconds"]
    return [*rows, {"name": "  share of the training step", "ratio": ratio}]


def _layers(timer, tf):
    from vfnet_tf.layers import DeformableConv2D, StarDeformableConv2D
    from vfnet_tf.ops.convolution import conv2d

    features = tf.random.normal((1, *STAR_SIZE, CHANNELS))
    distances = tf.random.uniform((1, *STAR_SIZE, 4), 0.0, 10.0)
    size = "x".join(map(str, (*STAR_SIZE, CHANNELS)))
    star = StarDeformableConv2D(CHANNELS)
    star(features[:, :8, :8], distances[:, :8, :8])
    plain = tf.function(lambda x: conv2d(x, star.kernel.value), autograph=False)
    starred = tf.function(star.call, autograph=False)
    rows = [
        timer.row(f"3x3 convolution {size}", lambda: plain(features).numpy()),
        timer.row(
            f"star convolution {size}", lambda: starred(features, distances).numpy()
        ),
    ]
    ratio = rows[1]["seconds"] / rows[0]["seconds"]
    rows.append({"name": "  star to plain", "ratio": ratio})

    features = tf.random.normal((1, *DEFORMABLE_SIZE, CHANNELS))
    size = "x".join(map(str, (*DEFORMABLE_SIZE, CHANNELS)))
    deformable = DeformableConv2D(CHANNELS, offset_initializer="glorot_uniform")
    deformable(features[:, :8, :8])
    small = tf.function(lambda x: conv2d(x, deformable.kernel.value), autograph=False)
    deformed = tf.function(deformable.call, autograph=False)
    rows += [
        timer.row(f"3x3 convolution {size}", lambda: small(features).numpy()),
        timer.row(f"deformable v2 {size}", lambda: deformed(features).numpy()),
    ]
    ratio = rows[-1]["seconds"] / rows[-2]["seconds"]
    return [*rows, {"name": "  deformable to plain", "ratio": ratio}]


def _augmented():
    """Name -> arguments of `build_pipeline`, for each augmentation at probability 1."""
    from vfnet_tf.data import augmentation
    from vfnet_tf.data.augmentation.presets import PRESETS

    kinds = [getattr(augmentation, name) for name in augmentation.__all__]
    variants = {
        kind.__name__: {"transforms": [kind(probability=1.0)]}
        for kind in kinds
        if kind is not augmentation.Augmentation
    }
    presets = {f'augment="{name}"': {"augment": name} for name in PRESETS}
    return presets | variants


def _data(repeats, variants=None):
    """Training images per second of the input pipeline, which nothing else slows down.

    The fastest of `repeats` epochs over generated JPEGs, all of whose work is decoding,
    resizing, flipping, normalising, padding and batching; the files are in the system's
    cache. With it the load average of the last minute (the pipeline alone makes 2), and
    the time of all cores for an image, which depends less on what else is running.

    Args:
        repeats: int.
        variants: dict name -> arguments of `build_pipeline`; None for its defaults.
    """
    import os
    import tempfile

    from vfnet_tf.data.formats.coco import read_coco
    from vfnet_tf.data.pipeline import build_pipeline

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        path = _write_photographs(folder)
        files = read_coco(path, folder, check_images="header")
        name = "input " + "x".join(map(str, DATA_IMAGE_SIZE))
        sources = [
            (each, files, settings) for each, settings in (variants or {}).items()
        ]
        if not variants:
            records = _as_records(path)
            sources = [(name, files, {}), (f"{name} in TFRecords", records, {})]
        for (height, width), (name, dataset, arguments) in itertools.product(
            DATA_SIZES, sources
        ):
            batches = build_pipeline(
                dataset,
                batch_size=DATA_BATCH,
                image_size=(min(height, width), max(height, width)),
                canvas_shapes=[(height, width)],
                training=True,
                num_parallel=DATA_PARALLEL,
                partners_off=0.0,
                **arguments,
            )
            times, cpu_times = [], []
            for _ in range(1 + repeats):  # the first one traces and fills buffers
                start, cpu_start = time.perf_counter(), time.process_time()
                num_images = sum(len(batch["images"]) for batch in batches)
                times.append(time.perf_counter() - start)
                cpu_times.append(time.process_time() - cpu_start)
            rows.append(
                {
                    "name": f"{name} to {height}x{width}",
                    "images_per_second": num_images / min(times[1:]),
                    "cpu_ms": 1000 * min(cpu_times[1:]) / num_images,
                    "load": os.getloadavg()[0],
                }
            )
    return rows


def _evaluation(num_images=5000):
    """Time that the COCO metrics of a set as large as val2017 take beyond inference.

    5000 images, 80 classes, 7 objects in each as COCO has, 100 detections, some of them
    the objects moved a little; with faster-coco-eval, from the first `update` to the end.
    """
    import json
    import resource
    import tempfile

    import numpy as np

    from vfnet_tf.evaluation.coco import CocoEvaluator

    rng = np.random.default_rng(0)
    num_objects, num_detections = 7, 100
    corners = rng.uniform(0, 400, (num_images, num_objects, 2))
    sides = rng.uniform(10, 200, (num_images, num_objects, 2))
    labels = rng.integers(80, size=(num_images, num_objects))
    annotations = [
        {
            "id": image * num_objects + row + 1,
            "image_id": image + 1,
            "category_id": int(labels[image, row]) + 1,
            "bbox": [*corners[image, row].tolist(), *sides[image, row].tolist()],
            "area": float(sides[image, row].prod()),
            "iscrowd": 0,
        }
        for image in range(num_images)
        for row in range(num_objects)
    ]
    content = {
        "images": [
            {"id": image + 1, "width": 640, "height": 640}
            for image in range(num_images)
        ],
        "annotations": annotations,
        "categories": [{"id": k + 1, "name": f"class {k}"} for k in range(80)],
    }
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "annotations.json"
        path.write_text(json.dumps(content), encoding="utf-8")
        evaluator = CocoEvaluator(path, backend="faster-coco-eval")

    def peak():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    before = peak()
    seconds = 0.0
    for image in range(num_images):
        rows = rng.integers(num_objects, size=num_detections)
        moved = corners[image, rows] + rng.normal(0, 20, (num_detections, 2))
        detections = {
            "boxes": np.concatenate([moved, moved + sides[image, rows]], axis=-1)[None],
            "scores": np.sort(rng.uniform(0.05, 1, (1, num_detections)))[:, ::-1],
            "labels": labels[image, rows][None],
        }
        start = time.perf_counter()
        evaluator.update([image + 1], detections)
        seconds += time.perf_counter() - start
    updated = peak()
    start = time.perf_counter()
    evaluator.evaluate()
    evaluated = time.perf_counter() - start
    return [
        {
            "name": f"update, {num_images} images",
            "seconds": seconds,
            "grown_mb": updated - before,
        },
        {"name": "evaluate", "seconds": evaluated, "grown_mb": peak() - updated},
    ]


def _write_photographs(directory):
    """JPEGs with about the detail of photographs, in COCO's format: the path of it."""
    import json

    height, width = DATA_IMAGE_SIZE
    images, annotations = [], []
    for index in range(DATA_IMAGES):
        image = photograph(index, height, width)
        image.save(directory / f"{index}.jpg", quality=90)
        images.append(
            {
                "id": index + 1,
                "file_name": f"{index}.jpg",
                "height": height,
                "width": width,
            }
        )
        annotations.append(
            {
                "id": index + 1,
                "image_id": index + 1,
                "category_id": 1,
                "bbox": [width // 4, height // 4, width // 2, height // 2],
                "iscrowd": 0,
            }
        )
    categories = [{"id": 1, "name": "thing"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    path = directory / "annotations.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def _as_records(path):
    """The data set of a COCO json, written as TFRecords and read from there."""
    from vfnet_tf.data.formats.coco import read_coco
    from vfnet_tf.data.formats.conversion import convert_dataset
    from vfnet_tf.data.formats.readers import find_splits

    folder = path.parent / "records"
    convert_dataset(find_splits(path), "tfrecord", folder)
    return read_coco(*find_splits(folder)["train"], check_images="header")


class _Timer:
    """Fastest of several runs, in seconds and in multiples of a matrix product."""

    def __init__(self, repeats):
        import tensorflow as tf

        self.repeats = repeats
        self._product = tf.function(tf.matmul, autograph=False)

    def row(self, name, function):
        for _ in range(3):  # the first traces
            function()
        # Before the matrices of the unit, which take 0.2 GB of their own.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        before = self._unit()
        seconds, cpu_seconds = self._best(function)
        unit = min(before, self._unit())
        return {
            "name": name,
            "seconds": seconds,
            "cpu_seconds": cpu_seconds,
            "in_g": seconds / unit,
            "g_seconds": unit,
            "peak_gb": peak * 1024 / 1e9,
        }

    def product(self):
        """The row of G itself."""
        return {"name": "matrix product", "seconds": self._unit()}

    def _unit(self):
        import tensorflow as tf

        matrix = tf.random.normal((G_SIZE, G_SIZE))
        self._product(matrix, matrix)
        return self._best(lambda: self._product(matrix, matrix)[0, 0].numpy(), 3)[0]

    def _best(self, function, repeats=None):
        """Seconds of the fastest run, and the seconds of all cores in it."""
        times = []
        for _ in range(repeats or self.repeats):
            start, cpu_start = time.perf_counter(), time.process_time()
            function()
            cpu_seconds = time.process_time() - cpu_start
            times.append((time.perf_counter() - start, cpu_seconds))
        return min(times)


if __name__ == "__main__":
    import tyro

    raise SystemExit(run(tyro.cli(BenchmarkOptions)))
