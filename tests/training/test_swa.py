import keras
import numpy as np
import pytest
from keras import ops

from tests.contracts import assert_same_bits
from tests.training.tiny_training import Ends, X, fit
from vfnet_tf.training.callbacks import ResumableCheckpoint
from vfnet_tf.training.optimizers import SGD
from vfnet_tf.training.run_state import read_state
from vfnet_tf.training.swa import (
    StochasticWeightAveraging,
    average_checkpoints,
    recompute_batch_norms,
)

pytestmark = pytest.mark.backend


def make_model(*layers):
    keras.utils.set_random_seed(0)
    layers = [*layers, keras.layers.Dense(1, kernel_initializer="ones")]
    model = keras.Sequential([keras.Input((2,)), *layers])
    model.compile(optimizer=SGD(0.1), loss="mse", jit_compile=False)
    return model


def test_the_file_has_the_mean_and_training_goes_on_from_the_raw_weights(tmp_path):
    plain, ends = make_model(), Ends()
    fit(plain, ends, epochs=3)
    model, own_ends = make_model(), Ends()
    path = tmp_path / "run" / "swa.weights.h5"
    fit(model, StochasticWeightAveraging(path), own_ends, epochs=3)
    assert_same_bits(model.get_weights(), plain.get_weights())
    assert [logs["averaged_epochs"] for logs in own_ends.logs] == [1, 2, 3]

    model.load_weights(path, objects_to_skip=[model.optimizer])
    for found, *values in zip(model.get_weights(), *ends.weights, strict=True):
        assert np.ptp(values, axis=0).max() > 1e-3
        np.testing.assert_allclose(found, np.mean(values, axis=0), rtol=1e-6)
    assert read_state(path) == {"epoch": 3, "averaged_epochs": 3}
    assert [entry.name for entry in path.parent.iterdir()] == ["swa.weights.h5"]


def test_callbacks_that_are_given_the_average_see_it(tmp_path):
    swa = StochasticWeightAveraging(tmp_path / "swa.weights.h5")
    settings = {"monitor": "averaged_epochs", "weights": swa.averaged}
    checkpoint, ends = ResumableCheckpoint(tmp_path, **settings), Ends()
    model = make_model()
    fit(model, swa, checkpoint, ends, epochs=3)
    checkpoint.restore_best(model)
    for found, *values in zip(model.get_weights(), *ends.weights, strict=True):
        np.testing.assert_allclose(found, np.mean(values, axis=0), rtol=1e-6)
    # The last state is that of training.
    again = make_model()
    assert ResumableCheckpoint(tmp_path).restore(again) == (3, 0)
    assert_same_bits(again.get_weights(), ends.weights[-1])


@pytest.mark.parametrize("kill", ["before the state", "after the state"])
def test_a_killed_run_goes_on_to_the_same_mean_bit_by_bit(tmp_path, kill):
    def chain(folder, *more):
        swa = StochasticWeightAveraging(tmp_path / folder / "swa.weights.h5")
        order = [swa, ResumableCheckpoint(tmp_path / folder, "averaged_epochs")]
        order.insert(1 if kill == "before the state" else 2, *more or [Ends()])
        return order

    fit(make_model(), *chain("whole"), epochs=4)
    for epoch in (1, 2):
        model = make_model()
        start, _ = ResumableCheckpoint(tmp_path / "killed").restore(model)
        with pytest.raises(KeyboardInterrupt):
            fit(model, *chain("killed", Ends(kill=epoch)), epochs=4, start=start)
    model = make_model()
    start, _ = ResumableCheckpoint(tmp_path / "killed").restore(model)
    assert start == (2 if kill == "before the state" else 3)
    fit(model, *chain("killed"), epochs=4, start=start)

    means = []
    for folder in ("whole", "killed"):
        model = make_model()
        path = tmp_path / folder / "swa.weights.h5"
        model.load_weights(path, objects_to_skip=[model.optimizer])
        means.append(model.get_weights())
        assert read_state(path) == {"epoch": 4, "averaged_epochs": 4}
    assert_same_bits(*means)


