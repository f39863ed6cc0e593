"""Layers, necks, heads and backbones under other global settings of Keras."""

import contextlib

import keras
import numpy as np
import pytest

import vfnet_tf
from tests import contracts
from tests.conftest import SMALL as SMALL_DETECTORS
from tests.conftest import tiny_model
from vfnet_tf import assigners, box_coders, layers, losses
from vfnet_tf.backbones import KerasBackbone, Res2Net, ResNet, res2net, resnet
from vfnet_tf.detectors.dense_detector import DenseDetector
from vfnet_tf.heads.conv_tower import ConvTower
from vfnet_tf.ops import boxes as boxes_ops
from vfnet_tf.ops import nms
from vfnet_tf.priors import make_anchors, make_points
from vfnet_tf.training.schedules import CosineCycles, WarmupStepSchedule

MAP = np.random.default_rng(0).normal(size=(2, 5, 6, 32)).astype("float32")
IMAGES = np.random.default_rng(1).normal(size=(1, 64, 96, 3)).astype("float32")
FEATURES = {
    f"{letter}{level}": np.random.default_rng(level)
    .normal(size=(1, 2 ** (8 - level), 2 ** (8 - level), 32))
    .astype("float32")
    for letter in "CP"
    for level in range(3, 8)
}
SMALL = {"filters": 32, "num_convs": 1}


@contextlib.contextmanager
def settings(floatx="float32", data_format="channels_last"):
    """Keras with other global settings, which are then what they were."""
    before = (
        keras.config.floatx(),
        keras.config.image_data_format(),
        keras.config.dtype_policy(),
    )
    keras.config.set_floatx(floatx)
    keras.config.set_dtype_policy(floatx)
    keras.config.set_image_data_format(data_format)
    try:
        yield
    finally:
        keras.config.set_floatx(before[0])
        keras.config.set_image_data_format(before[1])
        keras.config.set_dtype_policy(before[2])


#: name -> how it is made, and what it is given
OBJECTS = {
    "ConvNormAct": (lambda: layers.ConvNormAct(6, 3, 2), MAP),
    "its frozen norm": (lambda: layers.ConvNormAct(6, 1, 1, "frozen_batch_norm"), MAP),
    "its batch norm": (lambda: layers.ConvNormAct(6, (3, 1), 1, "batch_norm"), MAP),
    "its group norm": (lambda: layers.ConvNormAct(32, 3, 1, "group_norm"), MAP),
    "its groups": (lambda: layers.ConvNormAct(8, 3, groups=4, dilation_rate=2), MAP),
    "DeformableConv2D": (lambda: layers.DeformableConv2D(6, (3, 5), groups=2), MAP),
    "its same padding": (lambda: layers.DeformableConv2D(6, 3, 2, padding="same"), MAP),
    "FoldedConv2D": (lambda: layers.FoldedConv2D(6, 3, padding="same"), MAP),
    "FrozenBatchNorm": (layers.FrozenBatchNorm, MAP),
    "GroupNorm": (lambda: layers.GroupNorm(4), MAP),
    "Scale": (lambda: layers.Scale(2.0), MAP),
    "star": (lambda: layers.StarDeformableConv2D(6), (MAP, np.abs(MAP[..., :4]))),
    "ConvTower": (lambda: ConvTower(1, 32, deformable_last=True), MAP),
    "FPN": (lambda: vfnet_tf.FPN(32), FEATURES),
    "PAFPN": (lambda: vfnet_tf.PAFPN(64), FEATURES),
    "VFNetHead": (lambda: vfnet_tf.VFNetHead(3, **SMALL), FEATURES),
    "DenseHead": (
        lambda: vfnet_tf.DenseHead(3, **SMALL, centerness="box", level_scales=True),
        FEATURES,
    ),
    "RepPointsHead": (lambda: vfnet_tf.RepPointsHead(3, **SMALL), FEATURES),
    "ResNet": (lambda: ResNet(18, "batch_norm"), IMAGES),
    "Res2Net": (lambda: Res2Net(50), IMAGES),
    "KerasBackbone": (lambda: keras_backbone(), IMAGES),
    "VFNet": (lambda: small_detector("vfnet"), IMAGES),
    "FCOS": (lambda: small_detector("fcos"), IMAGES),
    "RetinaNet": (lambda: small_detector("retinanet"), IMAGES),
    "FoveaBox": (lambda: small_detector("foveabox"), IMAGES),
    "RepPoints": (lambda: small_detector("reppoints"), IMAGES),
}
#: Targets of detectors, whose losses are compared beside their outputs.
TARGETS = {
    "boxes": np.array([[[4, 6, 40, 50], [50, 10, 90, 60]]], "float32"),
    "labels": np.array([[0, 2]], "int32"),
    "image_size": np.array([[64, 96]], "float32"),
}


