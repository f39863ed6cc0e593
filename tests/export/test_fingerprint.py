import dataclasses
import hashlib
import json

import h5py
import numpy as np

from tests import tiny_run
from tests.conftest import build_small
from vfnet_tf import config as configs
from vfnet_tf.export import fingerprint


def test_the_hash_is_over_names_dtypes_shapes_and_values_by_hand(tmp_path):
    path = tmp_path / "some.weights.h5"
    with h5py.File(path, "w") as file:
        file["b/vars/0"] = np.array([1.5], ">f4")
        file["a/vars/1"] = np.array([[1, 2]], "int32")
        file["optimizer/vars/0"] = np.zeros(3)
        file["a"].attrs["name"] = "auto_7"
    expected = hashlib.sha256(
        b"a/vars/1\0int32[1,2]\0\x01\0\0\0\x02\0\0\0b/vars/0\0float32[1]\0\0\0\xc0\x3f"
    )
    assert fingerprint.file_sha256(path) == expected.hexdigest()


def test_weights_that_are_saved_and_loaded_have_the_same_hash(tmp_path, soft_detector):
    path = tmp_path / "best.weights.h5"
    soft_detector.save_weights(path)
    own = fingerprint.weights_sha256(soft_detector)
    assert own == fingerprint.file_sha256(path)
    # Keras gives its layers other names: `vfnet_1`, ...
    other = build_small("vfnet")
    assert fingerprint.weights_sha256(other) != own
    other.load_weights(path)
    assert fingerprint.weights_sha256(other) == own
    bias = other.head.class_predictor.conv.bias
    bias.assign(np.nextafter(bias.numpy(), np.float32(9)))
    assert fingerprint.weights_sha256(other) != own


def test_a_training_state_has_the_hash_of_its_weights(tmp_path, soft_detector):
    detector = build_small("vfnet")
    own = fingerprint.weights_sha256(detector)
    detector.compile(optimizer="sgd")
    detector.optimizer.build(detector.trainable_variables)
    detector.save_weights(tmp_path / "last.weights.h5")
    assert fingerprint.file_sha256(tmp_path / "last.weights.h5") == own


def test_the_hash_of_a_config_is_that_of_its_fields(tmp_path):
    config = tiny_run.tiny_config()
    own = fingerprint.config_sha256(config)
    # Reading converts whole numbers in float fields.
    configs.save_config(config, tmp_path / "config.json")
    read = configs.load_config(tmp_path / "config.json")
    assert fingerprint.config_sha256(read) == own
    text = json.dumps(
        fingerprint.config_fields(config), sort_keys=True, separators=(",", ":")
    )
    assert hashlib.sha256(text.encode()).hexdigest() == own
    other = dataclasses.replace(config, name="ä")
    assert fingerprint.config_sha256(other) != fingerprint.config_sha256(config)
