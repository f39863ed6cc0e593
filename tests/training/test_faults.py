"""Kill -9, and the same command again, in processes of their own."""

import csv
import os
import pathlib
import signal
import subprocess
import sys

import h5py
import keras
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="the trainer is TensorFlow's"
)


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "tests.training.killed_run", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def end(process):
    """What it printed and its exit status; it is killed if it does not end."""
    try:
        output, _ = process.communicate(timeout=240)
    finally:
        process.kill()
    return output, process.returncode


def arrays_of(path):
    """Everything in an HDF5 file, by path."""
    found = {}

    def visit(name, item):
        if isinstance(item, h5py.Dataset):
            found[name] = item[()]

    with h5py.File(path, "r") as file:
        file.visititems(visit)
        return found, file.attrs["vfnet_tf_training_state"]


def rows_of(path):
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def test_a_run_killed_three_times_ends_with_the_same_bits(tmp_path):
    from vfnet_tf.data.synthetic import make_synthetic_dataset

    data = make_synthetic_dataset(tmp_path / "set", 8, 4, image_size=(96, 128))
    straight = start(data, tmp_path / "straight")
    run_dir = tmp_path / "killed"
    # Four steps an epoch: within the first, while the fifth is saved, and at the end of
    # the second, before its state is.
    for kill, resumed in (
        (("step", 3), None),
        (("save", 5), "after epoch 0 of 3 and 2 of 4 steps"),
        (("step", 8), "after epoch 1 of 3"),
    ):
        output, status = end(start(data, run_dir, *kill))
        assert status == -signal.SIGKILL, output
        assert resumed is None or f"resuming {resumed}" in output
    output, status = end(start(data, run_dir))
    assert status == 0, output
    assert "resuming after epoch 1 of 3 and 3 of 4 steps" in output
    output, status = end(straight)
    assert status == 0, output

    found, state = arrays_of(run_dir / "last.weights.h5")
    expected, expected_state = arrays_of(tmp_path / "straight" / "last.weights.h5")
    assert state == expected_state
    assert found.keys() == expected.keys()
    assert any(name.startswith("optimizer") for name in found)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    histories = [
        rows_of(tmp_path / name / "history.csv") for name in ("killed", "straight")
    ]
    assert histories[0] == histories[1]
    assert len(histories[0]) == 3
