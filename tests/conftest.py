"""Fixtures for tests of several folders: golden arrays and detectors."""

import gc
import json
import os
import pathlib

import keras
import numpy as np
import pytest

from tests.browser import start_browser
from tests.contracts import assert_recorded_map, evaluate
from tests.golden import make_weights
from vfnet_tf.assigners import ATSSAssigner
from vfnet_tf.backbones import KerasBackbone, ResNet
from vfnet_tf.box_coders import DeltaCoder
from vfnet_tf.checkpoints.pytorch import load_pytorch_checkpoint
from vfnet_tf.detectors import FCOS, FoveaBox, RepPoints, RetinaNet, VFNet
from vfnet_tf.heads import DenseHead, RepPointsHead, VFNetHead
from vfnet_tf.necks import FPN

# No test goes to the network.
os.environ["VFNET_OFFLINE"] = "1"

TESTS = pathlib.Path(__file__).parent
GOLDEN = TESTS / "golden"
#: Files with common session fixtures, which one worker should run.
TOGETHER = {
    "golden": (
        "detectors/test_vfnet.py",
        "heads/test_vfnet.py",
        "necks/test_fpn.py",
        "backbones/test_resnet.py",
        "checkpoints/test_names.py",
        "checkpoints/test_pytorch.py",
    ),
    "export": ("export/",),
    "cli": ("cli/",),
}
#: Units of about a minute or more; begun last, they would leave the other core idle.
FIRST = (
    "export",
    "cli",
    "training/test_faults.py",
    "training/test_loop.py",
    "golden",
    "detectors/test_rivals.py",
    "detectors/test_dense_detector.py",
    "training/test_trainer.py",
    "colab/test_notebooks.py",
    "paper/test_study.py",
    "detectors/test_each_detector.py",
    "detectors/test_published.py",
    "data/test_pipeline.py",
)

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

    # Two logical devices, so that one machine can hold two replicas. Possible only
    # before TensorFlow's first operation: hence here, before any test is imported.
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration()] * 2,
    )


def unit_of(file):
    """The unit that one worker runs: a file, by its path in this folder, or a group."""
    groups = [name for name, paths in TOGETHER.items() if file.startswith(paths)]
    return groups[0] if groups else file


