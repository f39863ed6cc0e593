import json
import os
import pathlib
import sys
import types

import numpy as np
import pytest

from tests.conftest import SMALL, build_small
from tests.contracts import to_numpy
from vfnet_tf.backbones import ResNet
from vfnet_tf.checkpoints.names import classifier_name, official_variables
from vfnet_tf.checkpoints.pytorch import (
    load_pytorch_checkpoint,
    read_checkpoint,
    to_pytorch_state_dict,
    write_checkpoint,
)
from vfnet_tf.checkpoints.tensors import (
    pytorch_shape,
    to_keras_layout,
    to_pytorch_layout,
)
from vfnet_tf.detectors import VFNet
from vfnet_tf.heads import VFNetHead
from vfnet_tf.necks import FPN

STATE = pathlib.Path(__file__).parents[1] / "golden" / "vfnet_r50_state.json"
CLASSIFIER = ("bbox_head.vfnet_cls.weight", "bbox_head.vfnet_cls.bias")


@pytest.fixture(scope="module")
def detector():
    return VFNet(ResNet(18), FPN(32), VFNetHead(3, 32, 1))


def random_tensors(detector, seed=0):
    """Random tensors for a detector in PyTorch's layout."""
    rng = np.random.default_rng(seed)
    return {
        name: rng.standard_normal(pytorch_shape(variable), "float32")
        for name, variable in official_variables(detector).items()
    }


@pytest.fixture(scope="module")
def tensors_of_the_module(detector):
    return random_tensors(detector)


@pytest.fixture
def checkpoint(tensors_of_the_module):
    """Official names to arrays; a test may replace some, and not write into them."""
    return dict(tensors_of_the_module)


@pytest.fixture
def unchanged(detector):
    """Checks at the end of the test that the detector has its initial weights."""
    before = to_numpy(detector.variables)
    yield
    for old, new in zip(before, detector.variables, strict=True):
        np.testing.assert_array_equal(old, to_numpy(new))


def assert_loaded(detector, checkpoint):
    for name, variable in official_variables(detector).items():
        np.testing.assert_array_equal(
            to_numpy(variable), to_keras_layout(checkpoint[name])
        )


def of_mmdetection_3(tensors):
    """What it saves beside the weights is left out."""
    mean = np.zeros((3, 1, 1), "float32")
    return {
        "state_dict": {**tensors, "data_preprocessor.mean": mean},
        "ema_state_dict": {"steps": np.array(3), "module.backbone.x": np.zeros(1)},
        "message_hub": {"log_scalars": {}},
        "optimizer": {"state": {0: {"momentum_buffer": np.zeros(3)}}},
        "param_schedulers": [{"last_step": 7}],
        "meta": {"epoch": 12},
    }


