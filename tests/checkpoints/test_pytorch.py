import pickle
import sys

import numpy as np
import pytest

from tests.contracts import to_numpy
from vfnet_tf.backbones import ResNet
from vfnet_tf.checkpoints.names import official_variables
from vfnet_tf.checkpoints.pytorch import load_pytorch_checkpoint, to_keras_layout
from vfnet_tf.detectors import VFNet
from vfnet_tf.heads import VFNetHead
from vfnet_tf.necks import FPN


@pytest.fixture(scope="module")
def detector():
    return VFNet(ResNet(18), FPN(32), VFNetHead(3, 32, 1))


@pytest.fixture
def checkpoint(detector):
    """Tensors in PyTorch's layout that are not what the detector has."""
    rng = np.random.default_rng(0)
    tensors = {}
    for name, variable in official_variables(detector).items():
        shape = tuple(variable.shape)
        if len(shape) == 4:
            shape = (shape[3], shape[2], shape[0], shape[1])
        tensors[name] = rng.normal(size=shape).astype("float32")
    return tensors


def assert_loaded(detector, checkpoint):
    for name, variable in official_variables(detector).items():
        np.testing.assert_array_equal(
            to_numpy(variable), to_keras_layout(checkpoint[name])
        )


def test_kernels_are_turned_round_and_others_kept():
    kernel = np.arange(24).reshape(4, 3, 2, 1)
    turned = to_keras_layout(kernel)
    assert turned.shape == (2, 1, 3, 4)
    assert turned[1, 0, 2, 3] == kernel[3, 2, 1, 0]
    np.testing.assert_array_equal(to_keras_layout(np.arange(3)), [0, 1, 2])


def test_a_mapping_is_loaded_whole(detector, checkpoint):
    assert load_pytorch_checkpoint(detector, checkpoint) is detector
    assert_loaded(detector, checkpoint)


def test_a_state_dict_with_batch_counters_is_loaded(detector, checkpoint):
    counted = {**checkpoint, "backbone.bn1.num_batches_tracked": np.array(3)}
    load_pytorch_checkpoint(detector, {"state_dict": counted, "meta": {"epoch": 12}})
    assert_loaded(detector, checkpoint)


def test_all_problems_are_listed_and_nothing_is_loaded(detector, checkpoint):
    before = to_numpy(detector.variables)
    del checkpoint["bbox_head.vfnet_cls.bias"]
    del checkpoint["neck.fpn_convs.0.conv.weight"]
    checkpoint["bbox_head.atss_centerness.weight"] = np.zeros(3)
    checkpoint["backbone.conv1.weight"] = np.zeros((64, 3, 3, 3))
    with pytest.raises(ValueError) as error:
        load_pytorch_checkpoint(detector, checkpoint)
    message = str(error.value)
    assert "4 problems" in message and "nothing was loaded" in message
    assert "missing: bbox_head.vfnet_cls.bias" in message
    assert "missing: neck.fpn_convs.0.conv.weight" in message
    assert "not in the model: bbox_head.atss_centerness.weight" in message
    assert "backbone.conv1.weight is (3, 3, 3, 64)" in message
    assert "(7, 7, 3, 64)" in message
    for old, new in zip(before, detector.variables, strict=True):
        np.testing.assert_array_equal(old, to_numpy(new))


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_pth_file_is_read(tmp_path, detector, checkpoint, wrapped):
    torch = pytest.importorskip("torch")
    tensors = {name: torch.tensor(value) for name, value in checkpoint.items()}
    tensors["backbone.bn1.num_batches_tracked"] = torch.tensor(7)
    saved = {"meta": {"epoch": 12}, "state_dict": tensors} if wrapped else tensors
    torch.save(saved, tmp_path / "model.pth")
    load_pytorch_checkpoint(detector, tmp_path / "model.pth")
    assert_loaded(detector, checkpoint)


class Malicious:
    def __reduce__(self):
        return (exec, ("import sys; sys.was_executed = True",))


def test_a_pth_file_cannot_run_code(tmp_path, detector):
    torch = pytest.importorskip("torch")
    torch.save({"state_dict": Malicious()}, tmp_path / "model.pth")
    with pytest.raises(pickle.UnpicklingError):
        load_pytorch_checkpoint(detector, str(tmp_path / "model.pth"))
    assert not hasattr(sys, "was_executed")


def test_without_pytorch_the_message_says_what_to_install(monkeypatch, detector):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"vfnet_tf\[torch\]"):
        load_pytorch_checkpoint(detector, "model.pth")


def test_other_things_than_checkpoints_are_refused(detector):
    with pytest.raises(ValueError, match="Received: list"):
        load_pytorch_checkpoint(detector, [1, 2])
