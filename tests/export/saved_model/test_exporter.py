import json
import os
import pickle
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import fuzzing, tiny_run
from tests.conftest import build_small
from tests.export import image_bytes as files
from vfnet_tf import config as configs
from vfnet_tf.data.normalization import CAFFE_BGR, TORCHVISION
from vfnet_tf.export import fingerprint
from vfnet_tf.export.onnx.verification import match
from vfnet_tf.export.saved_model import exporter as saved_model
from vfnet_tf.export.saved_model import safe_decoding
from vfnet_tf.export.saved_model.exporter import (
    PART,
    export_saved_model,
    read_metadata,
)

KEYS = {
    "detection_boxes": "float32",
    "detection_scores": "float32",
    "detection_classes": "int32",
    "num_detections": "int32",
    "status": "int32",
}
FROM_BYTES = ("serving_default", "image_bytes", "image_bytes_with_thresholds")
FROM_PIXELS = ("image_tensor", "serve_tensor")


def test_signatures_have_the_documented_inputs_and_outputs(loaded):
    inputs = {
        name: {
            key: (spec.dtype, spec.shape.as_list())
            for key, spec in signature.structured_input_signature[1].items()
        }
        for name, signature in loaded.signatures.items()
    }
    image_bytes = {"image_bytes": (tf.string, [None])}
    images = {"images": (tf.uint8, [None, None, None, 3])}
    assert inputs == {
        "serving_default": image_bytes,
        "image_bytes": image_bytes,
        "image_bytes_with_thresholds": {
            **image_bytes,
            "score_threshold": (tf.float32, [None]),
            "nms_iou_threshold": (tf.float32, [None]),
            "max_detections": (tf.int32, [None]),
        },
        "tf_example": {"examples": (tf.string, [None])},
        "image_tensor": images,
        "serve_tensor": images,
        "raw": {"images": (tf.float32, [None, None, None, 3])},
        "metadata": {"request": (tf.string, [None])},
    }
    for name in (*FROM_BYTES, *FROM_PIXELS, "tf_example"):
        outputs = loaded.signatures[name].structured_outputs
        assert {key: spec.dtype.name for key, spec in outputs.items()} == KEYS
        assert outputs["detection_boxes"].shape.as_list() == [None, 100, 4]


def test_the_network_and_a_signature_with_two_names_are_saved_once(exported):
    # 1.77 MB, of which 0.18 MB are the loops over parts of a batch; 2.4 MB with a network
    # for each signature (TensorFlow 2.21).
    assert (exported / "saved_model.pb").stat().st_size < 1.85e6


def read_signatures(directory):
    """The graph and the signatures as TensorFlow Serving reads them."""
    from tensorflow.core.protobuf import saved_model_pb2

    file = saved_model_pb2.SavedModel()
    file.ParseFromString((directory / "saved_model.pb").read_bytes())
    return file.meta_graphs[0]


def test_the_signature_itself_says_which_thresholds_it_has(exported):
    # TensorFlow Serving uses them for inputs that a gRPC request leaves out.
    signature = read_signatures(exported).signature_def["image_bytes_with_thresholds"]
    defaults = {k: tf.make_ndarray(v).tolist() for k, v in signature.defaults.items()}
    assert defaults == {
        "score_threshold": [pytest.approx(0.05)],
        "nms_iou_threshold": [pytest.approx(0.6)],
        "max_detections": [100],
    }


def test_the_description_names_dtypes_and_sizes_without_loading(exported):
    text = saved_model.describe_signatures(exported)
    assert "serving_default(image_bytes: string [?])" in text
    assert "image_tensor(images: uint8 [?, ?, ?, 3])" in text
    assert "raw(images: float32 [?, ?, ?, 3])" in text
    assert "detection_boxes    float32 [?, 100, 4]" in text
    assert "__saved_model_init_op" not in text


