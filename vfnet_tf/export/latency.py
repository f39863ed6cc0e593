"""The time that an exported detector takes, stage by stage.

Each number of images and threads gets two fresh processes: one that imports TensorFlow
alone, like a server, for the cold start and the memory, and one for the stages. In the
latter the functions take turns, one call each in every round, so that other load slows
all of them alike; a ratio is the median of the ratios of all rounds.
"""

import itertools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

#: Target ratios at 800x1333: the SavedModel to the detector's `detect` in Python, and
#: from file to detections to the network alone.
EXPORT_TARGET, TOTAL_TARGET = 1.05, 1.25

#: Number of images -> rounds for each repeat, 1 for other numbers. Five repeats give 20
#: calls for one image; their second slowest is about the 95th percentile.
ROUNDS = {1: 4}

STAGES = ("decode", "pre-process", "network", "NMS", "total")

#: Keys of `_cold_start`, beside `calls`.
COLD_START = ("import", "load", "first call", "cold start", "peak_gb")

# VmHWM is the peak of the process's own memory; `ru_maxrss` includes that of the process
# that started it.
_PEAK_GB = """
def peak_gb():
    try:
        with open("/proc/self/status") as file:
            lines = [line.split() for line in file if line.startswith("VmHWM")]
        return int(lines[0][1]) * 1024 / 1e9
    except (OSError, IndexError):  # not Linux
        import resource
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
"""

# Run by `python -c` with the time of its start, so that the start of Python counts. The
# code of `_OPEN_...` imports a runtime, loads the export and defines `images` and `call`.
_COLD_START = """
import json, sys, time

started, path, threads, calls, answer, batch, *files = sys.argv[1:]
%s
call(images)
answered = time.time()
times = []
for _ in range(int(calls)):
    start = time.perf_counter()
    call(images)
    times.append(time.perf_counter() - start)
rows = {
    "import": imported - float(started),
    "load": loaded - imported,
    "first call": answered - loaded,
    "cold start": answered - float(started),
    "peak_gb": peak_gb(),
    "calls": times,
}
with open(answer, "w", encoding="utf-8") as file:
    json.dump(rows, file)
"""

_OPEN_SAVED_MODEL = """
import tensorflow as tf
imported = time.time()
tf.config.threading.set_intra_op_parallelism_threads(int(threads))
tf.config.threading.set_inter_op_parallelism_threads(int(threads))
detect = tf.saved_model.load(path).signatures["serving_default"]
loaded = time.time()
images = tf.constant([open(file, "rb").read() for file in files])
call = lambda images: detect(image_bytes=images)["num_detections"].numpy()
"""

_NOISE = """
import numpy as np
images = np.random.default_rng(0).normal(size=shape).astype("float32")
"""

_OPEN_LITERT = (
    """
from ai_edge_litert.interpreter import Interpreter
imported = time.time()
raw = Interpreter(path, num_threads=int(threads)).get_signature_runner("raw")
loaded = time.time()
shape = raw.get_input_details()["images"]["shape"]
call = lambda images: raw(images=images)
"""
    + _NOISE
)

_OPEN_ONNX = (
    """
from vfnet_tf.inference.onnx import OnnxDetector
imported = time.time()
model = OnnxDetector(path, int(threads))
loaded = time.time()
canvas = [-(-side // 32) * 32 for side in model.metadata["image_size"]]
shape = (int(batch), *canvas, 3)
call = model.detect if model.metadata["has_nms"] else model.raw
"""
    + _NOISE
)


