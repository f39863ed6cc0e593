import json

import keras
import numpy as np
import pytest

from vfnet_tf.training.optimizers import SGD

if keras.backend.backend() != "tensorflow":
    pytest.skip("tf.distribute needs TensorFlow", allow_module_level=True)

import tensorflow as tf

from vfnet_tf.training.strategies import (
    Cluster,
    check_settings,
    cluster_of,
    configured_cluster,
    describe,
    make_strategy,
    read_cluster,
    read_processes,
    shares_of,
)


def test_mirrored_without_gpu_is_one_replica_on_the_cpu():
    if tf.config.list_physical_devices("GPU"):
        pytest.skip("there is a GPU")
    strategy = make_strategy("mirrored")
    assert isinstance(strategy, tf.distribute.MirroredStrategy)
    assert describe(strategy) == "MirroredStrategy on CPU:0: 1 replica"


def test_description_shows_devices_replicas_and_the_share_of_each(two_devices):
    strategy = make_strategy("mirrored", two_devices)
    text = "MirroredStrategy on CPU:0, CPU:1: 2 replicas, batch 8 = 2 x 4"
    assert describe(strategy, batch_size=8) == text
    strategy = make_strategy("one_device", ["/cpu:1"])
    assert isinstance(strategy, tf.distribute.OneDeviceStrategy)
    text = "OneDeviceStrategy on CPU:1: 1 replica, batch 3 = 1 x 3"
    assert describe(strategy, batch_size=3) == text


@pytest.mark.parametrize(
    ("arguments", "received"),
    [
        ({"name": "tpu"}, "name=tpu"),
        ({"devices": []}, r"devices=\[\]"),
        ({"devices": ["CPU:7"]}, "CPU:7"),
        ({"devices": ["CPU:0", "/cpu:0"]}, "CPU:0"),
        ({"name": "data_parallel"}, "name=data_parallel, backend=tensorflow"),
        ({"name": "multi_worker", "devices": ["CPU:0"]}, r"devices=\['CPU:0'\]"),
    ],
)
def test_unknown_names_and_devices_are_refused(arguments, received):
    with pytest.raises(ValueError, match=f"Received: .*{received}"):
        make_strategy(**arguments)


def tf_config(jobs, kind="worker", index=0):
    return json.dumps({"cluster": jobs, "task": {"type": kind, "index": index}})


def test_a_cluster_lists_the_chief_first():
    jobs = {"worker": ["b:1", "c:2"], "chief": ["a:1"]}
    cluster = read_cluster(tf_config(jobs, "worker", 1))
    assert cluster == Cluster(("a:1", "b:1", "c:2"), 2)
    assert not cluster.is_chief
    assert str(cluster) == "worker, 3 of 3: a:1, b:1, c:2"
    assert read_cluster(tf_config(jobs, "chief")).is_chief


def test_without_a_chief_the_first_worker_is_it():
    cluster = read_cluster(tf_config({"worker": ["b:1", "c:2"]}))
    assert cluster.is_chief
    assert str(cluster) == "chief, 1 of 2: b:1, c:2"


MALFORMED = [
    "",
    "{",
    "[]",
    json.dumps({"cluster": {"worker": ["a:1"]}}),
    tf_config({"worker": ["a"]}),
    tf_config({"worker": ["a:99999"]}),
    tf_config({"worker": ["a:1", "a:1"]}),
    tf_config({"worker": ["a:1"]}, index=1),
    tf_config({"worker": ["a:1"]}, kind="chief"),
    tf_config({"worker": ["a:1"], "chief": ["b:1", "c:1"]}),
    tf_config({"worker": ["a:1"], "ps": ["b:1"]}),
    tf_config({"worker": ["a:1"], "evaluator": ["b:1"]}, kind="evaluator"),
]


