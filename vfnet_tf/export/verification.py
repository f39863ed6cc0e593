"""Does an exported detector give what the detector in Python gives?"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import tensorflow as tf

from vfnet_tf.data import transforms
from vfnet_tf.data.normalization import Normalization
from vfnet_tf.data.pipeline import CANVAS_MULTIPLE
from vfnet_tf.detectors.dense_detector import DETECTION_SETTINGS
from vfnet_tf.export.saved_model import read_metadata

#: Output of the SavedModel -> the same thing in what `detector.detect` returns.
OUTPUTS = {
    "detection_boxes": "boxes",
    "detection_scores": "scores",
    "detection_classes": "labels",
    "num_detections": "num_detections",
}

#: Pixels, and score, that the SavedModel may differ by: nothing that anyone could see.
BOX_TOLERANCE, SCORE_TOLERANCE = 0.01, 1e-5

# Run by `python -c`. TensorFlow 2.21 imports Keras by itself, before any model.
_FRESH_PROCESS = """
import json, sys
import numpy as np
import tensorflow as tf

directory, request, answer = sys.argv[1:]
loaded = tf.saved_model.load(directory)
detect = loaded.signatures["serving_default"]
results = {}
with open(request, encoding="utf-8") as file:
    batches = json.load(file)
for number, paths in enumerate(batches):
    contents = [open(path, "rb").read() for path in paths]
    for name, value in detect(image_bytes=tf.constant(contents)).items():
        results[f"{number}/{name}"] = value.numpy()
if "vfnet_tf" in sys.modules:
    sys.exit("the SavedModel imported vfnet_tf: TensorFlow alone must run it")
np.savez(answer, **results)
"""


def detect_in_fresh_process(directory, batches, timeout=900):
    """Runs `serving_default` in a new Python process that knows TensorFlow only.

    Args:
        directory: of the SavedModel.
        batches: list of batches, each a list of paths of JPEG or PNG files.
        timeout: seconds.

    Returns:
        list of one dict of numpy arrays per batch.

    Raises:
        ValueError: if the process fails; the end of what it said is in the message.
    """
    with tempfile.TemporaryDirectory() as folder:
        request = pathlib.Path(folder) / "request.json"
        answer = pathlib.Path(folder) / "answer.npz"
        absolute = [[str(pathlib.Path(p).resolve()) for p in b] for b in batches]
        request.write_text(json.dumps(absolute), encoding="utf-8")
        arguments = [str(pathlib.Path(directory).resolve()), str(request), str(answer)]
        process = subprocess.run(
            [sys.executable, "-c", _FRESH_PROCESS, *arguments],
            cwd=folder,
            # The CPU: a GPU's memory may be taken by the process that asks.
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
            return [
                {name: arrays[f"{number}/{name}"] for name in OUTPUTS}
                for number in range(len(batches))
            ]


class PythonDetect:
    """What the SavedModel does, put together from the detector and `data.transforms`.

    Every image is prepared by itself, as the pipeline does, and then the batch goes
    through `detector.detect`. Both run as graphs for any size, as in the SavedModel: a
    graph for one fixed size is optimised otherwise, and its sums end in other last
    digits.

    Args:
        detector: the `DenseDetector` that was exported.
        metadata: dict, as from `read_metadata`.
    """

    def __init__(self, detector, metadata):
        resize_to = (
            transforms.resize_keep_ratio
            if metadata["keep_ratio"]
            else transforms.resize_exact
        )
        resize = resize_to(*metadata["image_size"])
        normalize = transforms.normalize(
            Normalization.from_dict(metadata["normalization"])
        )

        # What an older export does not name it does as the detector's defaults say.
        settings = {k: metadata[k] for k in DETECTION_SETTINGS if k in metadata}

        @tf.function(autograph=False, input_signature=[tf.TensorSpec((), "string")])
        def prepare(contents):
            image = transforms.decode_image(contents)
            return normalize(resize({"image": image, "boxes": tf.zeros((0, 4))}))

        @tf.function(
            autograph=False,
            input_signature=[
                tf.TensorSpec((None, None, None, 3), "float32"),
                tf.TensorSpec((None, 2), "float32"),
                tf.TensorSpec((None, 2), "float32"),
            ],
        )
        def detect(images, image_size, scale):
            return detector.detect(images, image_size, scale, **settings)

        self._prepare = prepare
        self._detect = detect

    def batch(self, paths):
        """Reads JPEG or PNG files as one batch on their common canvas.

        Returns:
            `images` float32 `[B, H, W, 3]`, `image_size` and `scale` float32 `[B, 2]`.
        """
        examples = [self._prepare(pathlib.Path(path).read_bytes()) for path in paths]
        sizes = np.asarray([example["image"].shape[:2] for example in examples])
        canvas = -(-sizes.max(axis=0) // CANVAS_MULTIPLE) * CANVAS_MULTIPLE
        images = np.zeros((len(paths), *canvas, 3), "float32")
        for image, example, (height, width) in zip(
            images, examples, sizes, strict=True
        ):
            image[:height, :width] = example["image"]
        scale = np.asarray([example["scale"] for example in examples], "float32")
        return images, sizes.astype("float32"), scale

    def __call__(self, paths):
        """Detections in a batch of files: numpy arrays by the SavedModel's names."""
        with tf.device("/CPU:0"):
            found = self._detect(*self.batch(paths))
        return {name: found[own].numpy() for name, own in OUTPUTS.items()}


