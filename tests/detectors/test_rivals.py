"""The rival detectors beside the official code: maps, targets, losses, gradients."""

import keras
import numpy as np
import pytest

from tests import contracts
from tests.contracts import on_tensorflow, tensors
from tests.detectors import recorded
from tests.detectors.recorded import LEVELS, targets_of
from vfnet_tf.losses import FocalLoss, QualityFocalLoss, VarifocalLoss

RAW = "vfnet_raw_r50_fpn_1x_coco"
ATSS = "vfl_atss_r50_fpn_1x_coco"
RETINANET = "vfl_retinanet_r50_fpn_4x4_1x_coco"
FOVEABOX = "vfl_fovea_r50_fpn_4x4_1x_coco"
REPPOINTS = "vfl_reppoints_moment_r50_fpn_gn-neck+head_4x4_1x_coco"
#: Those of the other backends, too; VFNet itself is in test_vfnet.py.
PORTABLE = (ATSS, RETINANET)
BOX_MAPS = {"class_logits": "cls_score", "box_predictions": "bbox_pred"}
#: our maps and what they are recorded as
MAPS = {
    RAW: {"class_logits": "cls_score", "distances": "bbox_pred"},
    ATSS: {**BOX_MAPS, "centerness_logits": "centerness"},
    RETINANET: BOX_MAPS,
    FOVEABOX: BOX_MAPS,
    REPPOINTS: {
        "class_logits": "cls_score",
        "point_shifts": "pts_pred_init",
        "refined_point_shifts": "pts_pred_refine",
    },
}
BOX_PARTS = {"class_loss": "loss_cls", "box_loss": "loss_bbox"}
#: our names of the loss parts and the recorded ones
PARTS = {
    RAW: BOX_PARTS,
    ATSS: {**BOX_PARTS, "centerness_loss": "loss_centerness"},
    RETINANET: BOX_PARTS,
    FOVEABOX: BOX_PARTS,
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
    return recorded.load(f"rivals/{stem}")


@pytest.fixture(scope="module")
def training(stem):
    return recorded.read(f"rivals/{stem}_training")


@pytest.fixture(scope="module")
def outputs(rival, training):
    """Dense predictions of the golden batches."""
    return recorded.outputs_of(rival, training)


def test_every_tensor_and_every_map_is_the_official_one(rival, stem):
    name = f"rivals/{stem}"
    recorded.assert_every_tensor(rival, name)
    maps = [("neck", level, level) for level in LEVELS]
    for ours, theirs in MAPS[stem].items():
        maps += [(ours, level, f"{theirs}/{level}") for level in LEVELS]
    recorded.assert_every_map(rival, recorded.read(name), maps)


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


@on_tensorflow
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


@on_tensorflow
@pytest.mark.parametrize(
    # The way from the outputs to the weights is the same for every batch.
    "key",
    ["A", *(pytest.param(key, marks=pytest.mark.slow) for key in "BCD")],
)
def test_gradients_are_the_official_ones(rival, training, stem, key):
    import tensorflow as tf

    own, totals = rival.class_loss, {}
    targets = targets_of(training, key)
    with tf.GradientTape(persistent=True) as tape:
        outputs = rival(recorded.images_of(training, key), training=True)
        try:
            for name, rival.class_loss in class_losses(stem).items():
                if f"{key}/{name}/grad_norm" in training:
                    losses = rival.compute_losses(outputs, targets)
                    totals[name] = sum(losses.values())
        finally:
            rival.class_loss = own
    assert "vfl" in totals
    variables = recorded.trained_variables(rival)
    # On D one ReLU of RepPoints lies so near 0 that the order of a sum decides: 0.0112
    # of the largest with kernels cut into slices, 0.00005 in one piece; the norms agree
    # in both.
    flips = stem == REPPOINTS and key == "D"
    for name, total in totals.items():
        found = recorded.gradients_of(tape, total, variables)
        limit = 0.015 if flips else 0.01
        recorded.assert_gradients(found, training, f"{key}/{name}", limit)
