import random
import warnings

import h5py
import numpy as np
import pytest

from tests.fuzzing import inputs
from tests.training.tiny_training import fit, make_model
from vfnet_tf.training.callbacks import ResumableCheckpoint
from vfnet_tf.training.run_state import read_state
from vfnet_tf.weights_file import check_seal, seal


def make_file(path):
    with h5py.File(path, "w") as file:
        file["head/vars/0"] = np.arange(5000, dtype="float32")
        file["head/vars/1"] = np.float32(3.0)
        file["names"] = "a text"
    return path


def test_a_whole_file_passes_and_one_without_a_checksum_too(tmp_path):
    path = make_file(tmp_path / "a.weights.h5")
    check_seal(path)
    seal(path)
    check_seal(path)
    with h5py.File(path, "a") as file:
        file["head/vars/0"][7] = -1.0
    with pytest.raises(ValueError, match=r"damaged: .*a\.weights\.h5 .*checksum"):
        check_seal(path)
    seal(path, again=False)
    with pytest.raises(ValueError, match="checksum"):
        check_seal(path)
    seal(path)
    check_seal(path)


@pytest.mark.parametrize("change", ["another name", "another shape", "one less"])
def test_names_and_shapes_count_too(tmp_path, change):
    path = make_file(tmp_path / "a.weights.h5")
    seal(path)
    with h5py.File(path, "a") as file:
        if change == "another name":
            file.move("head/vars/0", "head/vars/2")
        values = file["head/vars/1"][()]
        del file["head/vars/1"]
        if change != "one less":
            file["head/vars/1"] = values.reshape(
                (1,) if change == "another shape" else ()
            )
    with pytest.raises(ValueError, match="damaged"):
        check_seal(path)


@pytest.mark.fuzz
def test_inverted_bytes_never_go_on_in_silence(tmp_path):
    """Every state with inverted bytes is refused, or holds what was written."""
    path = tmp_path / "last.weights.h5"
    trained = make_model()
    fit(trained, ResumableCheckpoint(tmp_path, monitor="loss", mode="min"), epochs=1)
    written = trained.get_weights()
    whole, state = path.read_bytes(), read_state(path)
    random_ = random.Random(0)
    refused = 0
    count = inputs(300)
    for _ in range(count):
        content = bytearray(whole)
        for _ in range(random_.choice([1, 4, 32])):
            content[random_.randrange(len(content))] ^= 1 << random_.randrange(8)
        path.write_bytes(content)
        model, checkpoint = make_model(), ResumableCheckpoint(tmp_path, keep=1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                at = checkpoint.restore(model)
            except ValueError as error:
                assert "weights.h5" in str(error)
                refused += 1
                continue
        assert at == (state["epoch"], state["step"])
        for new, old in zip(model.get_weights(), written, strict=True):
            np.testing.assert_array_equal(new, old)
    assert refused > count / 10
