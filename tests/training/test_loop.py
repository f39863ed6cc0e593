"""One global batch on 1, 2 and 4 replicas, on 2 processes, and on JAX likewise.

Two processes of JAX compile for most of a minute: they are slow tests.
"""

import os
import pathlib
import subprocess
import sys
import time

import keras
import numpy as np
import pytest

from tests.loopback import free_ports
from tests.training.replica_steps import LARGE_ID

if keras.backend.backend() != "tensorflow":
    pytest.skip("tf.distribute needs TensorFlow", allow_module_level=True)

SCRIPT = pathlib.Path(__file__).parent / "replica_steps.py"
WORKERS = ("worker 0", "worker 1")
PROCESSES = ("process 0 of JAX", "process 1 of JAX")
DEVICES = "2 devices of JAX"


def slowly(*ways):
    """The same as parameters of slow tests."""
    return [pytest.param(way, marks=pytest.mark.slow) for way in ways]


CLUSTERS = (*WORKERS, *slowly(*PROCESSES))
ON_JAX = (DEVICES, *slowly(*PROCESSES))
WAYS = ("2 replicas", "4 replicas", DEVICES, *CLUSTERS)


@pytest.fixture(scope="module")
def results(request, tmp_path_factory):
    """The results of each way of `replica_steps.py`, all run at the same time.

    The processes of JAX run only if a test with their name was chosen.
    """
    directory = tmp_path_factory.mktemp("steps")
    ports = free_ports(4)
    # Each way, and the file that it leaves.
    files = {
        "1 replica": "replicas1",
        "2 replicas": "replicas2",
        "4 replicas": "more4",
        "worker 0": "worker0",
        "worker 1": "worker1",
        DEVICES: "jax",
    }
    commands = {
        "replicas": ("mirrored", 1, 2),
        # A process of its own, since TensorFlow would reuse the group of two replicas.
        "more": ("mirrored", 4),
        "jax": ("jax", 2),
        "worker0": ("worker", 0, *ports[:2]),
        "worker1": ("worker", 1, *ports[:2]),
    }
    if any(PROCESSES[0] in item.name for item in request.session.items):
        for index, name in enumerate(PROCESSES):
            files[name] = f"process{index}"
            commands[files[name]] = ("process", index, *ports[2:])
    root = str(SCRIPT.parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "CUDA_VISIBLE_DEVICES": ""}
    # Optimisations take most of JAX's time.
    environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    processes, ended = {}, {}
    try:
        for name, arguments in commands.items():
            command = [sys.executable, SCRIPT, directory / name, *map(str, arguments)]
            with open(directory / f"{name}.log", "w") as log:
                processes[name] = subprocess.Popen(
                    command, env=environment, stdout=log, stderr=subprocess.STDOUT
                )
        # Five or seven processes on two cores, beside another worker's tests.
        deadline = time.monotonic() + 900
        while len(ended) < len(processes) and time.monotonic() < deadline:
            for name, process in processes.items():
                if name not in ended and process.poll() is not None:
                    ended[name] = (process.returncode, time.monotonic())
            time.sleep(0.1)
    finally:
        for process in processes.values():
            process.kill()
            process.wait()
    for name, process in processes.items():
        expected = -9 if name in ("worker1", "process1") else 0
        log = (directory / f"{name}.log").read_text()
        assert process.returncode == expected, f"{name}: {log[-3000:]}"
    found = {"lag": ended["worker0"][1] - ended["worker1"][1]}
    for way, file in files.items():
        with np.load(directory / f"{file}.npz") as arrays:
            found[way] = dict(arrays)
    found["logs"] = {name: (directory / f"{name}.log").read_text() for name in commands}
    return found


def keys(results, kind):
    found = [key for key in results["1 replica"] if key.startswith(f"{kind}/")]
    assert found
    return found


