import errno
import math
import os
import types

import h5py
import keras
import numpy as np
import pytest

from tests.contracts import assert_same_bits
from tests.training.tiny_training import (
    STEPS,
    Crash,
    Ends,
    RecordingEvaluator,
    Steps,
    TinyDetector,
    X,
    Y,
    assert_same_state,
    batch_of,
    fit,
    make_model,
    state_of,
)
from vfnet_tf.evaluation.coco import CocoEvaluator
from vfnet_tf.training.callbacks import (
    HistoryCsv,
    ResumableCheckpoint,
    learning_rate_of_step,
    read_history,
)
from vfnet_tf.training.coco_evaluation import CocoEvaluation
from vfnet_tf.training.optimizers import SGD
from vfnet_tf.training.run_state import read_state, steps_of

pytestmark = pytest.mark.backend


def by_loss(folder, **settings):
    return ResumableCheckpoint(folder, "loss", "min", **settings)


def crash(model, *callbacks, at, **settings):
    """Trains until a kill at (epoch, step)."""
    with pytest.raises(KeyboardInterrupt):
        fit(model, *callbacks, Crash(*at), **settings)


def test_detections_reach_the_evaluator_in_original_pixels():
    evaluator = RecordingEvaluator()
    evaluator.seen[99] = "of the epoch before"
    batches = [batch_of([1, 2], scale=(2.0, 4.0)), batch_of([3, -1])]
    callback = CocoEvaluation(batches, evaluator)
    callback.set_model(make_model())
    callback.evaluate()
    assert sorted(evaluator.seen) == [-1, 1, 2, 3]
    assert evaluator.seen[1]["boxes"] == [[0.0, 0.0, 2.0, 4.0]]
    assert evaluator.seen[3]["boxes"] == [[0.0, 0.0, 8.0, 8.0]]
    for image_id in (1, 2, 3):
        scores = evaluator.seen[image_id]["scores"]
        # XLA with few optimisations, as `make test` compiles: 2e-6.
        np.testing.assert_allclose(scores, [image_id / 10], rtol=1e-5)


def test_later_callbacks_and_the_history_see_the_metrics():
    ends = Ends()
    callback = CocoEvaluation([batch_of([1])], RecordingEvaluator(), metrics=["AP"])
    history = fit(make_model(), callback, ends, epochs=2).history
    np.testing.assert_allclose([logs["val_AP"] for logs in ends.logs], [0.1, 0.2])
    np.testing.assert_allclose(history["val_AP"], [0.1, 0.2])
    assert callback.last_metrics["per_class"] == {}


def test_skipped_epochs_are_nan_and_the_last_one_is_evaluated():
    evaluator = RecordingEvaluator()
    callback = CocoEvaluation(
        [batch_of([1])], evaluator, every=2, metrics=["AP", "AR1"]
    )
    history = fit(make_model(), callback, epochs=5).history
    nan = math.nan
    np.testing.assert_allclose(history["val_AP"], [nan, 0.1, nan, 0.2, 0.3])
    np.testing.assert_array_equal(history["val_AR1"], [nan] * 5)
    assert evaluator.num_evaluations == 3


def test_the_epoch_after_which_a_callback_stops_the_training_is_evaluated():
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = epoch == 2

    callback = CocoEvaluation(
        [batch_of([1])], RecordingEvaluator(), every=4, metrics=["AP"], last_epoch=9
    )
    history = fit(make_model(), Stop(), callback, epochs=9).history
    np.testing.assert_allclose(history["val_AP"], [math.nan, math.nan, 0.1])


def test_every_must_be_positive():
    with pytest.raises(ValueError, match="every=0"):
        CocoEvaluation([], RecordingEvaluator(), every=0)


def test_a_perfect_box_gives_ap_one_with_the_coco_evaluator():
    record = types.SimpleNamespace(
        image_id=5,
        height=8,
        width=8,
        boxes=np.array([[0, 0, 8, 8]], "float32"),
        labels=np.array([0], "int32"),
    )
    dataset = types.SimpleNamespace(
        records=[record], category_ids=(3,), class_names=("box",), annotation_file=None
    )
    callback = CocoEvaluation([batch_of([5])], CocoEvaluator(dataset))
    history = fit(make_model(), callback, epochs=1).history
    assert history["val_AP"] == pytest.approx([1.0])
    assert history["val_AP50"] == pytest.approx([1.0])
    assert math.isnan(history["val_APl"][0])


