"""Damaged files of a run directory and of weights are refused in few words, in time."""

import json
import random
import resource
import time
import warnings

import numpy as np
import pytest

from tests.fuzzing import inputs, mutated
from vfnet_tf.checkpoints.safetensors_file import read_safetensors
from vfnet_tf.config import load_config, save_config
from vfnet_tf.reports.curves import history_columns
from vfnet_tf.training.callbacks import read_history

HISTORY = b"""epoch,step,seconds,learning_rate,loss,val_AP
1,52,161.81,0.0024,2.51,nan
2,104,137.03,0.0024,1.62,0.11
3,156,212.94,0.0021,1.45,0.18
"""


def write_config(path):
    save_config(load_config("vfnet_r50_fpn_1x_coco"), path)


def write_history(path):
    path.write_bytes(HISTORY)


def write_weights(path):
    numpy_files = pytest.importorskip("safetensors.numpy")
    arrays = {f"layer{n}.weight": np.ones((2, n + 1), "float32") for n in range(6)}
    numpy_files.save_file(arrays, path, metadata={"classes": "['a']"})


def read_both_histories(path):
    read_history(path)
    history_columns(path)


@pytest.mark.fuzz
@pytest.mark.parametrize(
    ("name", "write", "read"),
    [
        ("config.json", write_config, load_config),
        ("history.csv", write_history, read_both_histories),
        ("model.safetensors", write_weights, read_safetensors),
    ],
)
def test_a_damaged_file_is_read_or_refused(tmp_path, name, write, read):
    path = tmp_path / name
    write(path)
    read(path)
    whole, rng = path.read_bytes(), random.Random(name)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kB
    refused = 0
    for _ in range(inputs(400)):
        path.write_bytes(mutated(whole, rng))
        start = time.monotonic()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            try:
                read(path)
            except ValueError as error:
                # An error of another class fails the test.
                assert name in str(error) and len(str(error)) < 3000
                refused += 1
        assert time.monotonic() - start < 2.0
    assert refused > 20
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 100 * 2**10


@pytest.mark.parametrize(
    ("header", "size", "said"),
    [
        (b"", 2**60, "header of 1152921504606846976 bytes"),
        (b"[]", None, "must be a JSON object"),
        (b"{" * 4000, None, "property name"),
        (b'{"x": 3}', None, "x"),
        (b'{"x": {"dtype": "F32", "shape": [9], "data_offsets": [0, 4]}}', None, "x"),
        (
            b'{"x": {"dtype": "F32", "shape": [99999999999], "data_offsets": '
            b"[0, 399999999996]}}",
            None,
            "x",
        ),
        (b'{"x": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}', None, "x"),
    ],
)
def test_a_header_that_claims_too_much_is_refused_before_the_file_is_read(
    tmp_path, header, size, said
):
    pytest.importorskip("safetensors")
    path = tmp_path / "model.safetensors"
    size = len(header) if size is None else size
    path.write_bytes(size.to_bytes(8, "little") + header)
    with open(path, "ab") as file:
        file.truncate(2**33)  # sparse: to read all of it would take eight gigabytes
    with pytest.raises(ValueError, match=said) as error:
        read_safetensors(path)
    assert "model.safetensors" in str(error.value)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("data", "normalization", "mean"), [[1.0], 2.0, 3.0]),
        (("data", "normalization", "std"), [1.0, None, 3.0]),
        (("data", "normalization", "mean"), [10**400, 2, 3]),
        (("training", "base_learning_rate"), 10**400),
        (("data", "augment"), [{"name": "JpegQuality", "quality": [10**400, 3]}]),
        (("data", "augment"), [{"name": ["x"]}]),
        (("data", "augment"), [[["x"]]]),
        (("class_names",), [["a"]]),
        (("training", "drop_epochs"), [[1]]),
    ],
)
def test_a_value_of_another_kind_in_a_config_is_named(tmp_path, place, value):
    path = tmp_path / "config.json"
    write_config(path)
    content = json.loads(path.read_text())
    part = content
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"config\.json"):
        load_config(path)