@pytest.mark.parametrize("height, width", [(128, 160), (160, 100)])
def test_bytes_and_pixels_give_the_detections_of_detect(
    loaded, detector, height, width
):
    # Images of this size are not resized, so numpy prepares them.
    pixels = tiny_run.picture(8, height, width)
    canvas = np.zeros((1, height, -(-width // 32) * 32, 3), "float32")
    canvas[0, :, :width] = TORCHVISION(pixels)
    expected = detector.detect(canvas, np.array([[height, width]], "float32"))
    count = int(expected["num_detections"][0])
    assert count > 3
    names = {"boxes": "boxes", "scores": "scores", "labels": "classes"}
    own = [np.asarray(expected[name])[0, :count] for name in names]
    for name, inputs in {
        "serving_default": {"image_bytes": tf.constant([files.encode(pixels)])},
        "serve_tensor": {"images": tf.constant(pixels[None])},
    }.items():
        found = {k: v.numpy()[0] for k, v in loaded.signatures[name](**inputs).items()}
        assert found["num_detections"] == count
        # Graphs round differently, so that nearly equal scores may swap.
        theirs = [found[f"detection_{name}"][:count] for name in names.values()]
        box_difference, score_difference = match(theirs, own)
        assert box_difference <= 0.2 and score_difference <= 1e-5
        assert not found["detection_boxes"][count:].any()
        assert (found["detection_classes"][count:] == -1).all()


def test_boxes_lie_in_the_original_image_upright(loaded, images):
    # b.jpg 200x140, f.jpg 150x120 (stored lying on its side), c.png 64x80.
    contents = [path.read_bytes() for path in images[:3]]
    found = loaded.signatures["serving_default"](image_bytes=tf.constant(contents))
    for boxes, (height, width) in zip(
        found["detection_boxes"].numpy(),
        [(200, 140), (150, 120), (64, 80)],
        strict=True,
    ):
        assert boxes.min() >= 0
        np.testing.assert_allclose(boxes[:, [0, 2]].max(), width, atol=1e-3)
        np.testing.assert_allclose(boxes[:, [1, 3]].max(), height, atol=1e-3)


def call(loaded, signature, contents, **thresholds):
    """Numpy arrays of a signature that takes image files."""
    inputs = {"image_bytes": tf.constant(contents), **thresholds}
    found = loaded.signatures[signature](**inputs)
    return {name: value.numpy() for name, value in found.items()}


def example(contents):
    """A serialized `tf.train.Example`."""
    feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[contents]))
    features = tf.train.Features(feature={"image/encoded": feature})
    return tf.train.Example(features=features).SerializeToString()


def assert_same(found, expected, rows=slice(None)):
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name][rows], value, err_msg=name)


def test_a_refused_file_has_no_detections_and_leaves_the_others_alone(loaded, images):
    good = [path.read_bytes() for path in images[:3]]
    # Undamaged it would enlarge the canvas.
    cut = files.encode(tiny_run.picture(1, 160, 160), "JPEG")[:-500]
    refused = {
        b"": safe_decoding.UNKNOWN_FORMAT,
        files.gif_bomb(): safe_decoding.UNKNOWN_FORMAT,
        files.png(20_000, 20_000): safe_decoding.TOO_LARGE,
        cut: safe_decoding.DAMAGED,
    }
    for alone in ([good[0]], good):
        expected = call(loaded, "serving_default", alone)
        assert expected["num_detections"].min() > 3
        found = call(loaded, "serving_default", [*refused, *alone])
        rows = slice(len(refused), None)
        assert_same(found, expected, rows)
        assert found["status"].tolist() == [*refused.values(), *[0] * len(alone)]
        assert not found["detection_boxes"][: len(refused)].any()
        assert not found["detection_scores"][: len(refused)].any()
        assert (found["detection_classes"][: len(refused)] == -1).all()
        assert not found["num_detections"][: len(refused)].any()
    found = call(loaded, "serving_default", [*refused])
    assert found["status"].tolist() == [*refused.values()]
    assert not found["num_detections"].any()
    # The same with a batch of examples.
    examples = tf.constant([b"no example", example(good[0]), example(cut)])
    found = loaded.signatures["tf_example"](examples=examples)
    assert found["status"].numpy().tolist() == [1, 0, 3]
    expected = call(loaded, "serving_default", good[:1])
    assert_same({k: v.numpy() for k, v in found.items()}, expected, slice(1, 2))