def test_one_graph_serves_all_epochs():
    if keras.backend.backend() != "tensorflow":
        pytest.skip("graphs are TensorFlow's")
    model = make_model()
    batches = [batch_of([1, 2]), batch_of([3, 4])]
    fit(model, CocoEvaluation(batches, RecordingEvaluator()), epochs=3)
    assert model.num_traces == 1


def test_two_replicas_see_every_image_once(two_devices):
    import tensorflow as tf

    from vfnet_tf.training.strategies import make_strategy

    with make_strategy("mirrored", two_devices).scope():
        model = make_model()
    parts = [batch_of([1, 2, 3, 4]), batch_of([5, 6, 7, -1])]
    stacked = {name: np.stack([p[name] for p in parts]) for name in parts[0]}
    evaluator = RecordingEvaluator()
    callback = CocoEvaluation(tf.data.Dataset.from_tensor_slices(stacked), evaluator)
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(4)
    model.fit(data, epochs=2, verbose=0, callbacks=[callback])
    assert sorted(evaluator.seen) == [-1, 1, 2, 3, 4, 5, 6, 7]
    for image_id in range(1, 8):
        scores = evaluator.seen[image_id]["scores"]
        np.testing.assert_allclose(scores, [image_id / 10], rtol=1e-5)


def test_history_has_one_line_an_epoch_with_the_rate_of_its_last_step(tmp_path):
    path = tmp_path / "new" / "history.csv"
    history = fit(make_model(), HistoryCsv(path), epochs=3).history
    rows = read_history(path)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert [row["step"] for row in rows] == [3, 6, 9]
    np.testing.assert_allclose([row["loss"] for row in rows], history["loss"])
    # Steps 2, 5 and 8: warm-up 0.5 + 0.5 * 2/4, then full, then after the drop at 7.
    rates = [row["learning_rate"] for row in rows]
    np.testing.assert_allclose(rates, [0.075, 0.1, 0.01], rtol=1e-6)
    assert all(row["seconds"] > 0 for row in rows)
    assert [p.name for p in path.parent.iterdir()] == ["history.csv"]


def test_history_of_a_resumed_run_drops_the_lines_that_are_run_again(tmp_path):
    path = tmp_path / "history.csv"
    fit(make_model(), HistoryCsv(path), epochs=3)
    before = read_history(path)
    more = CocoEvaluation([batch_of([1])], RecordingEvaluator(), metrics=["AP"])
    fit(make_model(), more, HistoryCsv(path), epochs=4, start=1)
    rows = read_history(path)
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert rows[0]["seconds"] == before[0]["seconds"]
    assert rows[1]["step"] == 3  # the new model's first epoch, not the old second
    assert math.isnan(rows[0]["val_AP"]) and rows[1]["val_AP"] == pytest.approx(0.1)
    assert path.read_text().startswith("epoch,step,seconds,learning_rate,")
    # A new run in the same place.
    fit(make_model(), HistoryCsv(path), epochs=1)
    assert [row["epoch"] for row in read_history(path)] == [1]


@pytest.mark.parametrize("text", ["epoch,step\n1,2\n3,x\n", "a,b\n1,2\n"])
def test_a_file_that_is_no_history_is_named(tmp_path, text):
    path = tmp_path / "history.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"history\.csv, line [23]"):
        read_history(path)


def test_learning_rate_of_a_constant_optimizer():
    assert learning_rate_of_step(SGD(0.25), 7) == 0.25


@pytest.mark.parametrize("at", [(0, 1), (1, 0), (2, 2), None])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path, at):
    whole, whole_steps = make_model(), Steps()
    fit(whole, whole_steps)

    if at is None:  # stopped between two epochs
        at = (2, 0)
        fit(make_model(), by_loss(tmp_path), epochs=2)
    else:
        crash(make_model(), by_loss(tmp_path), at=at)

    model, steps, loading = make_model(), Steps(), by_loss(tmp_path)
    assert loading.restore(model) == (at[0], 0)
    fit(model, steps, loading, start=at[0])
    assert steps.losses == whole_steps.losses[at[0] * STEPS :]
    assert_same_state(model, whole)


@pytest.mark.parametrize("at", [(1, 2), (2, 0)])
def test_a_state_saved_within_an_epoch_skips_what_it_has_seen(tmp_path, at):
    whole = make_model()
    fit(whole)
    crash(make_model(), by_loss(tmp_path, save_every_steps=2), at=at)

    model, loading = make_model(), by_loss(tmp_path, save_every_steps=2)
    epoch, step = loading.restore(model)
    assert (epoch, step) == at
    if step:
        rest = {"x": X[4 * step :], "y": Y[4 * step :]}
        fit(model, loading, start=epoch, epochs=epoch + 1, **rest)
        assert read_state(loading.last_path)["epoch"] == epoch + 1
        epoch += 1
    fit(model, loading, start=epoch)
    assert_same_state(model, whole)


