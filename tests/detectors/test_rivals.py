"""The rival detectors beside the official code: maps, targets, losses, gradients."""

import gzip
import json
import pathlib

import keras
import numpy as np
import pytest

from tests import contracts
from tests.detectors.test_vfnet import images_of, needs_tensorflow, targets_of
from tests.golden import make_weights
from vfnet_tf.builder import build_detector
from vfnet_tf.checkpoints.names import is_ignorable, official_variables
from vfnet_tf.checkpoints.pytorch import load_pytorch_checkpoint
from vfnet_tf.losses import FocalLoss, QualityFocalLoss, VarifocalLoss

RIVALS = pathlib.Path(__file__).parents[1] / "golden" / "rivals"
RAW = "vfnet_raw_r50_fpn_1x_coco"
ATSS = "vfl_atss_r50_fpn_1x_coco"
RETINANET = "vfl_retinanet_r50_fpn_4x4_1x_coco"
FOVEABOX = "vfl_fovea_r50_fpn_4x4_1x_coco"
REPPOINTS = "vfl_reppoints_moment_r50_fpn_gn-neck+head_4x4_1x_coco"
#: Those of the other backends, too; VFNet itself is in test_vfnet.py.
PORTABLE = (ATSS, RETINANET)
LEVELS = ("P3", "P4", "P5", "P6", "P7")
#: our maps and what they are recorded as
MAPS = {
    RAW: {"class_logits": "cls_score", "distances": "bbox_pred"},
    ATSS: {
        "class_logits": "cls_score",
        "box_predictions": "bbox_pred",
        "centerness_logits": "centerness",
    },
    RETINANET: {"class_logits": "cls_score", "box_predictions": "bbox_pred"},
    FOVEABOX: {"class_logits": "cls_score", "box_predictions": "bbox_pred"},
    REPPOINTS: {
        "class_logits": "cls_score",
        "point_shifts": "pts_pred_init",
        "refined_point_shifts": "pts_pred_refine",
    },
}
#: our names of the loss parts and the recorded ones
PARTS = {
    RAW: {"class_loss": "loss_cls", "box_loss": "loss_bbox"},
    ATSS: {
        "class_loss": "loss_cls",
        "box_loss": "loss_bbox",
        "centerness_loss": "loss_centerness",
    },
    RETINANET: {"class_loss": "loss_cls", "box_loss": "loss_bbox"},
    FOVEABOX: {"class_loss": "loss_cls", "box_loss": "loss_bbox"},
    REPPOINTS: {
        "class_loss": "loss_cls",
        "box_loss": "loss_pts_init",
        "refined_box_loss": "loss_pts_refine",
    },
}
#: Maps that a convolution alone makes, and the bias of that convolution.
LAST_BIASES = {
    RAW: {"class_logits": "vfnet_cls"},
    ATSS: {"class_logits": "atss_cls", "centerness_logits": "atss_centerness"},
    RETINANET: {"class_logits": "retina_cls", "box_predictions": "retina_reg"},
    FOVEABOX: {"class_logits": "conv_cls", "box_predictions": "conv_reg"},
    REPPOINTS: {"class_logits": "reppoints_cls_out"},
}


def class_losses(stem):
    """The class losses that are recorded for a detector."""
    focal = FocalLoss(0.4, 1.5) if stem == FOVEABOX else FocalLoss()
    losses = {"vfl": VarifocalLoss(), "focal": focal}
    return {**losses, "qfl": QualityFocalLoss()} if stem == ATSS else losses


def read(name):
    with np.load(RIVALS / f"{name}.npz") as arrays:
        return dict(arrays)


def state_of(stem):
    """Official tensors, (name, shape, dtype) in order."""
    packed = (RIVALS / f"{stem}_state.json.gz").read_bytes()
    return json.loads(gzip.decompress(packed))


def marked():
    """Every stem, with the mark of those that run on the other backends, too.

    JAX compiles for 40 s what RetinaNet has, so there it is slow.
    """
    marks = {stem: [pytest.mark.backend] for stem in PORTABLE}
    if keras.backend.backend() == "jax":
        marks[RETINANET].append(pytest.mark.slow)
    return [pytest.param(stem, marks=marks.get(stem, []), id=stem) for stem in PARTS]


# Of the module, so that pytest runs all tests of a detector before the next is built.
@pytest.fixture(scope="module", params=marked())
def stem(request):
    return request.param