@pytest.mark.parametrize("way", WAYS)
def test_the_losses_of_three_steps_are_those_of_one_replica(results, way):
    one, several = results["1 replica"], results[way]
    names = {key.rpartition("/")[2] for key in keys(results, "logs")}
    assert names >= {"loss", "class_loss", "box_loss"}
    assert len(keys(results, "logs")) == 3 * len(names)
    assert one["logs/0/num_positives"] > 0
    for key in keys(results, "logs"):
        np.testing.assert_allclose(several[key], one[key], rtol=1e-5, err_msg=key)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["gradient", "weight"])
def test_gradients_and_weights_are_those_of_one_replica(results, way, kind):
    # Relative to the largest value of a tensor: single elements are differences of
    # larger sums, whose order is not that of one replica. A tensor below a millionth of
    # the largest one is such a difference as a whole (a level that no box reaches).
    one, several = results["1 replica"], results[way]
    largest = max(np.abs(one[key]).max() for key in keys(results, kind))
    for key in keys(results, kind):
        limit = 1e-5 * max(np.abs(one[key]).max(), 1e-6 * largest)
        np.testing.assert_allclose(several[key], one[key], 0, limit, err_msg=key)


@pytest.mark.parametrize("names", [WORKERS, *slowly(PROCESSES)], ids=str)
def test_both_processes_have_the_same_weights(results, names):
    for key in keys(results, "weight"):
        np.testing.assert_array_equal(*(results[name][key] for name in names))


@pytest.mark.parametrize("way", [*CLUSTERS, DEVICES])
def test_the_description_counts_the_replicas_of_all(results, way):
    assert "2 replicas, batch 4 = 2 x 2" in str(results[way]["description"])
    if way not in WORKERS:
        assert results[way]["devices"] == 2


def test_the_chief_alone_shows_progress(results):
    assert "Epoch 3/3" in results["logs"]["worker0"]
    assert "Epoch" not in results["logs"]["worker1"]
    assert results["worker 1"]["history"] == results["worker 0"]["history"] == 3


@pytest.mark.parametrize("way", [*CLUSTERS, DEVICES])
def test_every_process_sees_the_detections_of_each_image_once(results, way):
    # The eighth is padding, which an evaluator leaves out by its id.
    expected = [[i, i] for i in [*range(7), -1]]
    expected[4][0] = LARGE_ID
    np.testing.assert_allclose(results[way]["evaluated"], expected, rtol=0)


@pytest.mark.parametrize("way", CLUSTERS)
def test_every_process_stops_early_after_the_same_epoch(results, way):
    # The best was the second of them; the values are another process's as well.
    assert results[way]["stopped_after"] == 4


@pytest.mark.parametrize("way", ON_JAX)
def test_devices_of_jax_share_the_images_and_find_what_one_finds(results, way):
    one, found = results[DEVICES], results[way]
    assert (one["whole_on"], found["spread_on"]) == (1, 2)
    assert one["whole/num_detections"].min() > 0
    for name in ("boxes", "scores", "labels", "num_detections"):
        # Boxes of up to 200 pixels; the weights are equal to 1e-5.
        np.testing.assert_allclose(
            found[f"spread/{name}"], one[f"whole/{name}"], 1e-4, 1e-3, err_msg=name
        )


@pytest.mark.parametrize("way", CLUSTERS)
def test_workers_that_differ_are_told_so(results, way):
    message = str(results[way]["refused"])
    assert "share the run directory" in message
    assert "finished_epochs=[0, 1], by worker" in message


@pytest.mark.parametrize("way", [WORKERS[0], *slowly(PROCESSES[0])])
def test_a_killed_process_stops_the_other_within_minutes(results, way):
    message = str(results[way]["lost"])
    assert "Another worker is gone" in message
    assert "same command" in message
    # docs/scaling.md: 10 s without a heartbeat, so less than a minute. Many processes on
    # two cores take longer. Without heartbeats it would be many minutes.
    assert results[way]["seconds"] < 240
    assert results["lag"] < 240  # until TensorFlow's process had ended, too
