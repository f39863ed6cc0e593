import functools
import json
import zipfile

import keras
import numpy as np
import pytest

from tests import tiny_run
from tests.conftest import SMALL, build_small, tiny_model
from vfnet_tf import config as configs
from vfnet_tf.backbones import KerasBackbone
from vfnet_tf.builder import build_detector
from vfnet_tf.detectors import VFNet
from vfnet_tf.export import fingerprint
from vfnet_tf.export.litert import exporter as litert
from vfnet_tf.export.litert.verification import verify_litert
from vfnet_tf.heads import VFNetHead
from vfnet_tf.inference.litert import (
    LiteRTModel,
    LiteRTPredictor,
    fitted_size,
    read_metadata,
)
from vfnet_tf.inference.predictor import Predictor
from vfnet_tf.necks import FPN

interpreter = pytest.importorskip(
    "ai_edge_litert.interpreter", reason="needs ai-edge-litert (extra litert)"
)

SIZE = (64, 96)


def small_images(count=2):
    """Normalised float32 `[count, 64, 96, 3]`."""
    values = [tiny_run.picture(seed, *SIZE) for seed in range(count)]
    return (np.asarray(values, "float32") - 118.0) / 58.0


def spread(detector):
    """Gives a detector scores from 0.1 to 0.9 and boxes like those of trained weights."""
    rng = np.random.default_rng(1)
    for layer in detector._flatten_layers():
        is_class = layer.name == "class_predictor"
        if is_class or layer.name.endswith("_predictor") or layer.name == "conv_offset":
            deviation = 0.3 if is_class else 0.05
            for weight in layer.weights:
                weight.assign(rng.normal(0.0, deviation, weight.shape))
    return detector


def deformable_backbone():
    """ResNet-18 with deformable convolutions, strided ones too."""
    config = configs.override(
        tiny_run.tiny_config(), model__backbone__deformable=("C4", "C5")
    )
    keras.utils.set_random_seed(3)
    return build_detector(config)


def deformable_towers():
    """Without the star, to test the deformable convolution alone."""
    keras.utils.set_random_seed(7)
    head = VFNetHead(3, 32, 1, star=False, refine=False, deformable_towers=True)
    backbone = KerasBackbone(tiny_model(), ("c3", "c4_bn", "c5"))
    return VFNet(backbone, FPN(32), head)


MAKERS = {
    **{kind: functools.partial(build_small, kind) for kind in SMALL},
    "deformable_towers": deformable_towers,
    "deformable_backbone": deformable_backbone,
}
#: The others are made of the same layers as these.
QUICK = ("vfnet", "atss", "reppoints")


def operators(path):
    """Names of the operators in a file."""
    model = interpreter.Interpreter(str(path))
    return {operator["op_name"] for operator in model._get_ops_details()}


@pytest.mark.parametrize(
    "kind",
    [
        kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.slow)
        for kind in MAKERS
    ],
)
def test_a_file_gives_the_boxes_and_scores_of_keras(kind, tmp_path):
    detector = spread(MAKERS[kind]())
    path = litert.export_litert(detector, tmp_path / "m.tflite", image_size=SIZE)
    report = verify_litert(path, detector, small_images())
    assert report["num_images"] == 2
    assert report["box_difference"] <= 1e-4 and report["score_difference"] <= 1e-4
    # Select-TensorFlow operators would be called FlexCropAndResize and so on.
    assert not {name for name in operators(path) if name.startswith("Flex")}
    boxes, scores = LiteRTModel(path)(small_images())
    assert boxes.shape[:2] == scores.shape[:2] and boxes.shape[2] == 4
    assert np.ptp(scores) > 0.2


@pytest.fixture(scope="module")
def trained():
    """A detector with weights like trained ones that converts quickly; do not change it."""
    return spread(build_small("retinanet"))


@pytest.fixture(scope="module")
def written(tmp_path_factory, config, trained):
    """The files of the detector by `quantize`; do not change them."""
    folder = tmp_path_factory.mktemp("litert")
    return {
        quantize: litert.export_litert(
            trained,
            folder / f"{quantize}.tflite",
            image_size=SIZE,
            config=config,
            quantize=quantize,
            score_threshold=0.2,
        )
        for quantize in litert.QUANTIZATIONS
    }


def test_quantised_files_are_smaller_and_near_keras(written, trained):
    sizes = {quantize: path.stat().st_size for quantize, path in written.items()}
    # A fifth of the file are the anchors, which stay float32.
    assert sizes["float16"] < 0.6 * sizes["none"]
    assert sizes["dynamic_int8"] < 0.4 * sizes["none"]
    reports = [
        verify_litert(written[quantize], trained, small_images())
        for quantize in litert.QUANTIZATIONS
    ]
    # Coarser weights differ more.
    none, float16, int8 = (report["score_difference"] for report in reports)
    assert none < float16 < int8


@pytest.mark.parametrize("quantize", litert.QUANTIZATIONS)
def test_a_file_of_other_weights_is_not_verified(written, quantize):
    other = build_small("retinanet")  # as before training
    with pytest.raises(ValueError, match="must give the detector's boxes to"):
        verify_litert(written[quantize], other, small_images(1))