def small_detector(kind):
    cls, neck, head, own = SMALL_DETECTORS[kind]({})
    return cls(keras_backbone(), neck, head, **own)


def keras_backbone():
    """Of a model that was made with channels last, as it must be."""
    data_format = keras.config.image_data_format()
    keras.config.set_image_data_format("channels_last")
    model = tiny_model()
    keras.config.set_image_data_format(data_format)
    return KerasBackbone(model, ("c3", "c4_bn", "c5"))


@pytest.fixture(autouse=True)
def one_block_for_each_stage(monkeypatch):
    monkeypatch.setitem(resnet.DEPTHS, 18, ((1, 1, 1, 1), False))
    monkeypatch.setitem(res2net.DEPTHS, 50, (1, 1, 1, 1))


def run(layer, inputs):
    """Outputs as a list of float32 arrays."""
    outputs = layer(*inputs) if isinstance(inputs, tuple) else layer(inputs)
    if isinstance(layer, DenseDetector):
        outputs = {**outputs, **layer.compute_losses(outputs, TARGETS)}
        # It must run; its order may change by rounding.
        layer.detect(inputs, TARGETS["image_size"], max_detections=3)
    flat = [keras.ops.cast(x, "float32") for x in keras.tree.flatten(outputs)]
    return [np.array(keras.ops.convert_to_numpy(x)) for x in flat]


def make(name):
    """A built object and what it is given."""
    build, inputs = OBJECTS[name]
    layer = build()
    run(layer, inputs)
    return layer, inputs


@pytest.fixture(scope="module")
def expected():
    """Name -> outputs and weights under the settings that Keras comes with."""
    found = {}

    def get(name):
        if name not in found:
            rng = np.random.default_rng(2)
            with settings():
                keras.utils.set_random_seed(3)
                layer, inputs = make(name)
                # Small values, since half precision must be near.
                layer.set_weights(
                    [x + 0.01 * rng.normal(size=x.shape) for x in layer.get_weights()]
                )
                found[name] = run(layer, inputs), layer.get_weights()
        return found[name]

    return get


#: global settings -> how far numbers may be off, relative to the largest
CASES = {
    ("float64", "channels_last"): 1e-5,
    ("float16", "channels_last"): 0.02,
    ("bfloat16", "channels_last"): 0.1,
    ("float32", "channels_first"): 1e-6,
}


@pytest.mark.parametrize(
    ("case", "name"),
    [
        pytest.param(case, name, id=f"{'-'.join(case)}-{name}")
        for case in CASES
        for name in OBJECTS
        # Deep backbones lose too much in half precision; their layers are tested.
        if "float16" not in case[0] or "Net" not in name
    ],
)
def test_it_computes_the_same_under_other_settings(name, case, expected):
    outputs, weights = expected(name)
    with settings(*case):
        layer, inputs = make(name)
        layer.set_weights(weights)
        found = run(layer, inputs)
    for one, other in zip(found, outputs, strict=True):
        assert np.all(np.isfinite(one))
        contracts.assert_close_to_max(one, other, CASES[case])


def small_network():
    inputs = keras.Input((None, None, 3))
    neck = vfnet_tf.PAFPN(32, ("C3", "C4"), ("P3", "P4"))
    head = vfnet_tf.VFNetHead(
        3, **SMALL, levels=("P3", "P4"), strides=(8, 16), distance_units=(64, 128)
    )
    return keras.Model(inputs, head(neck(keras_backbone()(inputs))))


def large_network():
    inputs = keras.Input((None, None, 3))
    return keras.Model(
        inputs, vfnet_tf.DenseHead(3, **SMALL)(vfnet_tf.FPN(32)(Res2Net(50)(inputs)))
    )