def test_default_thresholds_are_those_of_the_export(loaded, images):
    contents = [path.read_bytes() for path in images[:2]]
    expected = call(loaded, "serving_default", contents)
    for value in ([-1.0], [-1.0, float("nan")]):
        found = call(
            loaded,
            "image_bytes_with_thresholds",
            contents,
            score_threshold=tf.constant(value),
            nms_iou_threshold=tf.constant(value),
            max_detections=tf.constant([-1]),
        )
        assert_same(found, expected)


def test_each_image_may_have_its_own_thresholds(loaded, images):
    contents = [images[4].read_bytes()] * 3 + [b""]
    everything = call(loaded, "serving_default", contents)
    found = call(
        loaded,
        "image_bytes_with_thresholds",
        contents,
        score_threshold=tf.constant([0.3, -1, -1, 0.5]),
        nms_iou_threshold=tf.constant([-1, 0.2, 7, 0.5]),
        max_detections=tf.constant([-1, 400, 4, 5]),
    )
    scores = everything["detection_scores"]
    above = int(np.sum(scores[0] > 0.3))
    count = found["num_detections"]
    assert 0 < above < everything["num_detections"][0]
    assert count[0] == above
    np.testing.assert_array_equal(
        found["detection_boxes"][0, :above], everything["detection_boxes"][0, :above]
    )
    # A low IoU threshold leaves fewer; the limit leaves four.
    assert 0 < count[1] < everything["num_detections"][1]
    assert count[2] == 4
    assert found["detection_boxes"].shape == everything["detection_boxes"].shape
    assert not found["detection_boxes"][2, 4:].any()
    assert (found["detection_classes"][2, 4:] == -1).all()
    assert (count[3], found["status"][3]) == (0, safe_decoding.UNKNOWN_FORMAT)


@pytest.mark.parametrize("kind, nms", [("fcos", "hard"), ("vfnet", "soft_linear")])
def test_thresholds_as_inputs_give_the_detections_of_detect(kind, nms):
    # FCOS has centerness, to which the threshold does not apply.
    detector = build_small(kind, nms=nms, max_detections=15)
    detector.head.class_predictor.conv.bias.assign([-1.0, -2.0, -1.5])
    metadata = metadata_of(detector)
    detect, detect_with_thresholds, _ = saved_model._make_detect(detector, metadata)
    pixels = np.stack([tiny_run.picture(seed, 64, 96) for seed in (8, 9)])
    images = tf.constant(TORCHVISION(pixels))
    inputs = (images, tf.constant([[64.0, 96.0]] * 2), tf.ones((2, 2)))
    scores = detector.ranking(detector(images, training=False))[1]
    # A dozen pairs of the second image have higher scores.
    high = float(np.sort(scores[1], axis=None)[-12])
    thresholds = ([0.05, high], [0.6, 0.3], [15, 15])
    found = detect_with_thresholds(*inputs, *map(tf.constant, thresholds))
    expected = detect(*inputs)
    fewer = detector.detect(images, score_threshold=high, nms_iou_threshold=0.3)
    assert np.min(expected["num_detections"]) > 12
    assert 0 < fewer["num_detections"][1] < 12
    for name in expected:
        np.testing.assert_allclose(found[name][0], expected[name][0], atol=1e-4)
        np.testing.assert_allclose(found[name][1], fewer[name][1], atol=1e-4)


