import csv
import errno
import math
import types

import h5py
import keras
import numpy as np
import pytest
from keras import ops

from vfnet_tf.evaluation.coco import CocoEvaluator
from vfnet_tf.training.callbacks import (
    HistoryCsv,
    ResumableCheckpoint,
    learning_rate_of_step,
    read_history,
)
from vfnet_tf.training.coco_evaluation import CocoEvaluation
from vfnet_tf.training.optimizers import SGD
from vfnet_tf.training.run_state import read_state
from vfnet_tf.training.schedules import WarmupStepSchedule

pytestmark = pytest.mark.backend

X = np.random.default_rng(0).normal(size=(12, 2)).astype("float32")
Y = X @ np.array([[2.0], [-1.0]], "float32")
STEPS = 3  # of 4 points, one epoch


class TinyDetector(keras.Model):
    """Learns a line; detects one box, (0, 0, 8, 8) over the image's scale."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(1, kernel_initializer="ones")
        self.num_traces = 0

    def build(self, input_shape):
        self.dense.build(input_shape)

    def call(self, inputs):
        return self.dense(inputs)

    def detect(self, images, image_size=None, scale=None):
        self.num_traces += 1
        xyxy_scale = ops.concatenate([ops.flip(scale, axis=1)] * 2, axis=1)
        corners = ops.convert_to_tensor([0.0, 0.0, 8.0, 8.0])
        # The mean pixel is the score: what the image holds must arrive here.
        scores = ops.mean(images, axis=(1, 2, 3))[:, None]
        labels = ops.zeros_like(scores, "int32")
        return {
            "boxes": (corners / xyxy_scale)[:, None],
            "scores": scores,
            "labels": labels,
            "num_detections": ops.ones_like(labels[:, 0]),
        }


def make_model(optimizer=None):
    model = TinyDetector()
    if optimizer is None:
        optimizer = SGD(WarmupStepSchedule(0.1, 4, 0.5, boundaries=[7]))
    model.compile(optimizer=optimizer, loss="mse", jit_compile=False)
    model.build((None, 2))
    return model


def fit(model, *callbacks, epochs=4, start=0, x=X, y=Y, **kwargs):
    return model.fit(
        x,
        y,
        batch_size=4,
        shuffle=False,
        epochs=epochs,
        initial_epoch=start,
        verbose=0,
        callbacks=list(callbacks),
        **kwargs,
    )


def batch_of(image_ids, scale=(1.0, 1.0)):
    count = len(image_ids)
    values = np.asarray(image_ids, "float32").reshape(-1, 1, 1, 1) / 10
    return {
        "images": np.broadcast_to(values, (count, 8, 8, 3)).astype("float32"),
        "image_size": np.full((count, 2), 8.0, "float32"),
        "scale": np.tile(np.asarray(scale, "float32"), (count, 1)),
        "image_id": np.asarray(image_ids, "int64"),
        "boxes": np.zeros((count, 1, 4), "float32"),
        "labels": np.full((count, 1), -1, "int32"),
    }


class RecordingEvaluator:
    """Remembers what it was given; its AP grows by 0.1 an evaluation."""

    def __init__(self, aps=None):
        self.num_evaluations, self.seen, self.aps = 0, {}, aps

    def reset(self):
        self.seen = {}

    def update(self, image_ids, detections):
        assert all(isinstance(value, np.ndarray) for value in detections.values())
        for row, image_id in enumerate(image_ids.tolist()):
            self.seen[image_id] = {k: v[row].tolist() for k, v in detections.items()}

    def evaluate(self):
        self.num_evaluations += 1
        ap = 0.1 * self.num_evaluations
        if self.aps is not None:
            ap = self.aps[self.num_evaluations - 1]
        return {"AP": ap, "AP50": ap / 2, "per_class": {}}


class Crash(keras.callbacks.Callback):
    """Stands for a kill: leaves `fit` by an exception at a step."""

    def __init__(self, epoch, batch):
        super().__init__()
        self.epoch, self.batch, self.now = epoch, batch, None

    def on_epoch_begin(self, epoch, logs=None):
        self.now = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.now, batch) == (self.epoch, self.batch):
            raise KeyboardInterrupt


class LossLog(keras.callbacks.Callback):
    """The loss of every step (the mean over the epoch so far)."""

    def __init__(self):
        super().__init__()
        self.losses = []

    def on_train_batch_end(self, batch, logs=None):
        self.losses.append(float(logs["loss"]))


def state_of(model):
    values = [*model.weights, *model.optimizer.variables]
    return [ops.convert_to_numpy(value) for value in values]


def assert_same_state(found, expected):
    for ours, theirs in zip(state_of(found), state_of(expected), strict=True):
        np.testing.assert_array_equal(ours, theirs)


# --- CocoEvaluation


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
    seen = []
    spy = keras.callbacks.LambdaCallback(on_epoch_end=lambda e, logs: seen.append(logs))
    callback = CocoEvaluation([batch_of([1])], RecordingEvaluator(), metrics=["AP"])
    history = fit(make_model(), callback, spy, epochs=2).history
    np.testing.assert_allclose([logs["val_AP"] for logs in seen], [0.1, 0.2])
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


# --- HistoryCsv


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
    with open(path, newline="") as file:
        assert next(csv.reader(file))[:4] == [
            "epoch",
            "step",
            "seconds",
            "learning_rate",
        ]


def test_a_new_run_begins_a_new_history(tmp_path):
    path = tmp_path / "history.csv"
    fit(make_model(), HistoryCsv(path), epochs=3)
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


# --- ResumableCheckpoint


@pytest.mark.parametrize("crash", [(0, 1), (1, 0), (2, 2), None])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path, crash):
    whole, whole_log = make_model(), LossLog()
    fit(whole, whole_log)

    killed = make_model()
    saving = ResumableCheckpoint(tmp_path, monitor="loss", mode="min")
    if crash is None:  # stopped between two epochs
        crash = (2, 0)
        fit(killed, saving, epochs=2)
    else:
        with pytest.raises(KeyboardInterrupt):
            fit(killed, saving, Crash(*crash))

    model, log = make_model(), LossLog()
    loading = ResumableCheckpoint(tmp_path, monitor="loss", mode="min")
    assert loading.restore(model) == (crash[0], 0)
    fit(model, log, loading, start=crash[0])
    assert log.losses == whole_log.losses[crash[0] * STEPS :]
    assert_same_state(model, whole)


@pytest.mark.parametrize("crash", [(1, 2), (2, 0)])
def test_a_state_saved_within_an_epoch_skips_what_it_has_seen(tmp_path, crash):
    whole = make_model()
    fit(whole)

    killed = make_model()
    saving = ResumableCheckpoint(tmp_path, "loss", "min", save_every_steps=2)
    with pytest.raises(KeyboardInterrupt):
        fit(killed, saving, Crash(*crash))

    model = make_model()
    loading = ResumableCheckpoint(tmp_path, "loss", "min", save_every_steps=2)
    epoch, step = loading.restore(model)
    assert (epoch, step) == ((1, 2) if crash == (1, 2) else (2, 0))
    if step:
        rest = {"x": X[4 * step :], "y": Y[4 * step :]}
        fit(model, loading, start=epoch, epochs=epoch + 1, **rest)
        assert read_state(loading.last_path)["epoch"] == epoch + 1
        epoch += 1
    fit(model, loading, start=epoch)
    assert_same_state(model, whole)


def test_steps_within_a_resumed_epoch_are_counted_from_its_start(tmp_path):
    # What was learned from is saved at the begin of the next batch.
    killed = make_model()
    saving = ResumableCheckpoint(tmp_path, "loss", "min", save_every_steps=1)
    with pytest.raises(KeyboardInterrupt):
        fit(killed, saving, Crash(0, 1))
    model = make_model()
    loading = ResumableCheckpoint(tmp_path, "loss", "min", save_every_steps=1)
    assert loading.restore(model) == (0, 1)
    with pytest.raises(KeyboardInterrupt):
        fit(model, loading, Crash(0, 1), x=X[4:], y=Y[4:])
    assert ResumableCheckpoint(tmp_path).restore(make_model()) == (0, 2)
    with pytest.raises(KeyboardInterrupt):  # the whole epoch, from its start
        fit(model, loading, Crash(0, 1))
    assert ResumableCheckpoint(tmp_path).restore(make_model()) == (0, 1)


def test_the_mean_loss_of_an_epoch_outlives_a_kill(tmp_path):
    whole = fit(make_model(), epochs=1)
    saving = ResumableCheckpoint(tmp_path, "loss", "min", save_every_steps=1)
    with pytest.raises(KeyboardInterrupt):
        fit(make_model(), saving, Crash(0, 2))
    model = make_model()
    loading = ResumableCheckpoint(tmp_path, "loss", "min")
    assert loading.restore(model) == (0, 2)
    rest = fit(model, loading, epochs=1, x=X[8:], y=Y[8:])
    assert rest.history["loss"] == whole.history["loss"]


def test_a_state_that_cannot_be_read_gives_way_to_the_one_before(tmp_path):
    checkpoint = ResumableCheckpoint(tmp_path, "loss", "min", keep=3)
    models = []
    for epoch in range(4):
        models.append(make_model())
        checkpoint.restore(models[-1])
        fit(models[-1], checkpoint, epochs=epoch + 1, start=epoch)
    names = [path.name for path in checkpoint.state_paths]
    assert names == [
        "last.weights.h5",
        "last-1.weights.h5",
        "last-2.weights.h5",
    ]
    assert [read_state(path)["epoch"] for path in checkpoint.state_paths] == [4, 3, 2]
    last, before, _ = checkpoint.state_paths
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


def test_the_weights_of_the_last_epochs_are_kept(tmp_path):
    checkpoint = ResumableCheckpoint(tmp_path, "loss", "min", keep_epochs=2)
    models = make_model(), make_model()
    fit(models[0], checkpoint, epochs=4)
    kept = sorted(path.name for path in tmp_path.glob("epoch-*"))
    assert kept == ["epoch-003.weights.h5", "epoch-004.weights.h5"]
    fit(models[1], epochs=3)
    model = make_model()
    model.load_weights(tmp_path / kept[0])
    for ours, theirs in zip(model.weights, models[1].weights, strict=True):
        np.testing.assert_array_equal(*map(ops.convert_to_numpy, (ours, theirs)))


def test_a_full_disk_is_named_and_leaves_the_state_before(tmp_path, monkeypatch):
    checkpoint = ResumableCheckpoint(tmp_path, "loss", "min")
    model = make_model()
    fit(model, checkpoint, epochs=1)

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match=r"after 6 steps .*No space left.*MiB.*is whole"):
        fit(model, checkpoint, epochs=2, start=1)
    monkeypatch.undo()
    assert checkpoint.restore(make_model()) == (1, 0)


def test_best_is_by_the_monitor_and_survives_a_resume(tmp_path):
    aps = [math.nan, 0.3, 0.5, 0.4]
    evaluator = RecordingEvaluator(aps)
    checkpoint = ResumableCheckpoint(tmp_path)
    weights = []

    def keep(epoch, logs):
        weights.append(model.get_weights())

    model = make_model()
    spy = keras.callbacks.LambdaCallback(on_epoch_end=keep)
    evaluation = CocoEvaluation([batch_of([1])], evaluator, metrics=["AP"])
    fit(model, evaluation, checkpoint, spy, epochs=4)
    assert (checkpoint.best, checkpoint.best_epoch) == (0.5, 3)

    best = make_model()
    fit(best, epochs=1)
    assert checkpoint.restore_best(best) == (3, 0.5)
    assert int(ops.convert_to_numpy(best.optimizer.iterations)) == STEPS
    for ours, theirs in zip(best.get_weights(), weights[2], strict=True):
        np.testing.assert_array_equal(ours, theirs)
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
    checkpoint = ResumableCheckpoint(tmp_path, "loss", "min")
    trained = make_model()
    fit(trained, checkpoint, epochs=1)
    model = TinyDetector()
    model.build((None, 2))
    epoch, _ = checkpoint.restore_best(model)
    assert epoch == 1
    for ours, theirs in zip(model.get_weights(), trained.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(ValueError, match=r"best\.weights\.h5"):
        ResumableCheckpoint(tmp_path / "new").restore_best(model)


def test_a_new_folder_restores_nothing(tmp_path):
    model = make_model()
    before = state_of(model)
    assert ResumableCheckpoint(tmp_path / "new").restore(model) == (0, 0)
    for ours, theirs in zip(state_of(model), before, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_failure_while_saving_leaves_the_older_file(tmp_path, monkeypatch):
    checkpoint = ResumableCheckpoint(tmp_path, "loss", "min")
    model = make_model()
    fit(model, checkpoint, epochs=1)
    before = checkpoint.last_path.read_bytes()

    def half_written(path, **kwargs):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(model, "save_weights", half_written)
    with pytest.raises(OSError, match="disk full"):
        fit(model, checkpoint, epochs=2, start=1)
    assert checkpoint.last_path.read_bytes() == before
    assert {p.name for p in tmp_path.iterdir()} == {
        "last.weights.h5",
        "best.weights.h5",
    }


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
    checkpoint = ResumableCheckpoint(tmp_path, "loss", "min")
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


def test_a_truncated_checkpoint_is_named(tmp_path):
    checkpoint = ResumableCheckpoint(tmp_path, "loss", "min")
    fit(make_model(), checkpoint, epochs=1)
    content = checkpoint.last_path.read_bytes()
    checkpoint.last_path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"last\.weights\.h5"):
        checkpoint.restore(make_model())


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
    checkpoint = ResumableCheckpoint(tmp_path, "loss", "min")
    new_model().fit(data, epochs=1, verbose=0, callbacks=[checkpoint])
    model = new_model()
    assert checkpoint.restore(model) == (1, 0)
    model.fit(data, initial_epoch=1, epochs=3, verbose=0, callbacks=[checkpoint])
    for ours, theirs in zip(state_of(model), state_of(whole), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    for copy in model.trainable_variables[0].value.values:
        np.testing.assert_allclose(copy, whole.trainable_variables[0], rtol=1e-6)
