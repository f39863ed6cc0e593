"""Compares a SavedModel with its detector."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import tensorflow as tf

from vfnet_tf.data.canvases import CANVAS_MULTIPLE
from vfnet_tf.data.images import decode
from vfnet_tf.export import fingerprint
from vfnet_tf.export.saved_model.exporter import (
    make_network_input,
    read_metadata,
    to_box_format,
)
from vfnet_tf.ops.nms_settings import DETECTION_SETTINGS

#: Largest differences of boxes, in pixels, and of scores.
BOX_TOLERANCE, SCORE_TOLERANCE = 0.01, 1e-5
#: Largest difference of boxes in 0..1.
NORMALIZED_BOX_TOLERANCE = 1e-5

# Run by `python -c`. TensorFlow 2.21 itself imports Keras.
_FRESH_PROCESS = """
import json, sys
import numpy as np
import tensorflow as tf

directory, request, answer, signature = sys.argv[1:]
detect = tf.saved_model.load(directory).signatures[signature]


def make_example(content):
    feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[content]))
    features = tf.train.Features(feature={"image/encoded": feature})
    return tf.train.Example(features=features).SerializeToString()


def decode(content):
    return tf.io.decode_jpeg(content, 3, dct_method="INTEGER_ACCURATE")


make_inputs = {
    "tf_example": lambda all: {"examples": tf.constant([*map(make_example, all)])},
    "image_tensor": lambda all: {"images": tf.stack([*map(decode, all)])},
}.get(signature, lambda all: {"image_bytes": tf.constant(all)})
results = {}
with open(request, encoding="utf-8") as file:
    batches = json.load(file)
for number, paths in enumerate(batches):
    contents = [open(path, "rb").read() for path in paths]
    for name, value in detect(**make_inputs(contents)).items():
        results[f"{number}/{name}"] = value.numpy()
if "vfnet_tf" in sys.modules:
    sys.exit("the SavedModel imported vfnet_tf: TensorFlow alone must run it")
np.savez(answer, **results)
"""


def detect_in_fresh_process(
    directory, batches, timeout=900, signature="serving_default"
):
    """Runs a SavedModel in a new Python process with TensorFlow alone.

    Args:
        directory: of the SavedModel.
        batches: list of batches, each a list of paths of JPEG or PNG files.
        timeout: seconds.
        signature: str. For `"image_tensor"` the images of a batch must have one size
            and no EXIF orientation.

    Returns:
        list of one dict of numpy arrays per batch.

    Raises:
        ValueError: if the process fails, with the end of its error output.
    """
    with tempfile.TemporaryDirectory() as folder:
        request = pathlib.Path(folder) / "request.json"
        answer = pathlib.Path(folder) / "answer.npz"
        absolute = [[str(pathlib.Path(p).resolve()) for p in b] for b in batches]
        request.write_text(json.dumps(absolute), encoding="utf-8")
        directory = pathlib.Path(directory).resolve()
        arguments = [str(directory), str(request), str(answer), signature]
        process = subprocess.run(
            [sys.executable, "-c", _FRESH_PROCESS, *arguments],
            cwd=folder,
            # On the CPU: the calling process may occupy the memory of a GPU.
            env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1"},
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if process.returncode != 0:
            raise ValueError(
                "The SavedModel must run in a process with TensorFlow alone. Received: "
                f"{directory} with exit status {process.returncode}:\n"
                f"{process.stderr.strip()[-1500:]}"
            )
        with np.load(answer) as arrays:
            results = [{} for _ in batches]
            for key in arrays.files:
                number, name = key.split("/")
                results[int(number)][name] = arrays[key]
            return results


class PythonDetect:
    """Detects objects in files like the SavedModel, with `detector` and its `metadata`.

    Preparing and detecting run as graphs for any size, like those of the SavedModel: a
    graph for a fixed size is optimised differently and rounds differently.
    """

    def __init__(self, detector, metadata):
        make_input = make_network_input(metadata)
        # The metadata of older exports lack some settings.
        settings = {k: metadata[k] for k in DETECTION_SETTINGS if k in metadata}

        @tf.function(autograph=False, input_signature=[tf.TensorSpec((), "string")])
        def prepare(contents):
            image = decode.decode_image(contents)
            return {**make_input(image), "original_size": tf.shape(image)[:2]}

        pair = tf.TensorSpec((None, 2), "float32")
        images = tf.TensorSpec((None, None, None, 3), "float32")

        @tf.function(autograph=False, input_signature=[images, pair, pair])
        def detect(images, image_size, scale):
            return detector.detect(images, image_size, scale, **settings)

        self._prepare = prepare
        self._detect = detect
        # In format 1 `box_format` is a sentence.
        is_new = metadata["format_version"] > 1
        self._box_format = metadata["box_format"] if is_new else "xyxy"

    def batch(self, paths):
        """Reads JPEG or PNG files as one batch on their common canvas.

        Returns:
            `images` float32 `[B, H, W, 3]`, `image_size`, `scale` and `original_size`
            float32 `[B, 2]`.
        """
        examples = [self._prepare(pathlib.Path(path).read_bytes()) for path in paths]
        sizes = np.asarray([example["image"].shape[:2] for example in examples])
        canvas = -(-sizes.max(axis=0) // CANVAS_MULTIPLE) * CANVAS_MULTIPLE
        images = np.zeros((len(paths), *canvas, 3), "float32")
        for row, (height, width) in enumerate(sizes):
            images[row, :height, :width] = examples[row]["image"]
        scale, original_size = (
            np.asarray([example[key] for example in examples], "float32")
            for key in ("scale", "original_size")
        )
        return images, sizes.astype("float32"), scale, original_size

    def __call__(self, paths):
        """Detections in a batch of files: numpy arrays by the SavedModel's names."""
        with tf.device("/CPU:0"):
            *inputs, original_size = self.batch(paths)
            found = self._detect(*inputs)
            found = to_box_format(found, original_size, self._box_format)
        return {name: value.numpy() for name, value in found.items()}


