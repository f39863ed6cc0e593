"""A changed detector is traced again; nothing else is."""

import keras
import numpy as np
import pytest

from tests import contracts
from tests.conftest import build_small, build_two_levels
from tests.contracts import on_tensorflow
from tests.detectors.hand_cases import confident
from vfnet_tf.box_coders import DistanceCoder
from vfnet_tf.detectors import execution
from vfnet_tf.layers import Scale
from vfnet_tf.losses import FocalLoss
from vfnet_tf.ops.kernels import portable_kernels
from vfnet_tf.ops.nms_settings import DETECTION_SETTINGS

SIZES = ("boxes", "labels", "image_size")


def _add_lora(detector):
    conv = detector.head.class_predictor.conv
    conv.enable_lora(2)
    conv.lora_kernel_b.assign(np.full(conv.lora_kernel_b.shape, 0.5))


def _use_half_precision(detector):
    for layer in detector.neck._flatten_layers():
        layer.dtype_policy = "mixed_bfloat16"


def _replace(owner, name, value):
    owner._tracker.unlock()
    setattr(owner, name, value)
    owner._tracker.lock()


#: what -> a change of a small FCOS
CHANGES = {
    **{
        name: lambda d, name=name: setattr(
            d, name, "soft_linear" if name == "nms" else 7
        )
        for name in DETECTION_SETTINGS
    },
    "the margin of boxes": lambda d: setattr(d, "clip_margin", 1.0),
    "where points lie": lambda d: setattr(d, "point_offset", 0.0),
    "the coder": lambda d: setattr(d, "box_coder", DistanceCoder("exp")),
    "the coder's unit": lambda d: setattr(d.box_coder, "unit", 3.0),
    "the assigner's radius": lambda d: setattr(d.assigner, "center_radius", None),
    "the class loss": lambda d: setattr(d, "class_loss", FocalLoss(0.5)),
    "the class loss's gamma": lambda d: setattr(d.class_loss, "gamma", 1.0),
    "a loss's weight": lambda d: setattr(d, "box_loss_weight", 3.0),
    "LoRA": _add_lora,
    "dtype policies": _use_half_precision,
    "an activation": lambda d: setattr(
        d.head.class_tower.convs[0], "activation", keras.activations.tanh
    ),
    "an attribute of a layer": lambda d: setattr(d.neck, "relu_before_extra", False),
    "a layer": lambda d: _replace(d.head.class_tower.convs[0], "norm_layer", Scale()),
    "a variable": lambda d: _replace(
        d.head.class_predictor.conv,
        "_kernel",
        keras.Variable(d.head.class_predictor.conv.kernel),
    ),
    "which layers train": lambda d: setattr(d.neck, "trainable", False),
    "a constant array": lambda d: setattr(d.neck, "constant", np.zeros(3)),
}


@pytest.mark.backend
def test_every_change_makes_traces_stale_once():
    detector = build_small("fcos")
    traces = execution.Traces(detector)
    assert traces.is_stale("detect") and not traces.is_stale("detect")
    for what, change in CHANGES.items():
        change(detector)
        assert traces.is_stale("detect"), what
        assert not traces.is_stale("detect"), what
    if keras.backend.backend() == "tensorflow":
        with portable_kernels():
            assert traces.is_stale("detect")
    assert traces.is_stale("fit"), "each name has a memory of its own"


@pytest.mark.backend
def test_detections_follow_settings_and_lora(small_batch):
    keras.utils.set_random_seed(7)
    detector = confident(build_two_levels())
    detector.score_threshold, detector.max_detections = 0.0, 12
    images = small_batch["images"]

    def detect(**overrides):
        return contracts.to_numpy(detector.detect(images, **overrides))

    before = detect()
    assert np.all(before["num_detections"] > 0)  # how many depends on the backend
    detector.score_threshold, detector.max_detections = 0.9999, 3
    found = detect()
    assert found["boxes"].shape == (2, 3, 4)
    assert found["num_detections"].tolist() == [0, 0]
    detector.score_threshold, detector.max_detections = 0.0, 12
    _add_lora(detector)
    found, eagerly = detect(), detect(score_threshold=0.0)
    np.testing.assert_allclose(found["scores"], eagerly["scores"], rtol=1e-5)
    assert np.all(found["scores"][:, 0] != before["scores"][:, 0])


@on_tensorflow
def test_nothing_is_traced_anew_where_nothing_was_changed(small_batch):
    detector = build_two_levels()
    images = small_batch["images"]
    detector.compile("sgd")
    detector.fit(
        images, {name: small_batch[name] for name in SIZES}, batch_size=2, verbose=0
    )
    detector.detect(images)
    graph = detector._traces.functions()[detector._detect]
    train = detector.train_function
    detector.head.class_predictor.conv.bias.assign(np.full(3, -1.0))
    detector.make_train_function()
    detector.make_test_function()
    test = detector.test_function
    detector.make_test_function()
    detector.detect(images)
    assert detector._traces.functions()[detector._detect] is graph
    assert graph.experimental_get_tracing_count() == 1
    assert detector.train_function is train and detector.test_function is test

    detector.box_loss_weight *= 2
    detector.make_train_function()
    detector.make_test_function()
    assert detector.train_function is not train
    assert detector.test_function is not test
    for number in (12, 5):
        detector.max_detections = number
        assert detector.predict(images, verbose=0)["boxes"].shape == (2, number, 4)