def measure(path, batches, threads, repeats):
    """Measures an export and prints the table line by line.

    Args:
        path: directory of a SavedModel by `export_saved_model`, or a file by
            `export_litert` (`.tflite`, one image at a time) or `export_onnx` (`.onnx`),
            of which only the network is timed, with NMS if the file has it.
        batches: numbers of images.
        threads: numbers of threads.
        repeats: int, see `ROUNDS`.

    Returns:
        list of dicts, see `measure_stages` and `_cold_start`, one for each setting.

    Raises:
        ValueError: for another path.
    """
    path = pathlib.Path(path)
    if path.suffix == ".tflite":
        return _measure_file(path, _OPEN_LITERT, (1,), threads, repeats)
    if path.suffix == ".onnx":
        return _measure_file(path, _OPEN_ONNX, batches, threads, repeats)
    from vfnet_tf.export.saved_model.exporter import read_metadata

    source = source_size(read_metadata(path))
    print(format_header(path, source), flush=True)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        files = _write_files(pathlib.Path(folder), source, max(batches))
        for batch in batches:
            for count in threads:
                row = {"batch": batch, "threads": count, "load_before": load_average()}
                cold = _cold_start(path, _OPEN_SAVED_MODEL, count, 2, batch, files)
                row.update({name: cold[name] for name in COLD_START})
                rounds = repeats * ROUNDS.get(batch, 1)
                row.update(_stages_in_fresh_process(path, files[:batch], count, rounds))
                row["load_after"] = load_average()
                rows.append(row)
                print(format_row(row), flush=True)
    print(format_ratios(rows), flush=True)
    return rows


def load_average():
    """The machine's load of the last minute."""
    return os.getloadavg()[0]


def source_size(metadata):
    """(height, width) of the JPEGs: 1.35 times the network's input."""
    return tuple(int(1.35 * side) for side in metadata["image_size"])


def _write_files(folder, size, count):
    paths = [folder / f"{number}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        photograph(number, *size).save(path, quality=90)
    return [str(path) for path in paths]


def _environment():
    """The environment of a process on the CPU that can import this package."""
    places = [os.environ.get("PYTHONPATH"), str(pathlib.Path(__file__).parents[2])]
    return {
        **os.environ,
        "CUDA_VISIBLE_DEVICES": "-1",
        "PYTHONPATH": os.pathsep.join(filter(None, places)),
    }


def _run_python(arguments, path, folder=None):
    """Runs Python in a fresh process; what it writes is shown if it fails."""
    process = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        env=_environment(),
        capture_output=True,
        text=True,
    )
    if process.returncode != 0:
        raise ValueError(
            "The export must run in a process of its own. Received: "
            f"{path} with exit status {process.returncode}:\n"
            f"{process.stderr.strip()[-1500:]}"
        )


def _cold_start(path, opening, threads, calls, batch, files=()):
    """Seconds from the start of a process to its first answer, and its memory.

    The process imports a runtime, loads the export, and answers a batch 1 + `calls`
    times. `import` begins with the start of Python.

    Returns:
        dict of `import`, `load`, `first call`, `cold start` in seconds, `peak_gb`, and
        the list `calls` of the seconds of further calls.
    """
    with tempfile.TemporaryDirectory() as folder:
        answer = pathlib.Path(folder) / "answer.json"
        path = pathlib.Path(path).resolve()
        code = _PEAK_GB + _COLD_START % opening
        arguments = [path, threads, calls, answer, batch, *files[:batch]]
        _run_python(["-c", code, time.time(), *arguments], path, folder)
        return json.loads(answer.read_text(encoding="utf-8"))


def _measure_file(path, opening, batches, threads, repeats):
    print(
        f"| {path.name} | images | threads | network, ms: p50 / p95 | cold start, s "
        "| peak, GB | load |\n|---|---|---|---|---|---|---|",
        flush=True,
    )
    rows = []
    for batch, count in itertools.product(batches, threads):
        before = load_average()
        rounds = repeats * ROUNDS.get(batch, 1)
        row = _cold_start(path, opening, count, rounds, batch)
        row["network"] = row.pop("calls")
        row.update(batch=batch, threads=count, megabytes=path.stat().st_size / 1e6)
        row.update(load_before=before, load_after=load_average())
        rows.append(row)
        print(
            f"| {row['megabytes']:.1f} MB | {batch} | {count} "
            f"| {_times(row['network'])} | {row['cold start']:.2f} "
            f"| {row['peak_gb']:.2f} | {_loads(row)} |",
            flush=True,
        )
    return rows


def _stages_in_fresh_process(directory, files, threads, rounds):
    with tempfile.TemporaryDirectory() as folder:
        answer = pathlib.Path(folder) / "answer.json"
        request = {
            "directory": str(pathlib.Path(directory).resolve()),
            "files": files,
            "threads": threads,
            "rounds": rounds,
        }
        arguments = ["-m", "vfnet_tf.export.latency", json.dumps(request), answer]
        _run_python(arguments, directory)
        return json.loads(answer.read_text(encoding="utf-8"))