@pytest.mark.parametrize(
    ("network", "one", "other"),
    [
        (small_network, {}, {"floatx": "float64"}),
        (small_network, {"floatx": "float64"}, {}),
        (small_network, {"floatx": "float16"}, {"data_format": "channels_first"}),
        (small_network, {"data_format": "channels_first"}, {"floatx": "float16"}),
        (large_network, {"data_format": "channels_first"}, {}),
    ],
)
def test_a_file_made_under_one_loads_under_another(tmp_path, network, one, other):
    with settings(**one):
        model = network()
        outputs = run(model, IMAGES)
        model.save(tmp_path / "model.keras")
    with settings(**other):
        loaded = keras.saving.load_model(tmp_path / "model.keras")
        found = run(loaded, IMAGES)
    for value, expected in zip(found, outputs, strict=True):
        np.testing.assert_array_equal(value, expected)


def ground_truth():
    boxes = np.array([[[4, 6, 40, 50], [50, 10, 90, 60]]], "float32")
    return boxes, np.array([[0, 2]], "int32")


def assign(assigner):
    points, strides = make_points([(8, 12), (4, 6)], (8, 16), offset=0.5)
    boxes, labels = ground_truth()
    if isinstance(assigner, assigners.MaxIoUAssigner):
        anchors = boxes_ops.square_anchors(points, strides, 4.0)
        return assigner(anchors, np.ones((1, 120), "bool"), boxes, labels)
    return assigner(points, strides, boxes, labels, [[64, 96]])


def code(coder):
    points, strides = make_points([(2, 3)], (8,))
    priors = {"points": points, "strides": strides}
    boxes = keras.ops.convert_to_tensor(np.tile(ground_truth()[0][:, :1], (1, 6, 1)))
    deltas = coder.encode(boxes, priors)
    return deltas, coder.decode(deltas, priors)


def suppress(**settings):
    boxes = np.concatenate([ground_truth()[0]] * 3, axis=1)
    scores = np.linspace(0.1, 0.9, 18, dtype="float32").reshape(1, 6, 3)
    return nms.suppress(boxes, scores, 0.5, 0.1, 5, **settings)


def loss(name):
    rng = np.random.default_rng(5)
    targets, predictions = rng.uniform(0, 1, (2, 2, 3, 4)).astype("float32")
    targets[..., 2:] += 1
    if "giou" not in name.lower():
        targets = targets / 2
    found = getattr(losses, name)
    return (found() if isinstance(found, type) else found)(targets, predictions)


STRIDES = {"strides": (8, 16)}
FUNCTIONS = {
    "ATSS": lambda: assign(assigners.ATSSAssigner(**STRIDES)),
    "FCOS": lambda: assign(assigners.FCOSAssigner(**STRIDES, limits=(64, 1e9))),
    "Fovea": lambda: assign(
        assigners.FoveaAssigner(**STRIDES, scale_ranges=((1, 64), (32, 128)))
    ),
    "MaxIoU": lambda: assign(assigners.MaxIoUAssigner()),
    "Point": lambda: assign(assigners.PointAssigner(**STRIDES)),
    "distances": lambda: code(box_coders.DistanceCoder("exp", limits=(0.01, 16))),
    "deltas": lambda: code(box_coders.DeltaCoder((0.1, 0.1, 0.2, 0.2), 4)),
    "anchors": lambda: make_anchors(*make_points([(2, 3)], (8,))),
    "hard NMS": suppress,
    "cosine": lambda: CosineCycles(0.1, 4)(np.arange(8)),
    "steps": lambda: WarmupStepSchedule(0.1, 5, 0.1, [4, 6], 0.3)(np.arange(8)),
    "soft NMS": lambda: suppress(nms="soft_gaussian"),
    **{name: lambda name=name: loss(name) for name in losses.__all__},
    "probabilities": lambda: losses.FocalLoss(from_logits=False)([[0.0]], [[1.0]]),
}


@pytest.mark.backend
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_give_the_same_float32_whatever_floatx_is(name):
    expected = contracts.to_numpy(FUNCTIONS[name]())
    for floatx in ("float64", "float16", "bfloat16"):
        with settings(floatx):
            found = contracts.to_numpy(FUNCTIONS[name]())
        for value, other in zip(
            keras.tree.flatten(found), keras.tree.flatten(expected), strict=True
        ):
            assert value.dtype == other.dtype
            np.testing.assert_array_equal(value, other)