@pytest.fixture(scope="module")
def rival(stem):
    """The detector with the golden weights."""
    weights = make_weights.generate(state_of(stem))
    return load_pytorch_checkpoint(build_detector(stem), weights)


@pytest.fixture(scope="module")
def training(stem):
    return read(f"{stem}_training")


@pytest.fixture(scope="module")
def outputs(rival, training):
    """Dense predictions of the golden batches."""
    images = np.concatenate([images_of(training, key) for key in "ABCD"])
    found = contracts.evaluate(lambda x: rival(x, training=True), images)
    priors = {k: found.pop(k) for k in ("points", "strides", "anchors") if k in found}
    return {
        key: {**{n: v[2 * i : 2 * i + 2] for n, v in found.items()}, **priors}
        for i, key in enumerate("ABCD")
    }


def tensors(tree):
    return keras.tree.map_structure(keras.ops.convert_to_tensor, tree)


def test_every_tensor_and_every_map_is_the_official_one(rival, stem):
    detector, stored = rival, read(stem)
    variables = official_variables(detector)
    shapes = {
        name: shape for name, shape, _ in state_of(stem) if not is_ignorable(name)
    }
    assert sorted(variables) == sorted(shapes)
    assert len(variables) == len(detector.variables)

    def forward(image):
        neck = detector.neck(detector.backbone(image, training=False))
        return {"neck": neck, **detector.head(neck)}

    image = make_weights.make_image(int(stored["image_seed"]), 1, 256, 320)
    maps = contracts.evaluate(forward, image)
    for part, recorded in {"neck": "", **MAPS[stem]}.items():
        for level in LEVELS:
            found = maps[part][level]
            key = f"{recorded}/{level}" if recorded else level
            assert found.shape == tuple(stored[f"{key}/shape"])
            rows, columns, channels = stored[f"{key}/stride"]
            values = stored.get(f"{key}/values", stored.get(f"{key}/slice"))
            # As for VFNet: float32 can reach 3e-6 of the largest value.
            contracts.assert_close_to_max(
                found[:, ::rows, ::columns, ::channels], values, 2e-5
            )
            wide = found.astype("float64")
            statistics = [wide.mean(), wide.std(), wide.min(), wide.max()]
            statistics.append(np.abs(wide).mean())
            contracts.assert_close_to_max(statistics, stored[f"{key}/stats"], 2e-5)


def recorded_maps(stored, name):
    """Maps of all levels in one row, `[2, P]` or `[2, P, 4]`."""
    maps = [stored[f"{name}/{level}"] for level in LEVELS]
    size = 4 if "bbox" in name else 1
    maps = [np.reshape(m, (2, -1, size)) for m in maps]
    return np.concatenate(maps, axis=1)[..., slice(None) if size == 4 else 0]


@pytest.mark.parametrize("key", "ABCD")
def test_targets_are_exactly_the_official_ones(rival, outputs, training, stem, key):
    detector, stored = rival, training
    found, targets = tensors(outputs[key]), tensors(targets_of(stored, key))
    stages = {"": detector.assign(found, targets)}
    if stem == REPPOINTS:
        stages["refine/"] = stages.pop("")
        stages["init/"] = detector.initial_assigner(
            found["points"],
            found["strides"],
            targets["boxes"],
            targets["labels"],
            targets["image_size"],
        )
    for stage, assignment in stages.items():
        labels = recorded_maps(stored, f"{key}/{stage}labels")
        weights = np.ones_like(labels)
        if stem != FOVEABOX:
            weights = recorded_maps(stored, f"{key}/{stage}label_weights")
        is_positive = (weights > 0) & (labels < 80)
        if stage == "init/":  # its labels serve nothing
            weights = None
            is_positive = recorded_maps(stored, f"{key}/init/bbox_weights")[..., 0] > 0
        assert is_positive.any() == (key != "C")
        got = contracts.to_numpy(assignment._asdict())
        np.testing.assert_array_equal(got["is_positive"], is_positive)
        np.testing.assert_array_equal(got["labels"][is_positive], labels[is_positive])
        if weights is not None:
            np.testing.assert_array_equal(got["is_valid"], weights > 0)
        if stem == REPPOINTS:
            boxes = recorded_maps(stored, f"{key}/{stage}bbox_gt")
            np.testing.assert_array_equal(got["boxes"][is_positive], boxes[is_positive])


