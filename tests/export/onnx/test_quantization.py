import numpy as np
import pytest

from tests import tiny_run
from tests.conftest import build_small
from tests.export import onnx_families

pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
onnx = pytest.importorskip("onnx", reason="the extra `onnx` is not installed")

from vfnet_tf.export import best_points  # noqa: E402
from vfnet_tf.export.onnx import model as onnx_model  # noqa: E402
from vfnet_tf.export.onnx import quantization  # noqa: E402
from vfnet_tf.export.onnx.verification import match_strong, verify_onnx  # noqa: E402
from vfnet_tf.inference.onnx import OnnxPredictor, open_session  # noqa: E402

LEVELS = ("P3", "P4", "P5", "P6", "P7")


def convolutions(model, names=None):
    found = (node for node in model.graph.node if node.op_type == "Conv")
    return {node.name for node in found if names is None or node.name in names}


@pytest.fixture(scope="module")
def small():
    """A small VFNet; do not change it."""
    detector = build_small("vfnet")
    onnx_families.disturb(detector)
    return detector


@pytest.fixture(scope="module")
def float32(small):
    """Its graph; do not change it."""
    return onnx_model.build_model(small, {})


@pytest.fixture(scope="module")
def pictures():
    """Normalised float32 `[3, 64, 96, 3]`."""
    values = [tiny_run.picture(seed, 64, 96) for seed in range(3)]
    return (np.asarray(values, "float32") - 118.0) / 58.0


def run(model, images):
    return open_session(model.SerializeToString()).run(None, {"images": images})


def test_last_convolutions_and_those_that_place_points_stay_float32(
    float32, monkeypatch
):
    every = quantization.float32_nodes(float32)
    kept = convolutions(float32, every)
    parts = ("class_predictor", "box_predictor", "refine_predictor")
    stars = ("class_star/sums", "box_star/sums")
    assert kept == {
        f"head/{level}/{part}/Conv" for level in LEVELS for part in (*parts, *stars)
    }
    # A star's distances in cells, before their sums.
    for level in LEVELS:
        assert {f"head/{level}/Div", f"head/{level}/class_star/Min"} <= every
    # The offsets of a deformable backbone, and nothing else of it.
    model = onnx_model.build_model(onnx_families.build("mdconv", monkeypatch), {})
    kept = convolutions(model, quantization.float32_nodes(model))
    of_backbone = {name for name in kept if name.startswith("backbone/")}
    offsets = [
        node
        for node in model.graph.node
        if node.op_type == "Conv" and node.name in of_backbone
    ]
    # One for each deformable convolution; 27 numbers of 3x3 taps.
    assert len(offsets) == 3
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    assert {shapes[node.input[1]][0] for node in offsets} == {27}


def test_nms_in_the_graph_keeps_the_same_convolutions_float32(small, float32):
    metadata = {"score_threshold": 0.05, "nms_iou_threshold": 0.6}
    metadata |= {"candidates_per_level": 100, "max_detections": 10}
    model = onnx_model.build_model(small, metadata, nms_in_graph=True)
    kept = convolutions(model, quantization.float32_nodes(model))
    assert kept == convolutions(float32, quantization.float32_nodes(float32))


def test_convolutions_multiply_int8_and_the_rest_is_as_it_was(float32, pictures):
    feeds = iter([{"images": image[None]} for image in pictures])
    changed = quantization.to_int8(float32, feeds)
    assert next(feeds, None) is None  # each has been asked for
    producers = {name: node for node in changed.graph.node for name in node.output}
    kept = convolutions(float32, quantization.float32_nodes(float32))
    weights = {tensor.name: tensor for tensor in changed.graph.initializer}
    for node in changed.graph.node:
        if node.op_type == "Conv":
            sources = [producers.get(name) for name in node.input[:2]]
            if node.name in kept:
                assert sources[1] is None and node.input[1] in weights
                continue
            assert [source.op_type for source in sources] == ["DequantizeLinear"] * 2
            kernel, scales = (weights[name] for name in sources[1].input[:2])
            assert kernel.data_type == onnx.TensorProto.INT8
            # A scale for each filter, and 7 bits, which no processor saturates at.
            assert list(scales.dims) == [kernel.dims[0]]
            assert np.abs(onnx.numpy_helper.to_array(kernel).astype(int)).max() <= 64
    kinds = [node.op_type for node in changed.graph.node]
    before = [node.op_type for node in float32.graph.node]
    for kind in {"GridSample", "InstanceNormalization", "Exp", "Sigmoid", "Add"}:
        assert kinds.count(kind) == before.count(kind)
    found, expected = run(changed, pictures), run(float32, pictures)
    off = np.abs(found[1] - expected[1]).max()
    assert 0 < off < best_points.TOLERANCES["int8"][1]
    assert changed.producer_name == "vfnet_tf" and not changed.metadata_props