WRAPPED = {
    "plain": lambda tensors: tensors,
    "batch counters": lambda tensors: {
        "state_dict": {**tensors, "backbone.bn1.num_batches_tracked": np.array(3)},
        "meta": {"epoch": 12},
    },
    "DataParallel": lambda tensors: {
        "state_dict": {f"module.{name}": tensor for name, tensor in tensors.items()}
    },
    "mmdetection 3": of_mmdetection_3,
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_a_mapping_is_loaded_whole(detector, checkpoint, kind):
    load_pytorch_checkpoint(detector, random_tensors(detector, seed=1))
    assert load_pytorch_checkpoint(detector, WRAPPED[kind](checkpoint)) is detector
    assert_loaded(detector, checkpoint)


@pytest.mark.usefixtures("unchanged")
def test_all_problems_are_listed_and_nothing_is_loaded(detector, checkpoint):
    del checkpoint["bbox_head.vfnet_cls.bias"]
    del checkpoint["neck.fpn_convs.0.conv.weight"]
    checkpoint["bbox_head.atss_centerness.weight"] = np.zeros(3)
    checkpoint["backbone.conv1.weight"] = np.zeros((64, 3, 3, 3))
    checkpoint["backbone.bn1.weight"] = np.zeros(64, "int64")
    checkpoint["backbone.bn1.bias"] = np.array(["a"] * 64)
    with pytest.raises(ValueError) as error:
        load_pytorch_checkpoint(detector, checkpoint)
    message = str(error.value)
    assert "6 problems" in message and "nothing was loaded" in message
    assert "missing: bbox_head.vfnet_cls.bias" in message
    assert "missing: neck.fpn_convs.0.conv.weight" in message
    assert "not in the model: bbox_head.atss_centerness.weight" in message
    assert "backbone.conv1.weight is (3, 3, 3, 64)" in message
    assert "(7, 7, 3, 64)" in message
    assert "dtype: backbone.bn1.weight is int64" in message
    assert "dtype: backbone.bn1.bias is str" in message


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("zipped", [False, True])
def test_a_pth_file_is_read_without_pytorch(
    tmp_path, detector, checkpoint, wrapped, zipped, monkeypatch
):
    torch = pytest.importorskip("torch")
    tensors = {name: torch.tensor(value) for name, value in checkpoint.items()}
    tensors["backbone.bn1.num_batches_tracked"] = torch.tensor(7)
    saved = {"meta": {"epoch": 12}, "state_dict": tensors} if wrapped else tensors
    path = tmp_path / "model.pth"
    # The official files are of 2020: some in the format before zip archives.
    torch.save(saved, path, _use_new_zipfile_serialization=zipped)
    monkeypatch.setitem(sys.modules, "torch", None)
    load_pytorch_checkpoint(detector, tmp_path / "model.pth")
    assert_loaded(detector, checkpoint)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_floats_are_converted(detector, checkpoint, dtype):
    torch = pytest.importorskip("torch")
    tensors = {
        name: torch.tensor(value).to(getattr(torch, dtype))
        for name, value in checkpoint.items()
    }
    load_pytorch_checkpoint(detector, tensors)
    assert_loaded(detector, {name: t.float().numpy() for name, t in tensors.items()})


def test_a_safetensors_file_is_read_without_pytorch(
    tmp_path, detector, checkpoint, monkeypatch
):
    numpy_files = pytest.importorskip("safetensors.numpy")
    path = tmp_path / "model.safetensors"
    numpy_files.save_file(checkpoint, path)
    monkeypatch.setitem(sys.modules, "torch", None)
    load_pytorch_checkpoint(detector, path)
    assert_loaded(detector, checkpoint)
    # Errors name the file.
    checkpoint["backbone.bn1.bias"] = np.zeros(64, "int32")
    numpy_files.save_file(checkpoint, path)
    with pytest.raises(ValueError, match=rf"{path} .*\(1 problem\)"):
        load_pytorch_checkpoint(detector, path)


@pytest.mark.parametrize("version", [2, 3])
def test_the_fields_of_the_averaging_hook_are_read_when_asked_for(
    detector, checkpoint, version
):
    raw = {name: -tensor for name, tensor in checkpoint.items()}
    if version == 2:
        buffers = {f"ema_{name.replace('.', '_')}": t for name, t in raw.items()}
        saved = {"state_dict": {**checkpoint, **buffers}}
    else:
        fields = {f"module.{name}": tensor for name, tensor in raw.items()}
        saved = {
            "state_dict": checkpoint,
            "ema_state_dict": {**fields, "steps": np.array(3)},
        }
    load_pytorch_checkpoint(detector, saved)
    assert_loaded(detector, checkpoint)
    load_pytorch_checkpoint(detector, saved, use_ema_fields=True)
    assert_loaded(detector, raw)


@pytest.mark.usefixtures("unchanged")
def test_fields_of_the_averaging_hook_must_be_there_when_asked_for(
    detector, checkpoint
):
    with pytest.raises(ValueError, match="which has none"):
        load_pytorch_checkpoint(detector, checkpoint, use_ema_fields=True)


@pytest.fixture
def history_buffer(monkeypatch):
    """A class of the name and with the pickled state of mmengine's curves."""
    names = ["mmengine", "mmengine.logging", "mmengine.logging.history_buffer"]
    for name in names:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))

    class HistoryBuffer:
        def __init__(self):
            self._log_history = np.arange(3.0)
            self.last = np.float64(2)
            # The names of methods are pickled as calls of getattr.
            self._statistics_methods = {"min": HistoryBuffer.minimum}

        def minimum(self):
            return self._log_history.min()

    for thing in (HistoryBuffer, HistoryBuffer.minimum):
        thing.__module__ = names[-1]
        thing.__qualname__ = thing.__qualname__.rpartition("<locals>.")[2]
    sys.modules[names[-1]].HistoryBuffer = HistoryBuffer
    return HistoryBuffer