def test_soft_nms_is_part_of_the_graph(soft_exported, soft_detector):
    assert read_metadata(soft_exported)["nms"] == "soft_linear"
    loaded = tf.saved_model.load(str(soft_exported))
    pixels = np.stack([tiny_run.picture(seed, 64, 96) for seed in (8, 9)])
    found = loaded.signatures["serve_tensor"](images=tf.constant(pixels))
    # With overrides, which run without tracing a graph.
    expected = soft_detector.detect(TORCHVISION(pixels), nms="soft_linear")
    hard = soft_detector.detect(TORCHVISION(pixels), nms="hard")
    counts = expected["num_detections"].numpy()
    assert np.all(counts > 5)
    np.testing.assert_array_equal(found["num_detections"], counts)
    np.testing.assert_allclose(found["detection_scores"], expected["scores"], atol=1e-5)
    assert np.abs(found["detection_scores"] - hard["scores"]).max() > 1e-3


def test_a_session_runs_it_as_tensorflow_serving_does(soft_exported):
    contents = [files.encode(tiny_run.picture(8, 64, 96)), files.gif_bomb()]
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        graph = tf.compat.v1.saved_model.load(session, ["serve"], str(soft_exported))
        found = {}
        for name in ("serving_default", "image_bytes_with_thresholds"):
            signature = graph.signature_def[name]
            outputs = {key: info.name for key, info in signature.outputs.items()}
            # Without thresholds those of the export apply.
            feed = {signature.inputs["image_bytes"].name: contents}
            found[name] = session.run(outputs, feed)
    assert found["serving_default"]["status"].tolist() == [0, 1]
    assert found["serving_default"]["num_detections"][0] > 5
    assert_same(found["image_bytes_with_thresholds"], found["serving_default"])


def test_boxes_may_be_those_of_the_object_detection_api(soft_exported):
    # exporter_lib_v2.py of that API: all outputs float32, 1 added to every class.
    metadata = read_metadata(soft_exported)
    assert metadata["box_format"] == "yxyx_normalized"
    loaded = tf.saved_model.load(str(soft_exported))
    outputs = loaded.signatures["serving_default"].structured_outputs
    dtypes = {name: spec.dtype.name for name, spec in outputs.items()}
    assert dtypes == {**dict.fromkeys(KEYS, "float32"), "status": "int32"}
    detections = {
        "boxes": tf.constant([[[10.0, 20, 50, 101], [0, 0, 0, 0]]]),
        "scores": tf.constant([[0.5, 0.0]]),
        "labels": tf.constant([[2, -1]]),
        "num_detections": tf.constant([1]),
    }
    size = tf.constant([[100.0, 200.0]])
    found = saved_model.to_box_format(detections, size, "yxyx_normalized")
    np.testing.assert_allclose(
        found["detection_boxes"], [[[0.2, 0.05, 1.0, 0.25], [0, 0, 0, 0]]]
    )
    assert found["detection_classes"].numpy().tolist() == [[3.0, 1.0]]
    assert found["num_detections"].numpy().tolist() == [1.0]
    found = saved_model.to_box_format(detections, size, "xyxy")
    assert found["detection_boxes"] is detections["boxes"]
    assert found["detection_classes"] is detections["labels"]


def test_images_of_a_batch_share_the_smallest_canvas_that_holds_them():
    metadata = {
        "image_size": [128, 160],
        "keep_ratio": True,
        "normalization": TORCHVISION.to_dict(),
    }
    prepare = saved_model._make_prepare(metadata)
    graph = tf.function(
        lambda contents: safe_decoding.prepare_files(contents, prepare),
        input_signature=[tf.TensorSpec((None,), "string")],
    )
    # Within 128x160 or 160x128; 33x40 becomes 128x155.
    for sizes, canvas in (
        ([(128, 160), (160, 90)], (160, 160)),
        ([(160, 90)], (160, 96)),
        ([(33, 40)], (128, 160)),
    ):
        contents = [files.encode(tiny_run.picture(1, *size)) for size in sizes]
        status, found = graph(tf.constant(contents))
        assert not status.numpy().any()
        assert found["images"].shape == (len(sizes), *canvas, 3)
        np.testing.assert_array_equal(found["original_size"], sizes)