def pytest_collection_modifyitems(items):
    """Longest units first; the Makefile asks xdist to keep this order."""
    for name in (*FIRST, *sum(TOGETHER.values(), ())):
        assert name in TOGETHER or (TESTS / name).exists(), name
    rank = {unit: number for number, unit in enumerate(FIRST)}
    units = [unit_of(item.path.relative_to(TESTS).as_posix()) for item in items]
    order = sorted(range(len(items)), key=lambda i: rank.get(units[i], len(rank)))
    items[:] = [items[i] for i in order]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Workers take units, not files."""
    from xdist.scheduler import LoadFileScheduling

    class LoadUnitScheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            return unit_of(super()._split_scope(nodeid).removeprefix("tests/"))

    return LoadUnitScheduling(config, log)


def pytest_collection_finish():
    """Excludes the million objects of the imports from garbage collection."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """A headless browser for `tests.browser.Page`; skips where there is none."""
    with start_browser(tmp_path_factory.mktemp("browser")) as started:
        yield started


@pytest.fixture(scope="session")
def golden():
    """Reads `golden/NAME.npz` as a dict, once."""
    files = {}

    def read(name):
        if name not in files:
            with np.load(GOLDEN / f"{name}.npz") as arrays:
                files[name] = dict(arrays)
        return files[name]

    return read


@pytest.fixture(scope="session")
def golden_weights():
    """Official names to arrays, the weights of the reference run."""
    text = (GOLDEN / "vfnet_r50_state.json").read_text(encoding="utf-8")
    return make_weights.generate(json.loads(text))


@pytest.fixture(scope="session")
def golden_detector(golden_weights):
    """VFNet-ResNet-50 with 80 classes and `golden_weights`; do not change it."""
    detector = VFNet(ResNet(depth=50), FPN(), VFNetHead(num_classes=80))
    return load_pytorch_checkpoint(detector, golden_weights)


@pytest.fixture(scope="session")
def golden_outputs(golden, golden_detector):
    """Maps by level and head outputs for the image of the forward goldens."""
    seed = int(golden("vfnet_r50_outputs")["image_seed"])

    def forward(image):
        backbone = golden_detector.backbone(image, training=False)
        neck = golden_detector.neck(backbone)
        return {"backbone": backbone, "neck": neck, **golden_detector.head(neck)}

    return evaluate(forward, make_weights.make_image(seed, 1, 256, 320))


@pytest.fixture(scope="session")
def check_golden_map(golden, golden_outputs):
    """Compares a map of `golden_outputs` with its recorded values."""

    def check(part, level, recorded_as):
        key = f"{recorded_as}/{level}" if recorded_as else level
        found = golden_outputs[part][level]
        assert_recorded_map(found, golden("vfnet_r50_outputs"), key)

    return check


def tiny_model(name="tiny"):
    """A functional model with maps of 8, 16 and 32 pixels per cell."""
    inputs = keras.Input((None, None, 3))
    c3 = keras.layers.Conv2D(8, 8, 8, "same", activation="relu", name="c3")(inputs)
    c4 = keras.layers.Conv2D(12, 3, 2, "same", activation="relu", name="c4")(c3)
    c4 = keras.layers.BatchNormalization(name="c4_bn")(c4)
    c5 = keras.layers.Conv2D(16, 3, 2, "same", activation="relu", name="c5")(c4)
    return keras.Model(inputs, c5, name=name)


def _head(kind, settings, **switches):
    return kind(settings.pop("num_classes", 3), 32, 1, name="head", **switches)


def _neck_from_input(**switches):
    switches = {"extra_from": "input", "relu_before_extra": False, **switches}
    return FPN(32, name="fpn", **switches)


def _fcos(settings):
    head = _head(DenseHead, settings, centerness="box", level_scales=True)
    return FCOS, FPN(32, name="fpn"), head, settings


def _atss(settings):
    own = {
        "assigner": ATSSAssigner(),
        "box_coder": DeltaCoder((0.1, 0.1, 0.2, 0.2), anchor_scale=8),
        "point_offset": 0.0,
        "min_positives": 1,
    }
    return _fcos({**own, **settings})


def _retinanet(settings):
    head = _head(DenseHead, settings, norm=None, anchors_per_cell=9)
    return RetinaNet, _neck_from_input(), head, settings


def _foveabox(settings):
    head = _head(DenseHead, settings, norm=None)
    return FoveaBox, _neck_from_input(), head, settings


def _reppoints(settings):
    neck = _neck_from_input(norm="group_norm")
    return RepPoints, neck, _head(RepPointsHead, settings), settings


def _vfnet(settings, **switches):
    head = _head(VFNetHead, settings, **switches)
    return VFNet, FPN(32, name="fpn"), head, settings


#: Kind -> function from settings to class, neck, head and settings of a detector.
SMALL = {
    "vfnet": _vfnet,
    "vfnet_raw": lambda settings: _vfnet(settings, star=False, refine=False),
    "fcos": _fcos,
    "atss": _atss,
    "retinanet": _retinanet,
    "foveabox": _foveabox,
    "reppoints": _reppoints,
}


def build_small(kind, **settings):
    """A detector of 32 channels and 3 classes or `num_classes`, always the same weights."""
    keras.utils.set_random_seed(7)
    backbone = KerasBackbone(tiny_model(), ("c3", "c4_bn", "c5"))
    cls, neck, head, settings = SMALL[kind](settings)
    return cls(backbone, neck, head, **settings)


def build_two_levels(num_classes=3, **switches):
    """A VFNet of two levels, which is traced quickly."""
    levels = {"levels": ("P3", "P4"), "strides": (8, 16), "distance_units": (64, 128)}
    return VFNet(
        KerasBackbone(tiny_model(), ("c3", "c4_bn", "c5")),
        FPN(32, ("C3", "C4"), levels["levels"], name="fpn"),
        VFNetHead(num_classes, 32, 1, **levels, **switches, name="head"),
    )


@pytest.fixture
def small_detector():
    """Builds a small VFNet, or another kind of `SMALL`."""

    def build(kind="vfnet", **settings):
        return build_small(kind, **settings)

    return build


@pytest.fixture
def small_batch():
    """A batch of the pipeline: two images of 64 x 96, with two boxes and one."""
    images = make_weights.make_image(3, 2, 64, 96)
    boxes = np.zeros((2, 2, 4), "float32")
    boxes[0] = [[4, 6, 40, 50], [50, 10, 90, 60]]
    boxes[1, 0] = [20, 8, 60, 40]
    return {
        "images": images,
        "boxes": boxes,
        "labels": np.array([[0, 2], [1, -1]], "int32"),
        "image_size": np.array([[64, 96], [60, 90]], "float32"),
        "scale": np.ones((2, 2), "float32"),
        "image_id": np.array([11, 12]),
    }