def verify_saved_model(directory, detector, paths, batch_sizes=(1, 2, 5)):
    """Compares an exported detector, in a fresh process, with the one in Python.

    Both get the same files in the same batches, so both pad to the same canvases. Both
    run on the CPU, where sums are taken in the same order each time: there they have
    been equal to the last bit, in float32 and in bfloat16.

    Args:
        directory: of the SavedModel.
        detector: what was exported.
        paths: list of JPEG or PNG files, best of several sizes.
        batch_sizes: all files are taken in batches of each of these sizes; a size above
            the number of files is left out, unless all are.

    Returns:
        dict of `num_batches`, `num_detections`, and the largest differences
        `box_difference` in pixels and `score_difference`, over all batches.

    Raises:
        ValueError: if the SavedModel does not run, counts or classes differ, boxes
            differ by more than 0.01 pixel, or scores by more than 1e-5.
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
    detect = PythonDetect(detector, read_metadata(directory))
    differences = []
    for batch, found in zip(batches, exported, strict=True):
        expected = detect(batch)
        names = ", ".join(pathlib.Path(path).name for path in batch)
        for key in ("num_detections", "detection_classes"):
            if not np.array_equal(found[key], expected[key]):
                raise ValueError(
                    f"`{key}` of the SavedModel must be the detector's. Received: "
                    f"{_begin(found[key])} in place of {_begin(expected[key])} for "
                    f"{names}"
                )
        boxes, scores = (
            float(np.max(np.abs(found[key] - expected[key])))
            for key in ("detection_boxes", "detection_scores")
        )
        if not (boxes <= BOX_TOLERANCE and scores <= SCORE_TOLERANCE):
            raise ValueError(
                "Boxes and scores of the SavedModel must be the detector's. Received: "
                f"boxes up to {boxes:.3g} pixels off and scores up to {scores:.3g} for "
                f"{names}"
            )
        differences.append((boxes, scores))
    box_difference, score_difference = np.max(differences, axis=0).tolist()
    return {
        "num_batches": len(batches),
        "num_detections": sum(int(f["num_detections"].sum()) for f in exported),
        "box_difference": box_difference,
        "score_difference": score_difference,
    }


def _begin(array):
    """The first values of an array, for a message."""
    return np.array2string(array.reshape(-1)[:12], separator=", ", threshold=20)
