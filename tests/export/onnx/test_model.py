import importlib
import json
import sys

import keras
import numpy as np
import pytest

from tests import contracts, tiny_run
from tests.conftest import build_small
from tests.export import onnx_families
from vfnet_tf.builder import build_detector
from vfnet_tf.config import BackboneConfig, Config, ModelConfig

pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
onnx = pytest.importorskip("onnx", reason="the extra `onnx` is not installed")

from vfnet_tf.export import fingerprint  # noqa: E402
from vfnet_tf.export.onnx import layers as onnx_layers  # noqa: E402
from vfnet_tf.export.onnx import model as onnx_model  # noqa: E402
from vfnet_tf.inference.onnx import (  # noqa: E402
    OnnxDetector,
    open_session,
    read_metadata,
)


@pytest.mark.parametrize("family", onnx_families.FAMILIES)
def test_each_family_gives_keras_numbers_in_batches_and_at_odd_sizes(
    family, monkeypatch
):
    detector = onnx_families.build(family, monkeypatch)
    model = onnx_model.build_model(detector, {})
    sizes = ((1, 64, 96), (2, 75, 107), (1, 72, 40))
    report = onnx_model.compare(model.SerializeToString(), detector, sizes)
    # Far below the tolerance; 0 would mean that nothing was compared.
    assert 0 < report["score_difference"] < 2e-5
    assert 0 < report["box_difference"] < 0.03
    assert tuple(report["sizes"]) == sizes


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "vfnet_r50_fpn_1x_coco",
        "vfnet_r50_fpn_mdconv_c3-c5_mstrain_2x_coco",
        "vfnet_x101_32x4d_fpn_mdconv_c3-c5_mstrain_2x_coco",
        "vfnetx_r2_101_fpn_mdconv_c3-c5_mstrain_59e_coco",
        "vfl_retinanet_r50_fpn_4x4_1x_coco",
        "fcos_r50_fpn_gn-head_1x_coco",
        "vfl_atss_r50_fpn_1x_coco",
        "vfl_fovea_r50_fpn_4x4_1x_coco",
        "vfl_reppoints_moment_r50_fpn_gn-neck+head_4x4_1x_coco",
    ],
)
def test_a_published_model_gives_keras_numbers(name):
    detector = build_detector(name)
    onnx_families.disturb(detector)
    model = onnx_model.build_model(detector, {}).SerializeToString()
    report = onnx_model.compare(model, detector, [(2, 128, 160), (1, 107, 203)])
    print(f"{name}: {len(model) / 1e6:.0f} MB, {report}")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ResNet50", "DenseNet121", "MobileNetV2"])
def test_a_backbone_of_keras_applications_gives_keras_numbers(name):
    model = ModelConfig(
        backbone=BackboneConfig(f"keras:{name}"),
        num_classes=3,
        neck_filters=64,
        head_filters=64,
        head_convs=1,
    )
    detector = build_detector(Config(model=model))
    onnx_families.disturb(detector)
    exported = onnx_model.build_model(detector, {}).SerializeToString()
    report = onnx_model.compare(exported, detector)
    # The others drop an odd last row, and Keras fails at 75 x 107.
    is_any = name == "ResNet50"
    assert report["sizes"] == list(onnx_model.CHECKED_SIZES[: 3 if is_any else 2])
    assert 0 < report["score_difference"] < 2e-5


@pytest.fixture
def small():
    """A small VFNet whose backbone has strided "same" convolutions."""
    detector = build_small("vfnet")
    onnx_families.disturb(detector)
    return detector


def test_a_padding_that_is_right_at_the_traced_size_only_is_caught(small):
    # Like a converter that traces 72 x 104, with maps of 9 x 13 and 5 x 7: one cell on
    # each side. At an even size "same" pads below and on the right only.
    model = onnx_model.build_model(small, {})
    changed = 0
    for node in model.graph.node:
        own = {attribute.name: attribute for attribute in node.attribute}
        if "auto_pad" in own and list(own["kernel_shape"].ints) == [3, 3]:
            node.attribute.remove(own["auto_pad"])
            node.attribute.append(onnx.helper.make_attribute("pads", [1, 1, 1, 1]))
            changed += 1
    assert changed == 2
    model = model.SerializeToString()
    onnx_model.compare(model, small, [(2, 72, 104)])
    with pytest.raises(ValueError, match="must give .* for images of 1 x 64 x 96"):
        onnx_model.compare(model, small, [(1, 64, 96)])


def test_other_counts_of_points_and_failures_of_the_runtime_are_named(small):
    other = onnx_model.build_model(build_small("retinanet"), {}).SerializeToString()
    with pytest.raises(ValueError, match="as many points"):
        onnx_model.compare(other, small, [(1, 64, 96)])
    broken = onnx_model.build_model(small, {})
    (resize, *_) = [n for n in broken.graph.node if n.op_type == "Slice"]
    resize.op_type = "Identity"
    del resize.input[1:]
    with pytest.raises(ValueError, match="must run .* 2 x 75 x 107"):
        onnx_model.compare(broken.SerializeToString(), small)


@pytest.fixture(scope="module")
def run():
    """A detector and its config."""
    return tiny_run.shared_detector(), tiny_run.tiny_config()