def test_going_on_without_the_mean_is_refused(tmp_path):
    swa = StochasticWeightAveraging(tmp_path / "swa.weights.h5")
    with pytest.raises(ValueError, match="Received: epoch=2"):
        fit(make_model(), swa, start=2)


def test_statistics_of_batch_norms_become_those_of_the_averaged_weights(tmp_path):
    def model_with_norm():
        return make_model(keras.layers.Dense(3), keras.layers.BatchNormalization())

    batches = [X[:4], X[4:8], X[8:]]
    path = tmp_path / "swa.weights.h5"
    ends = Ends()
    fit(model_with_norm(), StochasticWeightAveraging(path, batches), ends, epochs=3)

    model = model_with_norm()
    model.load_weights(path, objects_to_skip=[model.optimizer])
    dense, norm, _ = model.layers
    for values in zip(dense.get_weights(), *(w[:2] for w in ends.weights), strict=True):
        np.testing.assert_allclose(values[0], np.mean(values[1:], axis=0), rtol=1e-6)
    hidden = [ops.convert_to_numpy(dense(batch)) for batch in batches]
    expected = np.mean([values.mean(axis=0) for values in hidden], axis=0)
    np.testing.assert_allclose(norm.moving_mean, expected, rtol=1e-5, atol=1e-6)
    expected = np.mean([values.var(axis=0) for values in hidden], axis=0)
    np.testing.assert_allclose(norm.moving_variance, expected, rtol=1e-5)
    assert norm.momentum == 0.99
    # Those of training are another thing, and stay so.
    assert np.abs(ends.weights[-1][4] - expected).max() > 1e-3


def test_only_so_many_batches_are_run_and_frozen_norms_none():
    def batches():
        for _ in range(9):
            taken.append(1)
            yield X

    taken = []
    model = make_model(keras.layers.BatchNormalization())
    assert recompute_batch_norms(model, batches(), 2) == 2 == len(taken)
    model.layers[0].trainable = False
    assert recompute_batch_norms(model, batches(), 2) == 0
    assert len(taken) == 2


def test_batch_norms_that_train_need_batches(tmp_path):
    model = make_model(keras.layers.BatchNormalization())
    path = tmp_path / "swa.weights.h5"
    model.save_weights(path)
    for average in (
        lambda: fit(model, StochasticWeightAveraging(path)),
        lambda: average_checkpoints(model, [path]),
    ):
        with pytest.raises(ValueError, match="batches=None for 1 such layers"):
            average()


def test_saved_files_are_averaged_each_counted_the_same(tmp_path):
    model, paths = make_model(), []
    for value in (1.0, 2.0, 6.0):
        model.set_weights([np.full((2, 1), value), np.full(1, -value)])
        paths.append(tmp_path / f"epoch-{value:g}.weights.h5")
        model.save_weights(paths[-1])
    average_checkpoints(model, paths)
    assert_same_bits(model.get_weights(), [np.full((2, 1), 3.0), np.full(1, -3.0)])


def test_files_that_cannot_be_averaged_are_named(tmp_path):
    model = make_model()
    with pytest.raises(ValueError, match=r"paths=\[\]"):
        average_checkpoints(model, [])
    path = tmp_path / "other.weights.h5"
    make_model(keras.layers.Dense(3)).save_weights(path)
    with pytest.raises(ValueError, match="Received: .*other.weights.h5"):
        average_checkpoints(model, [path])


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="path=mean.h5"):
        StochasticWeightAveraging("mean.h5")
    with pytest.raises(ValueError, match="norm_batches=0"):
        StochasticWeightAveraging("mean.weights.h5", norm_batches=0)
    swa = StochasticWeightAveraging("mean.weights.h5")
    with pytest.raises(ValueError, match="count=0"), swa.averaged(make_model()):
        pass