def test_raw_gives_all_points_of_normalised_images_of_any_size(loaded, detector):
    images = TORCHVISION(np.stack([tiny_run.picture(s, 70, 100) for s in (1, 2)]))
    found = loaded.signatures["raw"](images=tf.constant(images))
    expected = detector(images, training=False)
    # 9x13 + 5x7 + 3x4 + 2x2 + 1x1 cells
    assert found["boxes"].shape == (2, 169, 4)
    np.testing.assert_allclose(
        found["boxes"], expected["refined_boxes"], rtol=1e-3, atol=0.01
    )
    scores = keras.ops.sigmoid(expected["class_logits"])
    np.testing.assert_allclose(found["scores"], scores, atol=1e-5)


def test_the_metadata_of_a_saved_model_are_complete(exported, loaded, detector, config):
    # TensorFlow Serving may join requests.
    answer = loaded.signatures["metadata"](request=tf.constant(["", "x"]))
    text, same = (value.decode() for value in answer["metadata"].numpy())
    assert same == text
    metadata = json.loads(text)
    assert metadata == read_metadata(exported)
    expected = {
        "class_names": ["disc", "square", "star"],
        "category_ids": [3, 5, 9],
        "image_size": [128, 160],
        "score_threshold": 0.05,
        "nms_iou_threshold": 0.6,
        "max_detections": 100,
        "nms": "hard",
        "precision": "float32",
        "normalization": TORCHVISION.to_dict(),
        "max_pixels": 50_000_000,
        "max_batch": 32,
        "box_format": "xyxy",
        "weights_sha256": fingerprint.weights_sha256(detector),
        "config_sha256": fingerprint.config_sha256(config),
    }
    assert {name: metadata[name] for name in expected} == expected
    assert metadata["versions"]["tensorflow"] == tf.__version__
    assert metadata["status_codes"]["0"] == "ok" and len(metadata["status_codes"]) == 4
    assert configs.from_dict(metadata["config"]) == config


@pytest.mark.parametrize("count", [0, 33, 100_000])
@pytest.mark.parametrize(
    ("signature", "name"),
    [
        ("serving_default", "image_bytes"),
        ("tf_example", "examples"),
        ("serve_tensor", "images"),
        ("metadata", "request"),
    ],
)
def test_a_batch_that_costs_too_much_is_refused(loaded, signature, name, count):
    empty = tf.fill([count], "")
    batch = tf.zeros((count, 1, 1, 3), "uint8") if name == "images" else empty
    with pytest.raises(
        tf.errors.InvalidArgumentError, match="must have 1 to 32 images"
    ):
        loaded.signatures[signature](**{name: batch})


def test_a_batch_of_several_parts_gives_what_small_batches_give(loaded, images):
    contents = [path.read_bytes() for path in images] * 5 + [b"damaged"]
    assert len(contents) > 3 * PART and len(contents) % PART
    serve = loaded.signatures["serving_default"]
    found = serve(image_bytes=tf.constant(contents))
    few = serve(image_bytes=tf.constant(contents[:5]))
    assert found["status"].numpy().tolist() == [0] * 25 + [1]
    for name, value in found.items():
        for row in range(25):
            np.testing.assert_allclose(
                value[row], few[name][row % 5], rtol=0, atol=1e-3
            )
        assert value.shape[1:] == few[name].shape[1:]
    assert int(found["num_detections"][25]) == 0 and max(found["num_detections"]) > 0


# Run by `python -c`.
_DAMAGED_FILES = """
import pickle, resource, sys
import numpy as np
import tensorflow as tf

directory, requests = sys.argv[1:]
detect = tf.saved_model.load(directory).signatures["serving_default"]


def run(contents):
    return {k: v.numpy() for k, v in detect(image_bytes=tf.constant(contents)).items()}


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


with open(requests, "rb") as file:
    good, bombs, mutants = pickle.load(file)
for _ in range(3):
    run(good * 12)
before = peak()
seen = np.zeros(4, int)
for bomb in bombs:
    found = run([good[0], bomb, good[1]])
    if found["status"][0] or not found["status"][1] or found["status"][2]:
        sys.exit(f"a bomb went through: {found['status']}")
for start in range(0, len(mutants), 50):
    batch = mutants[start : start + 50]
    found = run(batch)
    status = found["status"]
    seen += np.bincount(status, minlength=4)
    if found["num_detections"][status != 0].any():
        sys.exit("detections without an image")
    if not all(np.isfinite(value).all() for value in found.values()):
        sys.exit("numbers that are none")
    if start % 500 == 0:
        kept = [content for content, code in zip(batch, status) if code == 0]
        for name, value in run(kept).items():
            if not np.array_equal(value, found[name][status == 0]):
                sys.exit(f"{name} depends on the refused images")
print(peak() - before, *seen)
"""