def test_steps_within_a_resumed_epoch_are_counted_from_its_start(tmp_path):
    # A batch that was learned from is saved at the begin of the next one.
    crash(make_model(), by_loss(tmp_path, save_every_steps=1), at=(0, 1))
    model, loading = make_model(), by_loss(tmp_path, save_every_steps=1)
    assert loading.restore(model) == (0, 1)
    crash(model, loading, at=(0, 1), x=X[4:], y=Y[4:])
    assert ResumableCheckpoint(tmp_path).restore(make_model()) == (0, 2)
    crash(model, loading, at=(0, 1))  # the whole epoch, from its start
    assert ResumableCheckpoint(tmp_path).restore(make_model()) == (0, 1)


def test_the_mean_loss_of_an_epoch_outlives_a_kill(tmp_path):
    whole = fit(make_model(), epochs=1)
    crash(make_model(), by_loss(tmp_path, save_every_steps=1), at=(0, 2))
    model, loading = make_model(), by_loss(tmp_path)
    assert loading.restore(model) == (0, 2)
    rest = fit(model, loading, epochs=1, x=X[8:], y=Y[8:])
    assert rest.history["loss"] == whole.history["loss"]


def test_a_state_that_cannot_be_read_gives_way_to_the_one_before(tmp_path):
    checkpoint = by_loss(tmp_path, keep=3)
    models = []
    for epoch in range(4):
        models.append(make_model())
        checkpoint.restore(models[-1])
        fit(models[-1], checkpoint, epochs=epoch + 1, start=epoch)
    names = [path.name for path in checkpoint.state_paths]
    assert names == [f"{n}.weights.h5" for n in ("last", "last-1", "last-2")]
    assert [read_state(path)["epoch"] for path in checkpoint.state_paths] == [4, 3, 2]
    last, before, oldest = checkpoint.state_paths
    last.write_bytes(last.read_bytes()[:1000])
    model = make_model()
    with pytest.warns(UserWarning, match=r"last\.weights\.h5.*last-1\.weights\.h5"):
        assert checkpoint.restore(model) == (3, 0)
    assert_same_state(model, models[2])
    # A kill between the renames leaves no last state.
    last.unlink()
    assert checkpoint.restore(make_model()) == (3, 0)
    before.write_bytes(b"")
    with pytest.warns(UserWarning, match="after 6 steps"):
        assert checkpoint.restore(make_model()) == (2, 0)
    oldest.write_bytes(b"")
    with pytest.raises(ValueError, match=r"last-1\.weights\.h5"):
        checkpoint.restore(make_model())


def test_the_weights_of_the_last_epochs_are_kept(tmp_path):
    checkpoint = by_loss(tmp_path, keep_epochs=2)
    models = make_model(), make_model()
    fit(models[0], checkpoint, epochs=4)
    kept = sorted(path.name for path in tmp_path.glob("epoch-*"))
    assert kept == ["epoch-003.weights.h5", "epoch-004.weights.h5"]
    fit(models[1], epochs=3)
    model = make_model()
    model.load_weights(tmp_path / kept[0])
    assert_same_bits(model.get_weights(), models[1].get_weights())


def test_a_full_disk_is_named_and_leaves_the_state_before(tmp_path, monkeypatch):
    checkpoint = by_loss(tmp_path)
    model = make_model()
    fit(model, checkpoint, epochs=1)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(before) == {"last.weights.h5", "best.weights.h5"}

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    def half_written(path, **kwargs):
        full(path.write_bytes(b"half"))

    message = r"after [69] steps .*No space left.*MiB.*is whole"
    for owner, name, failure in (
        (os, "fsync", full),
        (model, "save_weights", half_written),
    ):
        with monkeypatch.context() as patch, pytest.raises(OSError, match=message):
            patch.setattr(owner, name, failure)
            fit(model, checkpoint, epochs=2, start=1)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_best_is_by_the_monitor_and_survives_a_resume(tmp_path):
    aps = [math.nan, 0.3, 0.5, 0.4]
    evaluator = RecordingEvaluator(aps)
    checkpoint, ends = ResumableCheckpoint(tmp_path), Ends()
    evaluation = CocoEvaluation([batch_of([1])], evaluator, metrics=["AP"])
    fit(make_model(), evaluation, checkpoint, ends, epochs=4)
    assert (checkpoint.best, checkpoint.best_epoch) == (0.5, 3)

    best = make_model()
    fit(best, epochs=1)
    assert checkpoint.restore_best(best) == (3, 0.5)
    assert steps_of(best.optimizer) == STEPS
    assert_same_bits(best.get_weights(), ends.weights[2])
    with h5py.File(checkpoint.best_path) as file:
        assert "optimizer" not in file

    resumed = ResumableCheckpoint(tmp_path)
    model = make_model()
    assert resumed.restore(model) == (4, 0)
    assert (resumed.best, resumed.best_epoch) == (0.5, 3)
    evaluator.aps = [*aps, 0.45]
    fit(model, evaluation, resumed, epochs=5, start=4)
    assert read_state(resumed.best_path)["epoch"] == 3
    assert read_state(resumed.last_path)["epoch"] == 5