def test_the_metadata_of_a_file_are_complete(run, tmp_path):
    detector, config = run
    path = tmp_path / "models" / "model.onnx"
    report = onnx_model.export_onnx(
        detector, path, config=config, score_threshold=0.2, max_detections=7
    )
    assert report["num_nodes"] > 300
    assert [file.name for file in path.parent.iterdir()] == ["model.onnx"]
    session = open_session(path)
    metadata = read_metadata(session)
    expected = {
        "class_names": ["disc", "square", "star"],
        "category_ids": [3, 5, 9],
        "image_size": [128, 160],
        "keep_ratio": True,
        "canvas_multiple": 32,
        "score_threshold": 0.2,
        "nms_iou_threshold": 0.6,
        "max_detections": 7,
        "has_nms": False,
        "strides": [8, 16, 32, 64, 128],
        "weights_sha256": fingerprint.weights_sha256(detector),
        "config_sha256": fingerprint.config_sha256(config),
    }
    assert {name: metadata[name] for name in expected} == expected
    assert metadata["normalization"]["channel_order"] == "rgb"
    assert metadata["versions"]["keras"] == keras.__version__
    assert metadata["versions"]["opset"] == 18
    # All sizes are dynamic.
    (images,) = session.get_inputs()
    assert images.shape == ["batch", "height", "width", 3]
    assert [(x.name, x.shape) for x in session.get_outputs()] == [
        ("boxes", ["batch", "points", 4]),
        ("scores", ["batch", "points", 3]),
    ]
    # The package onnx reads it without a runtime.
    stored = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert json.loads(stored["class_names"]) == ["disc", "square", "star"]
    assert {x.domain: x.version for x in onnx.load(path).opset_import} == {"": 18}


def test_a_file_is_replaced_only_when_asked_and_only_by_a_good_one(
    small, tmp_path, monkeypatch
):
    path = tmp_path / "model.onnx"
    path.write_text("first")
    with pytest.raises(ValueError, match="`overwrite` must be True"):
        onnx_model.export_onnx(small, path)
    with pytest.raises(ValueError, match=r"must be a file \*.onnx"):
        onnx_model.export_onnx(small, tmp_path / "model.pb")

    def differ(model, detector):
        raise ValueError("numbers differ")

    monkeypatch.setattr(onnx_model, "compare", differ)
    with pytest.raises(ValueError, match="numbers differ"):
        onnx_model.export_onnx(small, path, overwrite=True)
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_layers_and_settings_without_a_converter_are_named(tmp_path):
    class Doubled(keras.layers.Layer):
        def call(self, inputs):
            return 2 * inputs

    inputs = keras.Input((None, None, 3))
    model = keras.Model(inputs, Doubled(name="twice")(inputs))
    graph = onnx_model.Graph()
    images = graph.input("images", "float32", ("batch", 3, "height", "width"))
    with pytest.raises(ValueError, match="Received: twice of the class Doubled"):
        onnx_layers.convert(graph, model, [images])
    soft = build_small("vfnet", nms="soft_linear")
    with pytest.raises(ValueError, match="hard NMS only.*soft_linear"):
        onnx_model.export_onnx(soft, tmp_path / "model.onnx", nms_in_graph=True)
    with pytest.raises(ValueError, match="must be FPN or PAFPN. Received: Identity"):
        onnx_layers.convert_neck(graph, keras.layers.Identity(), {})


@pytest.mark.parametrize("kind", ["vfnet", "atss", "foveabox", "retinanet"])
@pytest.mark.parametrize("nms_in_graph", [False, True])
def test_detections_are_those_of_detect(kind, nms_in_graph, tmp_path, monkeypatch):
    detector = build_small(kind, candidates_per_level=40, max_detections=20)
    onnx_families.disturb(detector)
    # Compared in the tests above.
    monkeypatch.setattr(onnx_model, "compare", lambda *_: {})
    path = tmp_path / "model.onnx"
    onnx_model.export_onnx(
        detector, path, nms_in_graph=nms_in_graph, nms_iou_threshold=0.4
    )
    rng = np.random.default_rng(2)
    images = rng.normal(size=(2, 72, 104, 3)).astype("float32")
    sizes = np.array([[72, 104], [60, 90]], "float32")
    scale = np.array([[1.0, 1.0], [0.5, 2.0]], "float32")
    exported = OnnxDetector(path)
    for changes in ({}, {"score_threshold": 0.35}, {"nms_iou_threshold": 0.9}):
        settings = {"nms_iou_threshold": 0.4, **changes}
        expected = detector.detect(images, sizes, scale, **settings)
        expected = contracts.to_numpy(expected)
        assert expected["num_detections"].min() >= 2
        found = exported.detect(images, sizes, scale, **changes)
        for name in ("labels", "num_detections"):
            np.testing.assert_array_equal(found[name], expected[name])
            assert found[name].dtype == expected[name].dtype
        np.testing.assert_allclose(found["scores"], expected["scores"], atol=1e-5)
        boxes = found["boxes"], expected["boxes"]
        np.testing.assert_allclose(*boxes, rtol=1e-4, atol=1e-3)


def test_padding_and_small_images_leave_fewer_pairs_than_detections(tmp_path):
    detector = build_small("vfnet", num_classes=1)
    path = tmp_path / "model.onnx"
    onnx_model.export_onnx(detector, path, nms_in_graph=True, score_threshold=0.0)
    # 4 x 4, 2 x 2 and three single cells of one class: 23 pairs for 100 places.
    found = OnnxDetector(path).detect(np.ones((1, 32, 32, 3)))
    count = int(found["num_detections"][0])
    assert 0 < count <= 23
    assert found["scores"].shape == (1, 100) and found["boxes"].shape == (1, 100, 4)
    assert not found["scores"][0, count:].any() and found["scores"][0, count - 1] > 0
    assert not found["boxes"][0, count:].any()
    assert set(found["labels"][0, :count]) == {0}
    assert set(found["labels"][0, count:]) == {-1}


def test_without_onnx_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    for name in ("vfnet_tf.export.onnx.graph", "vfnet_tf.export.onnx.model"):
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ImportError, match=r"pip install 'vfnet_tf\[onnx\]'"):
        importlib.import_module("vfnet_tf.export.onnx.model")
