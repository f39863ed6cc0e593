"""Kill -9 or SIGTERM, and the same command again, in processes of their own."""

import csv
import itertools
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest

from tests.contracts import assert_same_bits
from tests.loopback import (
    free_ports,
    jax_variables,
    process_variables,
    worker_variables,
)
from tests.training.killed_run import SAID
from tests.training.tiny_training import arrays_of
from vfnet_tf.training.preemption import EXIT_STATUS

ROOT = pathlib.Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="the trainer is TensorFlow's"
)


def start(*arguments, **variables):
    return subprocess.Popen(
        [sys.executable, "-m", "tests.training.killed_run", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def end(process):
    """The output and exit status of a process, which is killed if it does not end."""
    try:
        output, _ = process.communicate(timeout=600)
    finally:
        process.kill()
    return output, process.returncode


def rows_of(path):
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    from vfnet_tf.data.synthetic import make_synthetic_dataset

    folder = tmp_path_factory.mktemp("set")
    return make_synthetic_dataset(folder, 8, 4, image_size=(96, 128))


@pytest.fixture(scope="module")
def straight(data, tmp_path_factory):
    """A function that waits for an undisturbed run on one device."""
    run_dir = tmp_path_factory.mktemp("straight")
    process = start(data, run_dir)
    ended = []

    def wait():
        if not ended:
            ended.append(end(process))
        output, status = ended[0]
        assert status == 0, output
        return run_dir

    yield wait
    process.kill()


def test_a_run_killed_three_times_ends_with_the_same_bits(data, straight, tmp_path):
    run_dir, temporary = tmp_path / "killed", tmp_path / "temporary"
    temporary.mkdir()
    # Four steps an epoch: within the first, while the fifth is saved, and at the end of
    # the second, before its state is.
    for kill, resumed in (
        (("step", 3), None),
        (("save", 5), "after epoch 0 of 3 and 2 of 4 steps"),
        (("step", 8), "after epoch 1 of 3"),
    ):
        output, status = end(start(data, run_dir, *kill, TMPDIR=str(temporary)))
        assert status == -signal.SIGKILL, output
        assert resumed is None or f"resuming {resumed}" in output
        # AutoGraph's files, which a kill would leave behind.
        assert list(temporary.iterdir()) == []
    output, status = end(start(data, run_dir))
    assert status == 0, output
    assert "resuming after epoch 1 of 3 and 3 of 4 steps" in output
    assert_same_files(run_dir, straight())


# The slow ones kill twenty times.
@pytest.mark.parametrize(
    ("seed", "kills"),
    [(0, 3), *(pytest.param(n, 5, marks=pytest.mark.slow) for n in range(1, 5))],
)
def test_a_run_killed_at_random_moments_ends_with_the_same_bits(
    data, straight, tmp_path, seed, kills
):
    rng = random.Random(seed)
    for step in sorted(rng.randint(1, 11) for _ in range(kills)):
        process = start(data, tmp_path, "say", step)
        before = list(itertools.takewhile(f"{SAID}\n".__ne__, process.stdout))
        # Time for a state, some steps and perhaps an evaluation.
        time.sleep(rng.uniform(0.0, 0.5))
        process.kill()
        output, status = end(process)
        assert status == -signal.SIGKILL, (before, output)
    output, status = end(start(data, tmp_path))
    assert status == 0, output
    assert_same_files(tmp_path, straight())


def test_a_second_process_is_refused_and_the_first_one_goes_on(
    data, straight, tmp_path
):
    first = start(data, tmp_path, "say", 3)
    before = list(itertools.takewhile(f"{SAID}\n".__ne__, first.stdout))
    # It would end before the other one has started.
    first.send_signal(signal.SIGSTOP)
    try:
        files = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
        output, status = end(start(data, tmp_path))
        assert status == 1, (before, output)
        said = f"Process {first.pid} on .* trains in this run directory.*{tmp_path}"
        assert re.search(said, output), output
        assert files == {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    finally:
        first.send_signal(signal.SIGCONT)
    output, status = end(first)
    assert status == 0, output
    assert_same_files(tmp_path, straight())


def assert_same_files(run_dir, straight):
    """Two runs have the same weights, bit by bit, history and metrics."""
    found, state = arrays_of(run_dir / "last.weights.h5")
    expected, expected_state = arrays_of(straight / "last.weights.h5")
    assert state == expected_state
    assert any(name.startswith("optimizer") for name in found)
    assert_same_bits(found, expected)
    best = [arrays_of(path / "best.weights.h5")[0] for path in (run_dir, straight)]
    assert_same_bits(*best)
    histories = [rows_of(path / "history.csv") for path in (run_dir, straight)]
    assert histories[0] == histories[1]
    assert len(histories[0]) == 3
    metrics = [(path / "metrics.json").read_bytes() for path in (run_dir, straight)]
    assert metrics[0] == metrics[1]
    # What the kills have left behind is gone.
    assert [path.name for path in run_dir.glob(".*")] == []


def end_both(variables_of, data, run_dir, told=None, *when):
    """The outputs and statuses of two processes; `when` happens to number `told`."""
    ports = free_ports(2)
    processes = [
        start(
            data,
            run_dir,
            *(when if index == told else ()),
            **variables_of(index, *ports),
        )
        for index in range(2)
    ]
    try:
        return [end(process) for process in processes]
    finally:
        for process in processes:
            process.kill()


@pytest.mark.slow
def test_workers_stop_together_and_go_on_together_and_then_one_alone(
    data, straight, tmp_path
):
    run_dir = tmp_path / "workers"

    def end_workers(*arguments):
        return end_both(worker_variables, data, run_dir, *arguments)

    # SIGTERM to the one that is not the chief, within the first epoch.
    (chief, status), (other, other_status) = end_workers(1, "term", 2)
    assert (status, other_status) == (EXIT_STATUS, EXIT_STATUS), chief + other
    # The third step carried the news.
    assert "SIGTERM: saved after 3 steps of epoch 1. The same command" in chief
    assert "SIGTERM: stopped. The chief keeps the state" in other

    # Kill -9 to the chief, within the second.
    (chief, status), (other, other_status) = end_workers(0, "step", 7)
    assert status == -signal.SIGKILL, chief
    assert "resuming after epoch 0 of 3 and 3 of 4 steps" in chief
    assert other_status not in (0, EXIT_STATUS, -signal.SIGKILL), other
    assert "Another worker is gone" in other

    # SIGTERM to the chief, in the evaluation after the third.
    (chief, status), (other, other_status) = end_workers(0, "evaluation", 1)
    assert (status, other_status) == (EXIT_STATUS, EXIT_STATUS), chief + other
    assert "resuming after epoch 1 of 3 and 2 of 4 steps" in chief
    assert "SIGTERM: saved after 4 steps of epoch 3" in chief
    assert "SIGTERM: stopped. The chief keeps the state" in other

    output, status = end(start(data, run_dir))
    assert status == 0, output
    assert "resuming after epoch 2 of 3 and 4 of 4 steps" in output
    assert_same_run(run_dir, straight())


@pytest.mark.slow
def test_processes_of_jax_stop_and_go_on_together(data, tmp_path):
    run_dir, straight = tmp_path / "processes", tmp_path / "straight"

    # SIGTERM to the second of them.
    both = end_both(process_variables, data, run_dir, 1, "term", 2)
    (first, status), (second, second_status) = both
    assert (status, second_status) == (EXIT_STATUS, EXIT_STATUS), first + second
    assert "SIGTERM: saved after" in first
    assert "SIGTERM: stopped. The chief keeps the state" in second
    both = end_both(process_variables, data, run_dir)
    (first, status), (second, second_status) = both
    assert (status, second_status) == (0, 0), first + second
    assert "resuming after epoch" in first
    assert "resuming" not in second

    output, status = end(start(data, straight, **jax_variables(2)))
    assert status == 0, output
    assert_same_run(run_dir, straight)
    metrics = [(path / "metrics.json").read_text() for path in (run_dir, straight)]
    assert metrics[0] == metrics[1]
    assert (run_dir / "samples.png").is_file()


def assert_same_run(run_dir, straight):
    """Both end in the same weights and have the same losses, but for roundings."""
    found, state = arrays_of(run_dir / "last.weights.h5")
    expected, expected_state = arrays_of(straight / "last.weights.h5")
    place = json.loads(state)
    assert place["epoch"] == json.loads(expected_state)["epoch"]
    for name, value in expected.items():
        # Two devices add in another order; twelve steps lift the last bits.
        np.testing.assert_allclose(
            found[name], value, rtol=1e-4, atol=1e-6, err_msg=name
        )
    losses = [
        [float(row["loss"]) for row in rows_of(path / "history.csv")]
        for path in (run_dir, straight)
    ]
    np.testing.assert_allclose(*losses, rtol=1e-5)
