import sys

import numpy as np
import pytest

from vfnet_tf.checkpoints.safetensors_file import read_safetensors, write_safetensors

safetensors = pytest.importorskip("safetensors")


def test_arrays_and_notes_are_read_as_they_were_written(tmp_path):
    arrays = {
        "kernel": np.arange(6, dtype="float32").reshape(2, 3),
        "half": np.ones(2, "float16"),
        "scalar": np.array(7, "int64"),
    }
    path = tmp_path / "model.safetensors"
    write_safetensors(path, arrays, {"classes": '["a"]'})
    found, notes = read_safetensors(path)
    assert notes == {"classes": '["a"]'}
    assert set(found) == set(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
    # No temporary file is left.
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]
    write_safetensors(path, arrays)
    assert read_safetensors(path)[1] == {}


def write_by_hand(path, dtype, data):
    """A file of the tensor `x` `[2]`."""
    entry = f'"dtype":"{dtype}","shape":[2],"data_offsets":[0,{len(data)}]'
    header = f'{{"x":{{{entry}}}}}'.encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return path


def test_bfloat16_becomes_float32_without_pytorch(tmp_path):
    # 1.5 is 0x3FC00000 and -2 0xC0000000 as float32: the upper halves.
    data = np.array([0x3FC0, 0xC000], "<u2").tobytes()
    path = write_by_hand(tmp_path / "model.safetensors", "BF16", data)
    found, _ = read_safetensors(path)
    assert found["x"].dtype == np.float32
    np.testing.assert_array_equal(found["x"], [1.5, -2.0])


def test_a_dtype_without_a_numpy_one_is_named(tmp_path):
    path = write_by_hand(tmp_path / "model.safetensors", "F8_E4M3", b"ab")
    with pytest.raises(ValueError, match="Received: x of dtype F8_E4M3"):
        read_safetensors(path)


@pytest.mark.parametrize("kept", [0, 5, 40, -3])
def test_a_truncated_file_is_an_error_that_names_it(tmp_path, kept):
    path = tmp_path / "model.safetensors"
    write_safetensors(path, {"x": np.ones(100, "float32")})
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"must be whole.*model\.safetensors"):
        read_safetensors(path)


def test_without_the_package_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    for call in (read_safetensors, lambda path: write_safetensors(path, {})):
        with pytest.raises(ImportError, match=r"vfnet_tf\[safetensors\]"):
            call(tmp_path / "model.safetensors")