def test_a_training_checkpoint_of_mmdetection_3_is_read_over_its_logs(
    tmp_path, detector, checkpoint, history_buffer, monkeypatch
):
    torch = pytest.importorskip("torch")
    tensors = {name: torch.tensor(value) for name, value in checkpoint.items()}
    saved = {
        "state_dict": tensors,
        "message_hub": {"log_scalars": {"loss": history_buffer()}},
        "meta": {"dataset_meta": {"classes": ("a", "b", "c")}},
    }
    torch.save(saved, tmp_path / "epoch_12.pth")
    for name in [n for n in sys.modules if n.startswith("mmengine")]:
        monkeypatch.delitem(sys.modules, name)
    load_pytorch_checkpoint(detector, tmp_path / "epoch_12.pth")
    assert_loaded(detector, checkpoint)


@pytest.mark.parametrize(
    ("meta", "expected"),
    [
        ({"CLASSES": ("a", "b", "c")}, ("a", "b", "c")),
        ({"CLASSES": "cell"}, ("cell",)),
        ({"dataset_meta": {"classes": ["a", "b"]}}, ("a", "b")),
        ({"dataset_meta": {"CLASSES": ("a",)}}, ("a",)),
        ({"CLASSES": None}, None),
        ({"CLASSES": (1, 2)}, None),
        ("text", None),
        (None, None),
    ],
)
def test_class_names_are_read_from_both_versions(meta, expected):
    saved = {"state_dict": {"a.weight": np.zeros(2)}, "meta": meta}
    assert read_checkpoint(saved).class_names == expected


@pytest.mark.parametrize("skip_classifier", [None, True])
def test_another_number_of_classes_loads_all_but_the_classifier(
    detector, checkpoint, skip_classifier, recwarn
):
    checkpoint[CLASSIFIER[0]] = np.ones((80, 32, 3, 3), "float32")
    checkpoint[CLASSIFIER[1]] = np.ones(80, "float32")
    variables = official_variables(detector)
    before = {name: to_numpy(variables[name]) for name in CLASSIFIER}
    load_pytorch_checkpoint(detector, checkpoint, skip_classifier=skip_classifier)
    for name, variable in variables.items():
        expected = before.get(name)
        if expected is None:
            expected = to_keras_layout(checkpoint[name])
        np.testing.assert_array_equal(to_numpy(variable), expected)
    said = [str(w.message) for w in recwarn if w.category is UserWarning]
    if skip_classifier is None:
        assert len(said) == 1
        assert "of 80 classes, the detector of 3" in said[0]
        assert all(name in said[0] for name in CLASSIFIER)
    else:
        assert said == []


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("skip_classifier", [None, False])
def test_a_classifier_that_differs_otherwise_is_an_error(
    detector, checkpoint, skip_classifier
):
    channels = 32 if skip_classifier is False else 16
    checkpoint[CLASSIFIER[0]] = np.ones((80, channels, 3, 3), "float32")
    checkpoint[CLASSIFIER[1]] = np.ones(80, "float32")
    with pytest.raises(ValueError, match="2 problems"):
        load_pytorch_checkpoint(detector, checkpoint, skip_classifier=skip_classifier)