def measure_stages(directory, files, threads, rounds):
    """Times of the stages of a SavedModel, in this process.

    decode: `data.images.decode.decode_image`; pre-process: resize, normalise and pad with
    the functions of `data.transforms`; both file by file in a `tf.map_fn` as in the
    export. network: the signature `raw`. NMS: `detector.candidates` and
    `suppress_candidates` on its boxes and on scores as a trained detector gives them (of
    random images few pass the threshold). total: `serving_default`, from the files'
    bytes.

    For the ratio to Python, with one image only, `serve_tensor` gets uint8 images of the
    network's size, and `detector.detect` of the same weights gets them normalised and
    padded: the export does a little more.

    Args:
        directory: of the SavedModel; its metadata must hold a config.
        files: paths of JPEG files, a batch.
        threads: int.
        rounds: int, calls of each function.

    Returns:
        dict of a list of seconds for each of `STAGES`, `serve_tensor` and `detect`, and
        the medians of the ratios of each round: `total_to_network`, `export_to_detect`.
    """
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    functions = stage_functions(directory, files)
    for function in functions.values():
        for _ in range(2):  # the first traces
            function()
    times = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    row = dict(times)
    row["total_to_network"] = _median_ratio(times["total"], times["network"])
    if "detect" in times:
        row["export_to_detect"] = _median_ratio(times["serve_tensor"], times["detect"])
    return row


def stage_functions(directory, files):
    """The functions that `measure_stages` times, by name, without arguments."""
    import numpy as np
    import tensorflow as tf

    from vfnet_tf.data import transforms
    from vfnet_tf.data.images.decode import decode_image
    from vfnet_tf.data.normalization import Normalization
    from vfnet_tf.export.saved_model.exporter import read_metadata

    metadata = read_metadata(directory)
    loaded = tf.saved_model.load(str(directory))
    signatures = loaded.signatures
    detector = load_exported_detector(directory, metadata)
    contents = tf.constant([pathlib.Path(path).read_bytes() for path in files])
    make_input = transforms.network_input(
        metadata["image_size"],
        metadata["keep_ratio"],
        Normalization.from_dict(metadata["normalization"]),
    )

    @tf.function(autograph=False)
    def decode(contents):
        spec = tf.TensorSpec((None, None, 3), "uint8")
        return tf.map_fn(decode_image, contents, fn_output_signature=spec)

    decoded = decode(contents)
    # All files are of one size.
    resize = transforms.resize_to(metadata["image_size"], metadata["keep_ratio"])
    pixels = resize({"image": decoded[0], "boxes": tf.zeros((0, 4))})["image"]
    size = pixels.shape[:2]
    canvas = [int(side) for side in transforms.padded_size(np.asarray(size))]
    sizes = tf.constant([size] * len(files), "float32")

    def prepare_one(image):
        example = transforms.pad_to(*canvas)(make_input(image))
        return tf.ensure_shape(example["image"], (None, None, 3))

    @tf.function(autograph=False)
    def prepare(images):
        spec = tf.TensorSpec((None, None, 3), "float32")
        return tf.map_fn(prepare_one, images, fn_output_signature=spec)

    images = prepare(decoded)
    boxes = signatures["raw"](images=images)["boxes"]
    # Drawn like in `benchmarks/speed.py`: an untrained detector's are too low for NMS.
    shape = (*boxes.shape[:2], metadata["num_classes"])
    draws = np.random.default_rng(0).normal(-6.0, 1.5, shape)
    scores = tf.sigmoid(tf.constant(draws, "float32"))
    has_centerness = "centerness_logits" in detector.compute_output_spec(images)
    factors = tf.ones(shape[:2]) if has_centerness else None

    @tf.function(autograph=False)
    def suppress(boxes, scores):
        candidates = detector.candidates(boxes, scores, factors, canvas, sizes)
        return detector.suppress_candidates(*candidates)["scores"]

    def call(name, **inputs):
        return lambda: signatures[name](**inputs)["num_detections"].numpy()

    functions = {
        "decode": lambda: decode(contents).numpy(),
        "pre-process": lambda: prepare(decoded).numpy(),
        "network": lambda: signatures["raw"](images=images)["scores"].numpy(),
        "NMS": lambda: suppress(boxes, scores).numpy(),
        "total": call("serving_default", image_bytes=contents),
    }
    if len(files) == 1:
        functions["serve_tensor"] = call("serve_tensor", images=pixels[None])
        functions["detect"] = lambda: detector.detect(images, sizes)["scores"].numpy()
    return functions