def test_without_the_monitored_key_it_warns_and_saves_the_last_state(tmp_path):
    checkpoint = ResumableCheckpoint(tmp_path)
    with pytest.warns(UserWarning, match="val_AP"):
        fit(make_model(), checkpoint, epochs=1)
    assert [p.name for p in tmp_path.iterdir()] == ["last.weights.h5"]


def test_best_weights_load_into_a_model_that_is_not_compiled(tmp_path):
    checkpoint, trained = by_loss(tmp_path), make_model()
    fit(trained, checkpoint, epochs=1)
    model = TinyDetector()
    model.build((None, 2))
    epoch, _ = checkpoint.restore_best(model)
    assert epoch == 1
    assert_same_bits(model.get_weights(), trained.get_weights())
    with pytest.raises(ValueError, match=r"best\.weights\.h5"):
        ResumableCheckpoint(tmp_path / "new").restore_best(model)


def test_a_new_folder_restores_nothing(tmp_path):
    model = make_model()
    before = state_of(model)
    assert ResumableCheckpoint(tmp_path / "new").restore(model) == (0, 0)
    assert_same_bits(state_of(model), before)


def test_a_diverged_epoch_is_not_saved(tmp_path):
    checkpoint = ResumableCheckpoint(tmp_path, save_every_steps=1)
    evaluation = CocoEvaluation([batch_of([1])], RecordingEvaluator([0.1, 0.9]))
    model = make_model()
    fit(model, evaluation, checkpoint, epochs=1)
    fit(model, evaluation, checkpoint, epochs=2, start=1, x=X * np.nan)
    assert read_state(checkpoint.last_path)["epoch"] == 1
    assert checkpoint.best == 0.1


@pytest.mark.filterwarnings("ignore:Skipping variable loading")
def test_another_optimizer_or_model_is_refused(tmp_path):
    checkpoint = by_loss(tmp_path)
    fit(make_model(), checkpoint, epochs=1)
    with pytest.raises(ValueError, match="Received: Adam, for SGD after 3 steps"):
        checkpoint.restore(make_model(keras.optimizers.Adam(0.1)))
    with pytest.raises(ValueError, match="Received: SGD, for SGD"):
        checkpoint.restore(make_model(SGD(0.1, momentum=0.0)))
    model = TinyDetector()
    model.compile(optimizer=SGD(0.1), loss="mse")
    model.build((None, 5))
    with pytest.raises(ValueError, match=r"last\.weights\.h5, which does not fit"):
        checkpoint.restore(model)
    model = TinyDetector()
    model.build((None, 2))
    with pytest.raises(ValueError, match="optimizer=None"):
        checkpoint.restore(model)


@pytest.mark.parametrize(
    "arguments",
    [{"mode": "best"}, {"save_every_steps": 0}, {"keep": 0}, {"keep_epochs": -1}],
    ids=str,
)
def test_arguments_out_of_range_are_refused(tmp_path, arguments):
    with pytest.raises(ValueError, match="Received: "):
        ResumableCheckpoint(tmp_path, **arguments)


def test_two_replicas_resume_as_one_run(tmp_path, two_devices):
    import tensorflow as tf

    from vfnet_tf.training.strategies import make_strategy

    strategy = make_strategy("mirrored", two_devices)
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(4)

    def new_model():
        with strategy.scope():
            return make_model()

    whole = new_model()
    whole.fit(data, epochs=3, verbose=0)
    checkpoint = by_loss(tmp_path)
    new_model().fit(data, epochs=1, verbose=0, callbacks=[checkpoint])
    model = new_model()
    assert checkpoint.restore(model) == (1, 0)
    model.fit(data, initial_epoch=1, epochs=3, verbose=0, callbacks=[checkpoint])
    for ours, theirs in zip(state_of(model), state_of(whole), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    for copy in model.trainable_variables[0].value.values:
        np.testing.assert_allclose(copy, whole.trainable_variables[0], rtol=1e-6)