@pytest.mark.usefixtures("unchanged")
def test_the_error_for_another_config_describes_the_checkpoint(
    detector, golden_weights
):
    with pytest.raises(ValueError) as error:
        load_pytorch_checkpoint(detector, golden_weights)
    lines = str(error.value).splitlines()
    assert "nothing was loaded" in lines[0]
    assert "another detector or config: VFNet (3 tower conv" in lines[1]
    assert "ResNet-50" in lines[1] and "the detector is" in lines[1]
    assert "ResNet-18" in lines[1] and "vfnet_r50_fpn_1x_coco" in lines[1]


@pytest.mark.usefixtures("unchanged")
def test_the_error_for_another_model_says_so(detector):
    tensors = {f"encoder.{i}.weight": np.zeros(3, "float32") for i in range(300)}
    with pytest.raises(ValueError, match="a checkpoint of something else"):
        load_pytorch_checkpoint(detector, tensors)


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (os.system, (f"touch {self.marker}",))


class Hidden(Bomb):
    """The same behind `getattr`, which is allowed in logs."""

    def __reduce__(self):
        return (getattr, (Bomb(self.marker), "real"))


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("kind", [Bomb, Hidden])
@pytest.mark.parametrize("zipped", [False, True])
def test_a_pth_file_cannot_run_code(tmp_path, detector, checkpoint, kind, zipped):
    torch = pytest.importorskip("torch")
    path, marker = tmp_path / "model.pth", tmp_path / "was_here"
    tensors = {name: torch.tensor(value) for name, value in checkpoint.items()}
    saved = {"state_dict": tensors, "meta": kind(marker)}
    torch.save(saved, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"can run code.*model\.pth.*\.system"):
        load_pytorch_checkpoint(detector, str(path))
    assert not marker.exists()
    # An unsafe reader would run the code.
    torch.load(path, weights_only=False)
    assert marker.exists()


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("kept", [0, 300, -1000])
def test_a_truncated_file_is_a_value_error(
    tmp_path, detector, checkpoint, zipped, kept
):
    torch = pytest.importorskip("torch")
    path = tmp_path / "model.pth"
    tensors = {name: torch.tensor(value) for name, value in checkpoint.items()}
    torch.save(tensors, path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"whole checkpoint.*model\.pth.*truncated"):
        load_pytorch_checkpoint(detector, path)


def test_a_file_that_holds_something_else_is_refused(tmp_path, detector):
    torch = pytest.importorskip("torch")
    path = tmp_path / "model.pth"
    path.write_text("<html>not found</html>")
    with pytest.raises(ValueError, match="truncated or something else"):
        load_pytorch_checkpoint(detector, path)
    torch.save([torch.zeros(3)], path)
    with pytest.raises(ValueError, match=r"Received: list in .*model\.pth"):
        load_pytorch_checkpoint(detector, path)
    torch.save({"state_dict": {"epoch": 3}}, path)
    with pytest.raises(ValueError, match=r"model\.pth with 'epoch': int"):
        load_pytorch_checkpoint(detector, path)
    torch.save({"state_dict": {}}, path)
    with pytest.raises(ValueError, match="has none"):
        load_pytorch_checkpoint(detector, path)
    with pytest.raises(ValueError, match="must be an existing file"):
        load_pytorch_checkpoint(detector, tmp_path / "nowhere.pth")
    with pytest.raises(ValueError, match="Received: list"):
        load_pytorch_checkpoint(detector, [1, 2])


def test_without_pytorch_a_pth_file_is_not_written_and_the_message_says_why(
    tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"vfnet_tf\[torch\].*model\.pth"):
        write_checkpoint(tmp_path / "model.pth", {"a": np.zeros(2)})
    assert list(tmp_path.iterdir()) == []