def test_a_calibration_on_other_images_gives_other_numbers(float32, pictures):
    expected, off = run(float32, pictures)[1], []
    # Of images a tenth as bright the steps end where the pictures begin.
    for factor in (0.1, 1.0):
        feeds = ({"images": image[None] * np.float32(factor)} for image in pictures)
        found = run(quantization.to_int8(float32, feeds), pictures)[1]
        off.append(np.abs(found - expected).mean())
    assert off[0] > 3 * off[1]


@pytest.mark.parametrize(
    "family", ["vfnet", "fcos", "retinanet", "reppoints", "mdconv"]
)
def test_float16_has_float32_ends_and_exact_places(family, monkeypatch):
    detector = onnx_families.build(family, monkeypatch)
    model = onnx_model.build_model(detector, {})
    changed = quantization.to_float16(model)
    onnx.checker.check_model(changed, full_check=True)
    for value in (*changed.graph.input, *changed.graph.output):
        assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    kept = quantization.float32_nodes(model)
    kinds = {tensor.name: tensor.data_type for tensor in changed.graph.initializer}
    for node in changed.graph.node:
        if node.op_type == "Conv":
            kind = "FLOAT" if node.name in kept else "FLOAT16"
            assert kinds[node.input[1]] == onnx.TensorProto.DataType.Value(kind)
    images = np.random.default_rng(0).normal(size=(1, 32, 2400, 3)).astype("float32")
    found, expected = run(changed, images), run(model, images)
    # float16 has steps of 2 pixels from 2048 on, so half of the boxes would be off by
    # more than 0.5.
    far = expected[0][..., 0] > 2048
    off = np.abs(found[0] - expected[0])[far]
    assert far.sum() > 50 and np.median(off) < 0.1 and off.max() > 0
    score_off = np.abs(found[1] - expected[1]).max()
    assert 0 < score_off < best_points.TOLERANCES["float16"][1]


@pytest.fixture
def quick(monkeypatch):
    """Leaves out the comparison in float32 and sets the seconds of both files."""
    seconds = [0.5, 0.2]
    monkeypatch.setattr(onnx_model, "compare", lambda *_: {})
    monkeypatch.setattr(quantization, "seconds_of", lambda *_: seconds)
    return seconds


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    tiny_run.write_images(folder)
    return [str(folder / name) for name in ("a.jpg", "b.jpg", "c.png")]


@pytest.mark.parametrize("quantize", ["float16", "int8"])
@pytest.mark.parametrize("nms_in_graph", [False, True])
def test_a_quantised_file_says_so_and_detects(
    quantize, nms_in_graph, small, quick, photos, tmp_path, monkeypatch
):
    path = tmp_path / "model.onnx"
    calibration = photos if quantize == "int8" else ()
    report = onnx_model.export_onnx(
        small,
        path,
        config=tiny_run.tiny_config(),
        nms_in_graph=nms_in_graph,
        quantize=quantize,
        calibration=calibration,
    )
    assert (report["float32_seconds"], report["seconds"]) == (0.5, 0.2)
    assert report["quantized"]["score_difference"] > 0
    exported = OnnxPredictor(path)
    assert exported.detector.metadata["quantize"] == quantize
    assert exported.detector.metadata["has_nms"] is nms_in_graph
    outputs = {output.name for output in exported.detector.session.get_outputs()}
    expected = {"boxes", "scores"}
    if nms_in_graph:
        expected = {f"detection_{name}" for name in ("boxes", "scores", "classes")}
        expected.add("num_detections")
    assert outputs == expected
    assert len(exported(photos[0])) > 3
    if quantize == "float16" and not nms_in_graph:
        found = verify_onnx(path, small, photos)
        assert found["num_detections"] > 10 and 0.5 < found["lowest_iou"] <= 1
        assert 0 < found["score_difference"] < 0.005
        # Not a tolerance that holds: no score is the same.
        monkeypatch.setitem(best_points.TOLERANCES, "float16", (0.0, 0.0))
        with pytest.raises(ValueError, match="quantize='float16' must have partners"):
            verify_onnx(path, small, photos)


