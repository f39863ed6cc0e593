"""What the official code gave, as `tests/golden` has it, and comparisons with it."""

import gzip
import json
import pathlib

import numpy as np

from tests import contracts
from tests.golden import make_weights
from vfnet_tf.builder import build_detector
from vfnet_tf.checkpoints.names import is_ignorable, official_variables
from vfnet_tf.checkpoints.pytorch import load_pytorch_checkpoint

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
LEVELS = ("P3", "P4", "P5", "P6", "P7")


def read(name):
    """`NAME.npz` as a dict; `name` is a path within the folder."""
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        return dict(arrays)


def state_of(name):
    """Official tensors, (name, shape, dtype) in order."""
    return json.loads(gzip.decompress((GOLDEN / f"{name}_state.json.gz").read_bytes()))


def load(name):
    """The detector of a config with the weights that the official code was run with."""
    weights = make_weights.generate(state_of(name))
    return load_pytorch_checkpoint(build_detector(pathlib.Path(name).name), weights)


def targets_of(stored, key):
    """Targets of a golden batch in six rows an image."""
    boxes, labels = np.zeros((2, 6, 4), "float32"), np.full((2, 6), -1, "int32")
    for image in (0, 1):
        rows = stored[f"{key}/gt_boxes/{image}"]
        boxes[image, : len(rows)] = rows
        labels[image, : len(rows)] = stored[f"{key}/gt_labels/{image}"]
    size = stored[f"{key}/pad_shape"].astype("float32")
    return {"boxes": boxes, "labels": labels, "image_size": size}


def images_of(stored, key):
    """Images of a golden batch; what lies beyond the own padded area is zero."""
    images = make_weights.make_image(int(stored[f"{key}/image_seed"]), 2, 256, 320)
    for image, (height, width) in enumerate(stored[f"{key}/pad_shape"]):
        images[image, height:] = 0
        images[image, :, width:] = 0
    return images


def outputs_of(detector, stored):
    """Dense predictions in training of the batches A to D, with the priors of each."""
    images = np.concatenate([images_of(stored, key) for key in "ABCD"])
    found = contracts.evaluate(lambda x: detector(x, training=True), images)
    priors = {k: found.pop(k) for k in ("points", "strides", "anchors") if k in found}
    return {
        key: {**{n: v[2 * i : 2 * i + 2] for n, v in found.items()}, **priors}
        for i, key in enumerate("ABCD")
    }


def assert_every_tensor(detector, name):
    """The official tensors and the detector's variables belong to each other."""
    variables = official_variables(detector)
    shapes = {
        name: shape for name, shape, _ in state_of(name) if not is_ignorable(name)
    }
    assert sorted(variables) == sorted(shapes)
    assert len(variables) == len(detector.variables)
    for name, shape in shapes.items():
        assert np.prod(variables[name].shape) == np.prod(shape), name


def assert_every_map(detector, stored, maps):
    """Maps of the backbone, the neck and the head.

    Args:
        maps: list of (our output, level, key in the golden file).
    """

    def forward(image):
        backbone = detector.backbone(image, training=False)
        neck = detector.neck(backbone)
        return {"backbone": backbone, "neck": neck, **detector.head(neck)}

    image = make_weights.make_image(int(stored["image_seed"]), 1, 256, 320)
    found = contracts.evaluate(forward, image)
    for part, level, key in maps:
        contracts.assert_recorded_map(found[part][level], stored, key)


def trained_variables(detector):
    """`{official name: variable}` of those that train."""
    trained = {id(variable) for variable in detector.trainable_variables}
    return {
        name: variable
        for name, variable in official_variables(detector).items()
        if id(variable) in trained
    }


def gradients_of(tape, total, variables):
    """`{official name: float64 array in torch's layout}`."""
    sources = [variable.value for variable in variables.values()]
    flat = tape.gradient(total, sources, unconnected_gradients="zero")
    found = {}
    for name, gradient in zip(variables, flat, strict=True):
        gradient = contracts.to_numpy(gradient).astype("float64")
        is_kernel = gradient.ndim == 4
        found[name] = gradient.transpose(3, 2, 0, 1) if is_kernel else gradient
    return found


def assert_gradients(found, stored, key, limit=0.01):
    """Their norms and the recorded parts; returns how many have such a part."""
    names = stored[f"{key}/grad_names"].tolist()
    assert set(found) == set(names)
    norms = [np.linalg.norm(found[name]) for name in names]
    # As the reference suggests for float32, where ReLUs and samples flip.
    np.testing.assert_allclose(norms, stored[f"{key}/grad_norm"], rtol=3e-3, atol=1e-6)
    parts = 0
    for name in names:
        if f"{key}/grad/{name}" in stored:
            flat = found[name].ravel()
            part = flat[:: max(1, flat.size // 64)][:64]
            contracts.assert_close_to_max(part, stored[f"{key}/grad/{name}"], limit)
            parts += 1
    return parts