def test_the_state_dict_has_the_official_names_shapes_and_dtypes(
    golden_detector, golden_weights
):
    official = json.loads(STATE.read_text(encoding="utf-8"))
    state = to_pytorch_state_dict(golden_detector)
    assert {n: (list(a.shape), a.dtype.name) for n, a in state.items()} == {
        name: (shape, dtype) for name, shape, dtype in official
    }
    for name, array in golden_weights.items():
        np.testing.assert_array_equal(state[name], array)


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_a_round_trip_keeps_every_bit(tmp_path, detector, checkpoint, ending):
    pytest.importorskip({"pth": "torch"}.get(ending, ending))
    load_pytorch_checkpoint(detector, checkpoint)
    path = tmp_path / f"model.{ending}"
    write_checkpoint(path, to_pytorch_state_dict(detector), ("a", "b", "c"))
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    read = read_checkpoint(path)
    assert read.class_names == ("a", "b", "c")
    assert read.num_classes == 3
    load_pytorch_checkpoint(detector, random_tensors(detector, seed=1))
    load_pytorch_checkpoint(detector, path)
    for name, array in checkpoint.items():
        assert np.asarray(read.tensors[name]).tobytes() == array.tobytes()
    assert_loaded(detector, checkpoint)


def test_pytorch_reads_a_written_file_strictly(tmp_path, detector):
    torch = pytest.importorskip("torch")
    path = tmp_path / "model.pth"
    write_checkpoint(path, to_pytorch_state_dict(detector), ["a", "b", "c"])
    loaded = torch.load(path, weights_only=True)
    assert loaded["meta"] == {"CLASSES": ("a", "b", "c")}
    backbone = {
        name.removeprefix("backbone.bn1."): tensor
        for name, tensor in loaded["state_dict"].items()
        if name.startswith("backbone.bn1.")
    }
    # Strict: exactly the tensors that PyTorch's layer has.
    torch.nn.BatchNorm2d(64).load_state_dict(backbone, strict=True)


def test_another_ending_is_not_written(tmp_path):
    with pytest.raises(ValueError, match=r"end in \.pth or \.safetensors"):
        write_checkpoint(tmp_path / "model.h5", {})


def test_a_keras_backbone_has_no_official_names(small_detector):
    with pytest.raises(ValueError, match="Keras model as backbone has none"):
        to_pytorch_state_dict(small_detector())


def official_state(detector):
    """Tensors of the neck and the head of a small detector, in PyTorch's layout."""
    return {
        name: to_pytorch_layout(to_numpy(variable))
        for name, variable in official_variables(detector).items()
    }


@pytest.mark.parametrize("kind", sorted(set(SMALL) - {"vfnet"}))
def test_checkpoints_of_the_rivals_load_and_those_of_other_classes_in_part(kind):
    detector = build_small(kind)
    state = random_tensors(detector)
    assert read_checkpoint(state).num_classes == 3
    copy = build_small(kind)
    load_pytorch_checkpoint(copy, state)
    for name, array in official_state(copy).items():
        np.testing.assert_array_equal(array, state[name])

    # Five classes; with nine anchors in a cell nine times as many filters.
    classifier = classifier_name(detector)
    for name in [name for name in state if name.startswith(classifier)]:
        shape = (state[name].shape[0] // 3 * 5, *state[name].shape[1:])
        state[name] = np.zeros(shape, "float32")
    assert read_checkpoint(state).num_classes == 5
    fresh = build_small(kind)
    before = official_state(fresh)
    with pytest.raises(ValueError, match="does not fit the detector"):
        load_pytorch_checkpoint(fresh, state, skip_classifier=False)
    with pytest.warns(UserWarning, match=rf"5 classes, .*\({classifier}weight"):
        load_pytorch_checkpoint(fresh, state)
    for name, array in official_state(fresh).items():
        expected = before if name.startswith(classifier) else state
        np.testing.assert_array_equal(array, expected[name])