def verify_saved_model(directory, detector, paths, batch_sizes=(1, 2, 5)):
    """Compares an exported detector, in a fresh process, with the one in Python.

    Both get the same batches, and so the same canvases. Both run on the CPU, where they
    are equal to the last bit, in float32 and in bfloat16.

    Args:
        directory: of the SavedModel.
        detector: the exported detector.
        paths: list of JPEG or PNG files, best of several sizes.
        batch_sizes: all files are detected in batches of each of these sizes. Sizes
            above the number of files are left out; if all are, one batch has all files.

    Returns:
        dict of `num_batches`, `num_detections`, and the largest differences
        `box_difference` in pixels and `score_difference`, over all batches.

    Raises:
        ValueError: if the SavedModel does not run, refuses an image, counts or classes
            differ, boxes differ by more than 0.01 pixel (1e-5 of those in 0..1), or
            scores by more than 1e-5.
    """
    paths = list(paths)
    if not paths:
        raise ValueError("`paths` must name at least one image. Received: paths=[]")
    sizes = [size for size in batch_sizes if size <= len(paths)] or [len(paths)]
    batches = [
        paths[start : start + size]
        for size in sizes
        for start in range(0, len(paths), size)
    ]
    exported = detect_in_fresh_process(directory, batches)
    metadata = read_metadata(directory)
    detect = PythonDetect(detector, metadata)
    is_normalized = metadata["box_format"] == "yxyx_normalized"
    tolerance = NORMALIZED_BOX_TOLERANCE if is_normalized else BOX_TOLERANCE
    unit = "" if is_normalized else " pixels"
    differences = []
    for batch, found in zip(batches, exported, strict=True):
        names = ", ".join(pathlib.Path(path).name for path in batch)
        if np.any(found.get("status", 0)):
            raise ValueError(
                "The images must be ones that the SavedModel takes. Received: `status` "
                f"{found['status'].tolist()} for {names}"
            )
        expected = detect(batch)
        problems = [
            f"`{key}` is {_begin(found[key])} in place of {_begin(expected[key])}"
            for key in ("num_detections", "detection_classes")
            if not np.array_equal(found[key], expected[key])
        ]
        boxes, scores = (
            float(np.max(np.abs(found[key] - expected[key])))
            for key in ("detection_boxes", "detection_scores")
        )
        if not (boxes <= tolerance and scores <= SCORE_TOLERANCE):
            text = f"boxes up to {boxes:.3g}{unit} off and scores up to {scores:.3g}"
            problems.append(text)
        if problems:
            raise ValueError(
                "Detections of the SavedModel must be the detector's. Received: "
                f"{'; '.join(problems)} for {names}"
            )
        differences.append((boxes, scores))
    box_difference, score_difference = np.max(differences, axis=0).tolist()
    return {
        "num_batches": len(batches),
        "num_detections": sum(int(f["num_detections"].sum()) for f in exported),
        "box_difference": box_difference,
        "score_difference": score_difference,
    }


def check_origin(directory, detector, config):
    """Checks that a SavedModel was exported from this detector and config.

    Raises:
        ValueError: if its SHA-256 of the weights or of the config differs or is missing.
    """
    metadata = read_metadata(directory)
    own = {
        "weights_sha256": fingerprint.weights_sha256(detector),
        "config_sha256": fingerprint.config_sha256(config),
    }
    for name, value in own.items():
        recorded = metadata.get(name)
        if recorded != value:
            raise ValueError(
                f"`{name}` of the SavedModel must be that of the run, {value}. "
                f"Received: {recorded} in {directory}"
            )


def _begin(array):
    return np.array2string(array.reshape(-1)[:12], separator=", ", threshold=20)
