import io
import json
import os
import struct
import zlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tests import tiny_run
from vfnet_tf import config as configs
from vfnet_tf.data.normalization import CAFFE_BGR, TORCHVISION
from vfnet_tf.export import saved_model
from vfnet_tf.export.saved_model import export_saved_model, read_metadata

KEYS = {
    "detection_boxes",
    "detection_scores",
    "detection_classes",
    "num_detections",
}


def encode(pixels, kind="PNG"):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def detect_here(detector, pixels, image_size=(128, 160)):
    """`detector.detect` on one image, prepared in numpy where no resize is needed."""
    height, width = pixels.shape[:2]
    factor = min(
        max(image_size) / max(height, width), min(image_size) / min(height, width)
    )
    if factor != 1:
        raise ValueError(
            f"the test takes images as they are. Received: {height}x{width}"
        )
    canvas = np.zeros((1, -(-height // 32) * 32, -(-width // 32) * 32, 3), "float32")
    canvas[0, :height, :width] = TORCHVISION(pixels)
    found = detector.detect(canvas, np.array([[height, width]], "float32"))
    return {name: np.asarray(value)[0] for name, value in found.items()}


def test_signatures_take_and_give_what_is_promised(loaded):
    serving = loaded.signatures["serving_default"]
    (image_bytes,) = serving.structured_input_signature[1].values()
    assert (image_bytes.dtype, image_bytes.shape.as_list()) == (tf.string, [None])
    (images,) = loaded.signatures["serve_tensor"].structured_input_signature[1].values()
    assert (images.dtype, images.shape.as_list()) == (tf.uint8, [None, None, None, 3])
    for name in ("serving_default", "serve_tensor"):
        outputs = loaded.signatures[name].structured_outputs
        assert set(outputs) == KEYS
        assert outputs["detection_boxes"].shape.as_list() == [None, 100, 4]
        assert outputs["detection_boxes"].dtype == tf.float32
        assert outputs["detection_scores"].dtype == tf.float32
        assert outputs["detection_classes"].dtype == tf.int32
        assert outputs["num_detections"].dtype == tf.int32


def test_the_description_names_dtypes_and_sizes_without_loading(exported):
    text = saved_model.describe_signatures(exported)
    assert "serving_default(image_bytes: string [?])" in text
    assert "serve_tensor(images: uint8 [?, ?, ?, 3])" in text
    assert "raw(images: float32 [?, ?, ?, 3])" in text
    assert "detection_boxes    float32 [?, 100, 4]" in text
    assert "__saved_model_init_op" not in text


@pytest.mark.parametrize("height, width", [(128, 160), (160, 100)])
def test_bytes_and_pixels_give_what_detect_gives(loaded, detector, height, width):
    pixels = tiny_run.picture(8, height, width)
    expected = detect_here(detector, pixels)
    count = expected["num_detections"]
    assert count > 3
    by_signature = {
        "serving_default": {"image_bytes": tf.constant([encode(pixels)])},
        "serve_tensor": {"images": tf.constant(pixels[None])},
    }
    for name, inputs in by_signature.items():
        found = {k: v.numpy()[0] for k, v in loaded.signatures[name](**inputs).items()}
        assert found["num_detections"] == count
        # Graphs that were optimised apart differ in last digits: near ties may swap.
        np.testing.assert_allclose(
            found["detection_scores"], expected["scores"], atol=1e-5
        )
        order = np.lexsort(found["detection_boxes"][:count].round(1).T)
        own_order = np.lexsort(expected["boxes"][:count].round(1).T)
        np.testing.assert_allclose(
            found["detection_boxes"][order], expected["boxes"][own_order], atol=0.2
        )
        assert sorted(found["detection_classes"][:count]) == sorted(
            expected["labels"][:count]
        )
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


def test_soft_nms_is_part_of_the_graph(tmp_path, small_detector, monkeypatch):
    def one_signature(module):
        function = module._signatures()["serve_tensor"]
        return {"serve_tensor": function.get_concrete_function()}

    monkeypatch.setattr(saved_model._ServingModule, "signatures", one_signature)
    settings = {"nms_iou_threshold": 0.3, "max_detections": 20}
    detector = small_detector(nms="soft_linear", **settings)
    bias = detector.head.class_predictor.conv.bias
    bias.assign([-1.0, -2.0, -1.5])
    sizes = {"image_size": (64, 96), "keep_ratio": False}
    directory = export_saved_model(detector, tmp_path / "model", **sizes)
    assert read_metadata(directory)["nms"] == "soft_linear"
    loaded = tf.saved_model.load(str(directory))
    pixels = np.stack([tiny_run.picture(seed, 64, 96) for seed in (8, 9)])
    found = loaded.signatures["serve_tensor"](images=tf.constant(pixels))
    # Overrides, even of the same: nothing is traced once more.
    expected = detector.detect(TORCHVISION(pixels), nms="soft_linear")
    hard = detector.detect(TORCHVISION(pixels), nms="hard")
    counts = expected["num_detections"].numpy()
    assert np.all(counts > 5)
    np.testing.assert_array_equal(found["num_detections"], counts)
    np.testing.assert_allclose(found["detection_scores"], expected["scores"], atol=1e-5)
    assert np.abs(found["detection_scores"] - hard["scores"]).max() > 1e-3


def test_images_of_a_batch_share_the_smallest_canvas_that_holds_them():
    sizes = tf.constant([[128, 90], [100, 160], [33, 40]])
    assert saved_model.common_canvas(sizes).numpy().tolist() == [128, 160]
    assert saved_model.common_canvas(sizes[2:]).numpy().tolist() == [64, 64]


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


def test_metadata_say_what_a_client_must_know(exported, loaded, config):
    text = loaded.signatures["metadata"]()["metadata"].numpy().decode()
    metadata = json.loads(text)
    assert metadata == read_metadata(exported)
    assert metadata["class_names"] == ["disc", "square", "star"]
    assert metadata["category_ids"] == [3, 5, 9]
    assert metadata["image_size"] == [128, 160]
    assert metadata["score_threshold"] == 0.05
    assert metadata["nms_iou_threshold"] == 0.6
    assert metadata["max_detections"] == 100
    assert metadata["nms"] == "hard"
    assert metadata["precision"] == "float32"
    assert metadata["normalization"] == TORCHVISION.to_dict()
    assert metadata["versions"]["tensorflow"] == tf.__version__
    assert configs.from_dict(metadata["config"]) == config


def header_of_png(height, width):
    """A PNG that ends after its header, which claims `height` x `width` pixels."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    crc = struct.pack(">I", zlib.crc32(chunk))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + crc


@pytest.mark.parametrize(
    "contents, rule",
    [
        (b"GIF89a" + bytes(40), r"must be JPEG or PNG files.*\[1\].*\[46\]"),
        (b"", r"must be JPEG or PNG files.*\[1\].*\[0\]"),
        (header_of_png(2, 2)[:20], "must be JPEG or PNG files"),
        (header_of_png(20000, 20000), r"1 to \d+ pixels.*\[1\].*\[20000 20000\]"),
        (header_of_png(2**31 + 1, 1), r"1 to \d+ pixels.*\[1\]"),
        (encode(np.zeros((8, 8, 3), "uint8"), "JPEG")[:60], "JPEG"),
    ],
    ids=["gif", "empty", "cut header", "huge", "beyond int32", "cut jpeg"],
)
def test_a_file_that_must_not_be_decoded_is_refused_by_name(loaded, contents, rule):
    good = encode(np.zeros((40, 40, 3), "uint8"))
    batch = tf.constant([good, contents])
    # Often: a decoder that does not wait for the check is first in some calls only.
    for _ in range(20):
        with pytest.raises(tf.errors.InvalidArgumentError, match=rule):
            loaded.signatures["serving_default"](image_bytes=batch)


def test_an_empty_batch_is_refused(loaded):
    with pytest.raises(tf.errors.InvalidArgumentError, match="at least one image"):
        loaded.signatures["serving_default"](image_bytes=tf.constant([], "string"))
    with pytest.raises(tf.errors.InvalidArgumentError, match="at least one image"):
        loaded.signatures["serve_tensor"](images=tf.zeros((0, 64, 64, 3), "uint8"))


def test_the_size_of_a_turned_jpeg_is_that_of_the_upright_image(images):
    size = saved_model.read_size(images[1].read_bytes(), 0, 10**6)
    assert size.numpy().tolist() == [150, 120]


@pytest.fixture
def no_graph(monkeypatch):
    """Writes a text in place of the graph: what is tested lies around it."""
    monkeypatch.setattr(saved_model._ServingModule, "signatures", lambda self: {})

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


def test_an_empty_directory_is_written_to(tmp_path, detector, no_graph):
    export_saved_model(detector, tmp_path)
    assert (tmp_path / "saved_model.pb").read_text() == "first"


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
    """What would be recorded, without a graph."""
    given = dict.fromkeys(
        ("image_size", "keep_ratio", "normalization", "class_names", "category_ids")
        + ("score_threshold", "nms_iou_threshold", "candidates_per_level")
        + ("max_detections", "nms", "soft_nms_sigma", "soft_nms_min_score")
    )
    config = settings.pop("config", None)
    given = {**given, "max_pixels": 10**6, **settings}
    return saved_model._make_metadata(detector, config, given)


def test_arguments_come_before_the_config_and_it_before_defaults(detector, config):
    plain = metadata_of(detector)
    assert (plain["image_size"], plain["class_names"]) == ([800, 1333], [])
    assert plain["config"] is None
    with_config = metadata_of(detector, config=config)
    assert with_config["image_size"] == [128, 160]
    assert with_config["class_names"] == ["disc", "square", "star"]
    chosen = metadata_of(
        detector,
        config=config,
        image_size=(96, 64),
        keep_ratio=False,
        normalization=CAFFE_BGR,
        class_names=("a", "b", "c"),
        category_ids=(1, 2, 3),
        score_threshold=0.0,
        nms_iou_threshold=0.5,
        candidates_per_level=7,
        max_detections=11,
        nms="soft_gaussian",
        soft_nms_sigma=0.3,
        soft_nms_min_score=0.02,
    )
    expected = {
        "image_size": [96, 64],
        "keep_ratio": False,
        "normalization": CAFFE_BGR.to_dict(),
        "class_names": ["a", "b", "c"],
        "category_ids": [1, 2, 3],
        "score_threshold": 0.0,
        "nms_iou_threshold": 0.5,
        "candidates_per_level": 7,
        "max_detections": 11,
        "nms": "soft_gaussian",
        "soft_nms_sigma": 0.3,
        "soft_nms_min_score": 0.02,
        "max_pixels": 10**6,
    }
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
        ({"nms": "softer"}, "`nms` must be one of"),
        ({"normalization": "caffe"}, "must be a Normalization"),
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