def test_the_metadata_lie_in_the_file_and_beside_it(written, trained, config):
    path = written["float16"]
    metadata = read_metadata(path)
    beside = litert.metadata_path(path)
    assert beside.name == "float16.tflite.json"
    assert json.loads(beside.read_text(encoding="utf-8")) == metadata
    assert metadata["class_names"] == list(tiny_run.CLASS_NAMES)
    assert metadata["category_ids"] == list(tiny_run.CATEGORY_IDS)
    assert metadata["image_size"] == list(SIZE) and metadata["quantize"] == "float16"
    assert metadata["normalization"] == config.data.normalization.to_dict()
    assert metadata["score_threshold"] == 0.2  # given, the others are the detector's
    assert metadata["nms_iou_threshold"] == trained.nms_iou_threshold
    cells = [8 * 12, 4 * 6, 2 * 3, 1 * 2, 1 * 1]
    assert metadata["level_sizes"] == [9 * number for number in cells]
    assert set(metadata["versions"]) == {"vfnet_tf", "keras", "tensorflow"}
    assert configs.from_dict(metadata["config"]) == config
    assert metadata["config_sha256"] == fingerprint.config_sha256(config)
    assert metadata["weights_sha256"] == fingerprint.weights_sha256(trained)


def test_a_file_gives_the_detections_of_the_detector(written, trained):
    # A portrait in a landscape input: resized to fit, padded on the right.
    pixels = tiny_run.picture(1, 150, 120)
    predictor = LiteRTPredictor(written["none"], num_threads=2)
    prepared = predictor.prepare(pixels)
    np.testing.assert_array_equal(prepared["image_size"], [64, 51])
    assert prepared["images"].shape == (*SIZE, 3)
    assert np.all(prepared["images"][:, 51:] == 0)
    expected = trained.detect(
        *(prepared[name][None] for name in ("images", "image_size", "scale")),
        score_threshold=0.2,
    )
    found = predictor(pixels)
    count = int(expected["num_detections"][0])
    assert len(found) == count > 3
    np.testing.assert_array_equal(found.labels, expected["labels"][0, :count])
    np.testing.assert_allclose(found.boxes, expected["boxes"][0, :count], atol=0.05)
    np.testing.assert_allclose(found.scores, expected["scores"][0, :count], atol=1e-4)
    assert set(found.names) <= set(tiny_run.CLASS_NAMES)
    assert len(predictor(pixels, score_threshold=found.scores[3])) == 3


def test_an_image_of_the_right_shape_is_prepared_as_for_the_detector(
    written, config, trained
):
    pixels = tiny_run.picture(2, 128, 192)
    data = configs.override(config, data__image_size=SIZE)
    expected = Predictor(trained, data).prepare(pixels)
    found = LiteRTPredictor(written["none"]).prepare(pixels)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_an_image_fills_the_input_without_being_stretched():
    assert fitted_size((480, 640), (240, 320)) == (240, 320)
    assert fitted_size((640, 480), (240, 320)) == (240, 180)
    assert fitted_size((100, 50), (240, 320)) == (240, 120)  # enlarged
    assert fitted_size((1, 4000), (240, 320)) == (1, 320)  # not to nothing


def test_the_default_size_is_the_canvas_of_the_configs_size():
    config = tiny_run.tiny_config()
    assert litert.default_image_size(config) == (128, 160)
    config = configs.override(config, data__image_size=(800, 1333))
    assert litert.default_image_size(config) == (800, 1344)


def test_images_of_another_size_are_refused(written):
    model = LiteRTModel(written["none"])
    with pytest.raises(ValueError, match=r"\(96, 64, 3\)|\(1, 96, 64, 3\)"):
        model(np.zeros((1, 96, 64, 3), "float32"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": "m.pb"}, r"`path` must be a file \*.tflite"),
        ({"path": "there.tflite"}, "`overwrite` must be True"),
        ({"path": "folder.tflite"}, r"`path` must be a file \*.tflite"),
        ({"image_size": (64,)}, "`image_size` must be"),
        ({"image_size": (64, 0)}, "`image_size` must be"),
        ({"quantize": "int4"}, "`quantize` must be one of"),
        ({"threshold": 0.5}, "The settings are"),
    ],
)
def test_paths_and_settings_that_do_not_fit_are_refused(
    trained, tmp_path, changes, message
):
    (tmp_path / "folder.tflite").mkdir()
    (tmp_path / "there.tflite").write_bytes(b"old")
    arguments = {"path": "m.tflite", "image_size": SIZE, **changes}
    path = tmp_path / arguments.pop("path")
    with pytest.raises(ValueError, match=message):
        litert.export_litert(trained, path, **arguments)
    assert (tmp_path / "there.tflite").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_detector_of_another_precision_is_refused(tmp_path):
    class Half:
        dtype_policy = keras.DTypePolicy("mixed_bfloat16")

    with pytest.raises(ValueError, match="must be of float32"):
        litert.export_litert(Half(), tmp_path / "m.tflite", image_size=SIZE)


def test_a_file_by_others_is_refused(tmp_path):
    path = tmp_path / "other.tflite"
    path.write_bytes(b"TFL3")
    with pytest.raises(ValueError, match="by `export_litert`"):
        read_metadata(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("labels.txt", "cat")
    with pytest.raises(ValueError, match="by `export_litert`"):
        LiteRTModel(path)
    with pytest.raises(ValueError, match="by `export_litert`"):
        read_metadata(tmp_path / "absent.tflite")