@pytest.mark.parametrize("key", "ABCD")
def test_losses_are_the_official_ones(rival, outputs, training, stem, key):
    detector, stored = rival, training
    found, targets = tensors(outputs[key]), tensors(targets_of(stored, key))
    own = detector.class_loss
    try:
        for name, detector.class_loss in class_losses(stem).items():
            losses = detector.compute_losses(found, targets)
            assert list(losses) == list(PARTS[stem]) == list(detector.loss_names)
            for part, value in contracts.to_numpy(losses).items():
                # One value, or one for each level.
                expected = np.sum(stored[f"{key}/{name}/loss/{PARTS[stem][part]}"])
                np.testing.assert_allclose(
                    value, expected, rtol=1e-5, atol=1e-6, err_msg=f"{name} {part}"
                )
    finally:
        detector.class_loss = own


def gradients_of(detector, stored, stem, key):
    """Gradients by class loss and official name, of those that are recorded."""
    import tensorflow as tf

    trained = {id(variable) for variable in detector.trainable_variables}
    names = {
        name: variable
        for name, variable in official_variables(detector).items()
        if id(variable) in trained
    }
    sources = [variable.value for variable in names.values()]
    own, totals, found = detector.class_loss, {}, {}
    with tf.GradientTape(persistent=True) as tape:
        outputs = detector(images_of(stored, key), training=True)
        try:
            for name, detector.class_loss in class_losses(stem).items():
                if f"{key}/{name}/grad_norm" in stored:
                    losses = detector.compute_losses(outputs, targets_of(stored, key))
                    totals[name] = sum(losses.values())
        finally:
            detector.class_loss = own
    for name, total in totals.items():
        flat = tape.gradient(total, sources, unconnected_gradients="zero")
        found[name] = {
            n: contracts.to_numpy(g).astype("float64")
            for n, g in zip(names, flat, strict=True)
        }
    return found


@needs_tensorflow
@pytest.mark.parametrize("key", "ABCD")
def test_gradients_of_outputs_are_the_official_ones(
    rival, outputs, training, stem, key, monkeypatch
):
    """That of a bias is the sum over all cells, so the losses alone give it."""
    import tensorflow as tf

    found, targets = tensors(outputs[key]), tensors(targets_of(training, key))
    maps = {name: found[name] for name in LAST_BIASES[stem]}
    monkeypatch.setattr(rival, "class_loss", VarifocalLoss())
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(maps)
        total = sum(rival.compute_losses(found, targets).values())
    gradients = tape.gradient(total, maps, unconnected_gradients="zero")
    recorded = training[f"{key}/vfl/grad_names"].tolist()
    for name, bias in LAST_BIASES[stem].items():
        place = recorded.index(f"bbox_head.{bias}.bias")
        gradient = gradients[name].numpy().astype("float64")
        size = rival.head.anchors_per_cell if stem == RETINANET else 1
        size *= gradient.shape[2] if gradient.ndim == 3 else 1
        np.testing.assert_allclose(
            np.linalg.norm(gradient.reshape(-1, size).sum(axis=0)),
            training[f"{key}/vfl/grad_norm"][place],
            rtol=1e-4,
            atol=1e-6,
            err_msg=name,
        )


@needs_tensorflow
@pytest.mark.parametrize(
    # The way from the outputs to the weights is the same for every batch.
    "key",
    ["A", *(pytest.param(key, marks=pytest.mark.slow) for key in "BCD")],
)
def test_gradients_are_the_official_ones(rival, training, stem, key):
    stored = training
    found = gradients_of(rival, stored, stem, key)
    assert "vfl" in found
    for loss, by_name in found.items():
        names = stored[f"{key}/{loss}/grad_names"].tolist()
        assert set(by_name) == set(names)
        norms = [np.linalg.norm(by_name[name]) for name in names]
        # As the reference suggests for float32, where ReLUs and samples flip.
        np.testing.assert_allclose(
            norms, stored[f"{key}/{loss}/grad_norm"], rtol=3e-3, atol=1e-6
        )
        for name in names:
            recorded = stored.get(f"{key}/{loss}/grad/{name}")
            if recorded is not None:
                gradient = by_name[name]
                if gradient.ndim == 4:
                    gradient = gradient.transpose(3, 2, 0, 1)
                flat = gradient.ravel()
                part = flat[:: max(1, flat.size // 64)][:64]
                # On D one ReLU of RepPoints lies so near 0 that the order of a sum
                # decides: 0.0112 of the largest with kernels cut into slices, 0.00005
                # in one piece; the norms agree in both.
                flips = stem == REPPOINTS and key == "D"
                limit = 0.015 if flips else 0.01
                contracts.assert_close_to_max(part, recorded, limit)