@pytest.mark.parametrize("text", MALFORMED)
def test_a_cluster_that_makes_no_sense_is_refused_before_it_is_made(text, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(ValueError, match="TF_CONFIG must list the workers.*Received: "):
        make_strategy("multi_worker")


GOOD_PROCESSES = {"JOB_ADDRESSES": "a:1", "NUM_PROCESSES": "2", "PROCESS_ID": "0"}


def set_processes(monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(f"KERAS_DISTRIBUTION_{name}", value)


@pytest.mark.parametrize(
    ("addresses", "expected"),
    [
        ("a:1", ("a:1", "process 1", "process 2")),
        ("a:1,b:2,c:3", ("a:1", "b:2", "c:3")),
    ],
)
def test_processes_of_jax_are_read_from_the_variables_of_keras(
    addresses, expected, monkeypatch
):
    given = {"JOB_ADDRESSES": addresses, "NUM_PROCESSES": "3", "PROCESS_ID": "1"}
    set_processes(monkeypatch, given)
    assert read_processes() == Cluster(expected, 1)
    assert configured_cluster("data_parallel") == Cluster(expected, 1)
    assert configured_cluster("one_device") is None


def test_without_the_variables_jax_has_one_process():
    assert configured_cluster("data_parallel") is None


@pytest.mark.parametrize(
    "change",
    [
        {"JOB_ADDRESSES": "a"},
        {"JOB_ADDRESSES": "1"},
        {"JOB_ADDRESSES": "a:99999"},
        {"JOB_ADDRESSES": "a:1,b:1,c:1"},
        {"NUM_PROCESSES": "two"},
        {"PROCESS_ID": "2"},
        {"PROCESS_ID": "-1"},
    ],
    ids=str,
)
def test_processes_that_make_no_sense_are_refused(change, monkeypatch):
    set_processes(monkeypatch, {**GOOD_PROCESSES, **change})
    with pytest.raises(ValueError, match="JOB_ADDRESSES must hold.*Received: "):
        configured_cluster("data_parallel")


@pytest.mark.parametrize("name", GOOD_PROCESSES)
def test_all_variables_of_the_processes_are_needed(name, monkeypatch):
    rest = {key: value for key, value in GOOD_PROCESSES.items() if key != name}
    set_processes(monkeypatch, rest)
    with pytest.raises(ValueError, match=f"'{name}': None"):
        configured_cluster("data_parallel")


def test_without_a_cluster_one_process_feeds_all(two_devices):
    strategy = make_strategy("mirrored", two_devices)
    assert cluster_of(strategy).is_chief
    assert shares_of(strategy) == {"replicas": range(1), "num_replicas": 1}


REFUSED = [
    {"batch_size": 3},
    {"batch_size": 0},
    {"jit_compile": True},
    {"steps_per_execution": 2},
    {"dtype_policy": "mixed_float16"},
    {"optimizer": SGD(0.1, clipnorm=1.0)},
    {"optimizer": SGD(0.1, global_clipnorm=1.0)},
]


@pytest.mark.parametrize("settings", REFUSED, ids="-".join)
def test_bad_combinations_are_refused_on_two_replicas(settings, two_devices):
    with pytest.raises(ValueError, match="Received: "):
        check_settings(make_strategy("mirrored", two_devices), **settings)


@pytest.mark.parametrize("name", ["one_device", "mirrored"])
def test_one_replica_accepts_them(name):
    strategy = make_strategy(name, ["CPU:0"])
    for settings in REFUSED:
        if settings != {"batch_size": 0}:
            check_settings(strategy, **settings)


def test_good_combinations_are_accepted_on_two_replicas(two_devices):
    check_settings(
        make_strategy("mirrored", two_devices),
        batch_size=4,
        jit_compile="auto",
        dtype_policy="mixed_bfloat16",
        optimizer=SGD(0.1),
    )


def fit_weights(strategy):
    """Trains a line for 6 steps of 4 points; returns its weights."""
    x = np.random.default_rng(0).normal(size=(24, 2)).astype("float32")
    y = x @ np.array([[1.0], [-2.0]], "float32")
    with strategy.scope():
        model = keras.Sequential(
            [keras.Input((2,)), keras.layers.Dense(1, kernel_initializer="ones")]
        )
        optimizer = SGD(0.1, weight_decay=0.01)
        model.compile(optimizer=optimizer, loss="mse", jit_compile=False)
    batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(4)
    model.fit(batches, verbose=0)
    return model.get_weights()


def test_fit_gives_the_same_weights_on_one_device_and_on_two(two_devices):
    expected = fit_weights(make_strategy("one_device"))
    found = fit_weights(make_strategy("mirrored", two_devices))
    assert np.abs(expected[0] - 1.0).max() > 0.1
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_two_models_after_each_other_train_on_the_same_devices(two_devices):
    # Of different shapes: a second strategy object would fail in the all-reduce.
    x = np.ones((4, 3), "float32")
    for units in (1, 5):
        strategy = make_strategy("mirrored", two_devices)
        with strategy.scope():
            model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(units)])
            model.compile(optimizer=SGD(0.1), loss="mse", jit_compile=False)
        batches = tf.data.Dataset.from_tensors((x, np.zeros((4, units), "float32")))
        model.fit(batches, verbose=0)