def load_exported_detector(directory, metadata):
    """Builds the detector of a SavedModel from its metadata and variables.

    Args:
        directory: of the SavedModel.
        metadata: dict, see `read_metadata`.

    Raises:
        ValueError: if the metadata hold no config, or the variables do not fit it.
    """
    import tensorflow as tf

    from vfnet_tf import builder, config
    from vfnet_tf.ops.nms_settings import DETECTION_SETTINGS

    if metadata["config"] is None:
        raise ValueError(
            "The export must know its config, to be compared with the detector. "
            f"Received: {directory}, exported without one"
        )
    detector = builder.build_detector(config.from_dict(metadata["config"]))
    for name in DETECTION_SETTINGS:
        setattr(detector, name, metadata[name])
    reader = tf.train.load_checkpoint(
        str(pathlib.Path(directory) / "variables" / "variables")
    )
    for number, weight in enumerate(detector.weights):
        value = reader.get_tensor(f"weights/{number}/.ATTRIBUTES/VARIABLE_VALUE")
        if value.shape != tuple(weight.shape):
            raise ValueError(
                "The variables of the SavedModel must be those of its config. "
                f"Received: {weight.path} of shape {value.shape}"
            )
        weight.assign(value)
    return detector


def _median_ratio(first, second):
    """Median of the ratios of all rounds."""
    import numpy as np

    return float(np.median(np.divide(first, second)))


def percentiles(seconds):
    """Median and 95th percentile of a list."""
    import numpy as np

    return tuple(float(value) for value in np.percentile(seconds, [50, 95]))


def _times(seconds):
    middle, high = percentiles(seconds)
    return f"{1000 * middle:.0f} / {1000 * high:.0f}"


def _loads(row):
    return f"{row['load_before']:.1f} to {row['load_after']:.1f}"


def format_header(path, source):
    """The title and the head of the table."""
    height, width = source
    columns = " | ".join(STAGES)
    return (
        f"{path}: JPEGs of {height}x{width}; milliseconds, p50 / p95\n\n"
        f"| images | threads | {columns} | cold start, s (import + load + first call) "
        "| peak, GB | load |\n" + "|---" * (len(STAGES) + 5) + "|"
    )


def format_row(row):
    """One line of the table."""
    stages = " | ".join(_times(row[name]) for name in STAGES)
    parts = " + ".join(f"{row[name]:.1f}" for name in ("import", "load", "first call"))
    return (
        f"| {row['batch']} | {row['threads']} | {stages} | {row['cold start']:.1f} "
        f"({parts}) | {row['peak_gb']:.2f} | {_loads(row)} |"
    )


def format_ratios(rows):
    """The lines of the ratios with their targets."""
    lines = [""]
    for row in rows:
        setting = f"{row['batch']} images, {row['threads']} threads"
        lines.append(
            f"{setting}: total to network {row['total_to_network']:.3f} "
            f"(target {TOTAL_TARGET})"
        )
        if "export_to_detect" in row:
            lines[-1] += (
                f", export to detect {row['export_to_detect']:.3f} "
                f"(target {EXPORT_TARGET})"
            )
    return "\n".join(lines)


def photograph(seed, height, width):
    """A PIL image of blobs and noise; its JPEG has about the size of a photograph's."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 8, width // 8, 3)).astype("uint8")
    image = Image.fromarray(coarse).resize((width, height), Image.BICUBIC)
    noisy = np.asarray(image) + rng.normal(0, 8, (height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype("uint8"))


if __name__ == "__main__":
    request, answer = sys.argv[1:]
    result = json.dumps(measure_stages(**json.loads(request)))
    pathlib.Path(answer).write_text(result, encoding="utf-8")