def test_a_slower_file_of_int8_is_refused_unless_it_is_for_another_machine(
    small, quick, photos, tmp_path
):
    quick[:] = [0.2, 0.5]
    path = tmp_path / "model.onnx"
    settings = {"config": tiny_run.tiny_config(), "quantize": "int8"}
    settings["calibration"] = photos
    with pytest.raises(
        ValueError,
        match=r"--allow-slower.* 500 ms for an image of 128 x 160, and 200 ms",
    ):
        onnx_model.export_onnx(small, path, **settings)
    assert not list(tmp_path.iterdir())
    onnx_model.export_onnx(small, path, **settings, allow_slower=True)
    assert path.is_file()


def test_float16_may_be_slower(small, quick, tmp_path):
    quick[:] = [0.2, 0.5]
    onnx_model.export_onnx(small, tmp_path / "model.onnx", quantize="float16")
    assert (tmp_path / "model.onnx").is_file()


def test_numbers_that_differ_too_much_are_refused(small, quick, tmp_path, monkeypatch):
    def forget(model):
        for tensor in model.graph.initializer:
            if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) == 4:
                tensor.raw_data = bytes(len(tensor.raw_data))
        return model

    monkeypatch.setattr(quantization, "to_float16", forget)
    with pytest.raises(ValueError, match="ONNX file with quantize='float16' must give"):
        onnx_model.export_onnx(small, tmp_path / "model.onnx", quantize="float16")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quantize": "int4"}, "`quantize` must be one of"),
        ({"quantize": "int8"}, "Received: 0 images with quantize='int8'"),
        (
            {"quantize": "float16", "calibration": ["a.jpg"]},
            "Received: 1 images with quantize='float16'",
        ),
        (
            {"quantize": "int8", "calibration": ["absent.jpg"]},
            "calibration image must be readable. Received: absent.jpg",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    settings, message, small, quick, tmp_path
):
    with pytest.raises(ValueError, match=message):
        onnx_model.export_onnx(small, tmp_path / "model.onnx", **settings)
    assert not list(tmp_path.iterdir())


def test_the_faster_of_two_graphs_has_fewer_seconds(float32):
    images = {"images": np.zeros((1, 320, 320, 3), "float32")}
    slower = onnx.ModelProto()
    slower.CopyFrom(float32)
    name = "images"
    for number in range(200):
        node = onnx.helper.make_node("Erf", [name], [f"slow{number}"])
        slower.graph.node.insert(number, node)
        name = node.output[0]
    slower.graph.node[200].input[0] = name
    models = [each.SerializeToString() for each in (slower, float32)]
    slow, fast = quantization.seconds_of(models, images)
    assert slow > fast > 0


def boxes(*rows):
    """Boxes, scores and labels of (x1, y1, x2, y2, score, label)."""
    rows = np.asarray(rows, "float64").reshape(-1, 6)
    return rows[:, :4].astype("float32"), rows[:, 4], rows[:, 5].astype(int)


def test_partners_of_strong_detections_by_hand():
    found = boxes((0, 0, 10, 10, 0.8, 1), (50, 50, 60, 60, 0.25, 0))
    expected = boxes((0, 0, 10, 8, 0.75, 1), (80, 80, 90, 90, 0.2, 0))
    # The weak ones need no partner; the overlap is 80 of 100.
    count, lowest, largest = match_strong(found, expected, 0.3, 0.1)
    assert count == 1
    np.testing.assert_allclose((lowest, largest), (0.8, 0.05), rtol=1e-5)
    # A partner may itself be weak.
    assert match_strong(found, boxes((0, 0, 10, 10, 0.29, 1)), 0.3, 0.6)[0] == 1
    assert match_strong(boxes(), boxes(), 0.3, 0.1) == (0, 1.0, 0.0)


@pytest.mark.parametrize(
    "other",
    [
        (0, 0, 10, 10, 0.8, 2),  # another class
        (0, 0, 10, 10, 0.6, 1),  # another score
        (0, 0, 10, 5, 0.8, 1),  # half of the box
        None,
    ],
)
def test_a_strong_detection_without_a_partner_is_described(other):
    own, others = boxes((0, 0, 10, 10, 0.8, 1)), boxes(*([other] if other else []))
    text = match_strong(own, others, 0.3, 0.1)
    assert text.startswith("no partner of the file's box [0.0, 0.0, 10.0, 10.0] of")
    text = match_strong(others, own, 0.7, 0.1)
    assert "no partner of the " in text and "score 0.800" in text