@pytest.mark.fuzz
def test_bombs_and_damaged_files_neither_stop_nor_swell_the_process(
    soft_exported, tmp_path
):
    rng = np.random.default_rng(2026)
    pixels = [tiny_run.picture(seed, 24, 32) for seed in range(4)]
    good = [files.encode(image, "JPEG") for image in pixels]
    bombs = [
        files.gif_bomb(),
        files.png(20_000, 20_000, bytes(1_000_000)),
        files.text_bomb(400),
        good[0].replace(b"\x00\x18\x00\x20", b"\xff\xdc\xff\xdc"),  # the size
        rng.bytes(100_000),
    ]
    kinds = [
        *good,
        files.encode(pixels[0], "JPEG", progressive=True),
        files.encode(files.Image.fromarray(pixels[1]).convert("CMYK"), "JPEG"),
        files.encode(files.Image.fromarray(pixels[2]).convert("L"), "JPEG"),
    ]
    count = fuzzing.inputs(2000)
    mutants = [files.mutate(kinds[number % 7], rng) for number in range(count)]
    requests = tmp_path / "requests.pickle"
    requests.write_bytes(pickle.dumps((good, bombs, mutants)))
    process = subprocess.run(
        [sys.executable, "-c", _DAMAGED_FILES, str(soft_exported), str(requests)],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1"},
        capture_output=True,
        text=True,
        timeout=max(600, count / 2),
    )
    assert process.returncode == 0, process.stderr[-1500:]
    grown, ok, unknown, large, damaged = map(int, process.stdout.split())
    assert ok + unknown + large + damaged == count
    assert min(ok, damaged) > count // 5
    # Megabytes. Decoded, the bombs would take 1200, 3000 and 12,000.
    assert grown < 150


@pytest.fixture
def no_graph(monkeypatch):
    """Writes a text instead of the graph, for tests of the files."""
    monkeypatch.setattr(saved_model, "_make_module", lambda *_: (None, {}))

    def save(module, directory, **settings):
        os.makedirs(directory)
        with open(f"{directory}/saved_model.pb", "w") as file:
            file.write(save.content)

    save.content = "first"
    monkeypatch.setattr(tf.saved_model, "save", save)
    return save


def test_a_saved_model_is_replaced_only_when_asked(tmp_path, detector, no_graph):
    target = tmp_path / "deep" / "model"
    assert export_saved_model(detector, target) == target
    with pytest.raises(ValueError, match="`overwrite` must be True"):
        export_saved_model(detector, target)
    no_graph.content = "second"
    export_saved_model(detector, target, overwrite=True)
    assert (target / "saved_model.pb").read_text() == "second"
    assert [path.name for path in target.parent.iterdir()] == ["model"]
    (tmp_path / "empty").mkdir()
    export_saved_model(detector, tmp_path / "empty")
    assert (tmp_path / "empty" / "saved_model.pb").read_text() == "second"


def test_nothing_else_than_a_saved_model_is_ever_overwritten(tmp_path, detector):
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(ValueError, match="never overwritten"):
        export_saved_model(detector, tmp_path, overwrite=True)
    with pytest.raises(ValueError, match="must not be a file"):
        export_saved_model(detector, tmp_path / "thesis.tex", overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "years"


def test_a_failure_leaves_the_old_model_and_nothing_else(
    tmp_path, detector, no_graph, monkeypatch
):
    target = export_saved_model(detector, tmp_path / "model")

    def fail(module, directory, **settings):
        os.makedirs(directory)
        raise OSError("no space left")

    monkeypatch.setattr(tf.saved_model, "save", fail)
    with pytest.raises(OSError, match="no space left"):
        export_saved_model(detector, target, overwrite=True)
    assert (target / "saved_model.pb").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def metadata_of(detector, **settings):
    """The metadata of an export, without a graph."""
    config = settings.pop("config", None)
    return saved_model._make_metadata(detector, config, settings, 10**6, 50, "xyxy")


def test_arguments_come_before_the_config_and_it_before_defaults(detector, config):
    plain = metadata_of(detector)
    assert (plain["image_size"], plain["class_names"]) == ([800, 1333], [])
    assert plain["config"] is None
    with_config = metadata_of(detector, config=config)
    assert with_config["image_size"] == [128, 160]
    assert with_config["class_names"] == ["disc", "square", "star"]
    settings = {
        "image_size": [96, 64],
        "keep_ratio": False,
        "normalization": CAFFE_BGR,
        "class_names": ["a", "b", "c"],
        "category_ids": [1, 2, 3],
        "score_threshold": 0.0,
        "nms_iou_threshold": 0.5,
        "candidates_per_level": 7,
        "max_detections": 11,
        "nms": "soft_gaussian",
        "soft_nms_sigma": 0.3,
        "soft_nms_min_score": 0.02,
    }
    chosen = metadata_of(detector, config=config, **settings)
    expected = {**settings, "normalization": CAFFE_BGR.to_dict(), "max_pixels": 10**6}
    assert {name: chosen[name] for name in expected} == expected


@pytest.mark.parametrize(
    "settings, rule",
    [
        ({"image_size": (160, 128)}, "`image_size` must be"),
        ({"image_size": (128.5, 160)}, "`image_size` must be"),
        ({"image_size": 128}, "`image_size` must be"),
        ({"class_names": ("one",)}, "`class_names` must have one entry per class"),
        ({"category_ids": (1, 2)}, "`category_ids` must have one entry per class"),
        ({"score_threshold": 5}, "`score_threshold` must be in"),
        ({"max_detections": 0}, "`max_detections` must be at least 1"),
        ({"max_pixels": 0}, "`max_pixels` must be at least 1"),
        ({"max_batch": 0}, "`max_batch` must be at least 1"),
        ({"nms": "softer"}, "`nms` must be one of"),
        ({"box_format": "xywh"}, "`box_format` must be one of"),
        ({"normalization": "caffe"}, "must be a Normalization"),
        ({"threshold": 0.5}, r"Received: \['threshold'\]"),
    ],
)
def test_settings_that_do_not_fit_are_refused(detector, settings, rule):
    with pytest.raises(ValueError, match=rule):
        export_saved_model(detector, "nowhere", **settings)


def test_another_backend_is_refused(detector, monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(ValueError, match="KERAS_BACKEND=jax"):
        export_saved_model(detector, "nowhere")


@pytest.mark.slow
def test_a_detector_of_a_mirrored_strategy_is_exported_with_its_settings(
    tmp_path, config
):
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        detector = tiny_run.tiny_detector(config)
    directory = export_saved_model(
        detector,
        tmp_path / "model",
        config=config,
        keep_ratio=False,
        image_size=(64, 96),
        max_detections=5,
    )
    loaded = tf.saved_model.load(str(directory))
    pixels = tiny_run.picture(4, 128, 48)
    found = loaded.signatures["serve_tensor"](images=tf.constant(pixels[None]))
    assert found["detection_boxes"].shape == (1, 5, 4)
    # Stretched to 64x96: scale 0.5 down, 2 across.
    resized = tf.image.resize(pixels, (64, 96), "bilinear")
    images = TORCHVISION(np.round(resized.numpy()))[None]
    expected = detector.detect(images, scale=np.array([[0.5, 2.0]]), max_detections=5)
    np.testing.assert_allclose(found["detection_scores"], expected["scores"], atol=1e-5)
    np.testing.assert_allclose(found["detection_boxes"], expected["boxes"], atol=0.1)
