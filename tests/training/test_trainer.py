import itertools
import json
import os
import signal

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.contracts import assert_same_bits, with_policy
from tests.tiny_run import LineDetector
from tests.training.tiny_training import Crash, Ends, arrays_of
from vfnet_tf import builder
from vfnet_tf.config import (
    BackboneConfig,
    Config,
    DataConfig,
    ModelConfig,
    TrainingConfig,
    load_config,
    override,
)
from vfnet_tf.data.formats.coco import find_coco_splits, read_coco
from vfnet_tf.data.synthetic import make_synthetic_dataset
from vfnet_tf.evaluation.coco import METRICS
from vfnet_tf.reports import curves
from vfnet_tf.training import trainer as trainer_module
from vfnet_tf.training.callbacks import read_history
from vfnet_tf.training.coco_evaluation import CocoEvaluation
from vfnet_tf.training.preemption import PreemptedError
from vfnet_tf.training.preview import pipeline_of
from vfnet_tf.training.run_lock import only_this_process
from vfnet_tf.training.run_state import read_state
from vfnet_tf.training.schedules import CosineCycles
from vfnet_tf.training.strategies import make_strategy
from vfnet_tf.training.trainer import Trainer

CONFIG = Config(
    name="tiny",
    model=ModelConfig(
        backbone=BackboneConfig("resnet18", norm="batch_norm", frozen_stages=-1),
        neck_filters=32,
        head_filters=32,
        head_convs=1,
    ),
    data=DataConfig(image_size=(64, 96), cache_decoded=True),
    training=TrainingConfig(
        epochs=2, batch_size=4, warmup_steps=2, drop_epochs=(1.5,), seed=7
    ),
)


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    directory = make_synthetic_dataset(
        tmp_path_factory.mktemp("data") / "set", 8, 4, image_size=(96, 128)
    )
    splits = find_coco_splits(directory)
    return read_coco(*splits["train"]), read_coco(*splits["val"], training=False)


@pytest.fixture(scope="module")
def finished(datasets, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("runs") / "run"
    trainer = Trainer(CONFIG, *datasets, run_dir, make_strategy("mirrored"))
    metrics = trainer.fit(verbose=0)
    return trainer, metrics


def test_a_run_leaves_all_its_files(finished):
    trainer, metrics = finished
    names = "config.json best.weights.h5 last.weights.h5 history.csv history.png "
    names += "metrics.json samples.png train_batches.png"
    assert {path.name for path in trainer.run_dir.iterdir()} >= set(names.split())
    saved = json.loads((trainer.run_dir / "metrics.json").read_text())
    assert saved["AP"] == pytest.approx(metrics["AP"])


def test_the_history_has_loss_parts_and_ap(finished):
    trainer, _ = finished
    rows = read_history(trainer.run_dir / "history.csv")
    assert len(rows) == 2
    parts = ("class_loss", "box_loss", "refined_box_loss")
    for name in ("loss", *parts, "val_AP"):
        assert np.isfinite([row[name] for row in rows]).all()
    assert rows[0]["loss"] == pytest.approx(sum(rows[0][n] for n in parts), rel=1e-5)


def test_the_config_knows_the_classes_of_the_data(finished, datasets):
    trainer, _ = finished
    config = load_config(trainer.run_dir)
    assert config == trainer.config
    assert config.class_names == datasets[0].class_names
    assert config.model.num_classes == len(datasets[0].class_names)


def test_the_run_directory_rebuilds_the_detector(finished):
    trainer, _ = finished
    best = trainer.run_dir / "best.weights.h5"
    rebuilt = builder.build_detector(trainer.run_dir, weights=best)
    assert_same_bits(rebuilt.weights, trainer.detector.weights)


def test_a_finished_run_is_not_trained_again(finished, datasets, capsys):
    trainer, metrics = finished
    again = Trainer(CONFIG, *datasets, trainer.run_dir, make_strategy("mirrored"))
    assert again.fit(verbose=0)["AP"] == pytest.approx(metrics["AP"])
    assert "after epoch 2 of 2" in capsys.readouterr().out


def test_a_function_may_load_the_initial_weights_of_a_new_run(
    finished, datasets, tmp_path
):
    def load(detector):
        loaded.append(detector)
        detector.set_weights(weights)

    loaded, weights = [], finished[0].detector.get_weights()
    trainer = Trainer(CONFIG, *datasets, tmp_path / "new", initial_weights=load)
    assert loaded == [trainer.detector]
    assert_same_bits(trainer.detector.get_weights(), weights)
    # A run that goes on keeps its own weights.
    Trainer(CONFIG, *datasets, finished[0].run_dir, initial_weights=load)
    assert len(loaded) == 1


def test_another_config_in_the_same_directory_is_refused(finished, datasets):
    trainer, _ = finished
    other = override(CONFIG, training__batch_size=2)
    with pytest.raises(ValueError, match="batch_size: 4 -> 2"):
        Trainer(other, *datasets, trainer.run_dir, make_strategy("mirrored")).fit()


def test_the_learning_rate_is_scaled_and_said(datasets, tmp_path):
    trainer = Trainer(CONFIG, *datasets, tmp_path / "run", make_strategy("mirrored"))
    assert trainer.learning_rate == pytest.approx(0.01 * 4 / 16)
    text = trainer.describe()
    assert "0.0025" in text
    assert "1 replica" in text
    assert "8 images, 2 steps" in text


def test_layers_that_a_file_of_weights_leaves_out_are_said(datasets, tmp_path):
    model = keras.applications.ResNet50(include_top=False, weights=None)
    arrays = {
        f"{layer.name}/{variable.name}": np.asarray(variable)
        for layer in model.layers
        for variable in layer.weights
        if not layer.name.startswith("conv5")
    }
    np.savez(tmp_path / "some.npz", **arrays)
    backbone = BackboneConfig("keras:ResNet50", weights=str(tmp_path / "some.npz"))
    config = override(CONFIG, model__backbone=backbone)
    text = Trainer(config, *datasets, tmp_path / "run").describe()
    assert (
        "random     20 layers of the backbone, conv5_block1_1_conv to conv5_block3_3_bn: "
        "the file of weights has none for them; batch norms named conv5_block... train"
    ) in text


def test_an_unknown_optimizer_is_refused(datasets, tmp_path):
    wrong = override(CONFIG, training__optimizer="lion")
    with pytest.raises(ValueError, match="optimizer=lion"):
        Trainer(wrong, *datasets, tmp_path / "run", make_strategy("mirrored"))


def test_scales_are_drawn_in_training_only(datasets):
    scales = ((32, 64), (64, 96))
    config = override(CONFIG, data__scales=scales, data__cache_decoded=False)
    for is_training, expected in ((True, [*scales]), (False, [(64, 96)])):
        batches = pipeline_of(config, datasets[0], is_training)
        assert batches.canvas_shapes == expected


def test_a_run_crops_cuts_out_and_draws_from_a_range(datasets, tmp_path):
    config = override(
        CONFIG,
        data__cache_decoded=False,
        data__scale_range=((48, 64), (64, 96)),
        data__random_crop=0.5,
        data__cut_out=1.0,
        data__max_canvas_shapes=2,
        training__epochs=1,
    )
    trainer = Trainer(config, *datasets, tmp_path / "run")
    text = trainer.describe()
    assert (
        "images     within 64x96 pixels; in training within 48x64 to 64x96, crops at 0.5, "
        "cut-outs at 1\n" in text
    )
    shapes = trainer.train_batches.canvas_shapes
    assert shapes == [(64, 64), (64, 96)]
    assert "graphs     at most 2, one per padded shape: 64x64, 64x96\n" in text
    batches = list(trainer.train_batches.as_numpy_iterator())
    height, width = np.concatenate([batch["image_size"] for batch in batches]).T
    assert len(set(height)) > 2 and np.ptp(height / width) > 0.05
    black = config.data.normalization(np.zeros(3))
    for batch in batches:
        is_black = np.isclose(batch["images"], black, atol=1e-4).all(axis=-1)
        assert is_black.any(axis=(1, 2)).all()
    # Validation has one shape of its own, whatever is drawn in training.
    batches = pipeline_of(trainer.config, datasets[1], training=False)
    assert batches.canvas_shapes == [(64, 96)]
    assert {
        tuple(size) for batch in batches for size in batch["image_size"].numpy()
    } == {(64, 85)}


@pytest.fixture
def quick(datasets, tmp_path, monkeypatch):
    """Makes a `Trainer` of a `LineDetector`: all but the detector is as in a real run."""

    def build(config, precision):
        return with_policy(precision, LineDetector)

    def resolve(config, backbone):
        return config

    def make(name="run", val=True, strategy="mirrored", settings=None, **changes):
        changes = {f"training__{key}": value for key, value in changes.items()}
        return Trainer(
            override(CONFIG, data__flip=0.0, **changes),
            datasets[0],
            datasets[1] if val else None,
            tmp_path / name,
            make_strategy(strategy),
            **(settings or {}),
        )

    monkeypatch.setattr(trainer_module, "_build", build)
    monkeypatch.setattr(trainer_module, "without_weight_file", resolve)
    monkeypatch.setattr(Trainer, "_draw_samples", lambda self, found: None)
    monkeypatch.setattr(curves, "plot_history", lambda *paths: None)
    return make


def test_a_run_goes_on_with_its_own_data_or_when_told_to(quick, capsys):
    quick(epochs=1).fit(verbose=0)
    more = quick(epochs=2)
    (more.run_dir / "config.json").unlink()  # the epochs are another schedule
    more.train_dataset = more.train_dataset.subset(7)
    with pytest.raises(
        ValueError, match="there are 7 images, and were 8.*--changed-data"
    ):
        more.fit(verbose=0)
    more.accepts_changes = True
    more.fit(verbose=0)
    said = capsys.readouterr().out
    assert "changed    in the training data there are 7 images, and were 8" in said
    assert "resuming after epoch 1 of 2" in said


def test_a_run_directory_has_one_process(quick):
    trainer = quick(epochs=1)
    with (
        only_this_process(trainer.run_dir),
        pytest.raises(ValueError, match=r"trains in this run directory.*--out"),
    ):
        trainer.fit(verbose=0)
    trainer.fit(verbose=0)
    assert not (trainer.run_dir / ".running").exists()


def test_without_validation_there_are_weights_but_no_metrics(quick):
    trainer = quick(val=False, epochs=1)
    assert (
        "validation none: no AP; the best weights are those of the least training loss\n"
    ) in trainer.describe()
    assert trainer.fit(verbose=0) is None
    assert (trainer.run_dir / "best.weights.h5").exists()
    assert not (trainer.run_dir / "metrics.json").exists()


def kill_after_the_second_epoch(trainer):
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(verbose=0, callbacks=[Ends(kill=1)])


def kill_within_the_second_epoch(trainer):
    trainer.save_every_steps = 1
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(verbose=0, callbacks=[Crash(1, 1)])


def signal_evaluations(number):
    """A function that ends a run by SIGTERM in its evaluation of that number, from 0."""

    def stop(trainer):
        detect, calls = CocoEvaluation._detections, itertools.count()

        def signal_and_detect(self):
            if next(calls) == number:
                assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
                os.kill(os.getpid(), signal.SIGTERM)
            return detect(self)

        with (
            pytest.MonkeyPatch.context() as patch,
            pytest.raises(PreemptedError, match=r"SIGTERM: .*The same command goes on"),
        ):
            patch.setattr(CocoEvaluation, "_detections", signal_and_detect)
            trainer.fit(verbose=0)

    return stop


def check_kill(quick, *stops, **changes):
    """A run stopped by each of `stops` goes on to the bits of a whole one.

    Returns:
        The `Trainer` of the whole run.
    """
    whole = quick("whole", **changes)
    whole.fit(verbose=0)
    for stop in stops or (kill_after_the_second_epoch,):
        stop(quick("killed", **changes))
    again = quick("killed", **changes)
    again.fit(verbose=0)
    for name in ("last.weights.h5", "best.weights.h5"):
        found, expected = (arrays_of(run.run_dir / name)[0] for run in (again, whole))
        assert_same_bits(found, expected)
    assert_same_bits(again.detector.get_weights(), whole.detector.get_weights())
    histories = [read_history(run.run_dir / "history.csv") for run in (again, whole)]
    for row in itertools.chain(*histories):
        del row["seconds"]
    np.testing.assert_equal(*histories)
    return whole


SWA = {"schedule": "cosine_cycles", "swa": True, "epochs": 3, "warmup_steps": 0}


def test_an_swa_phase_ends_with_the_mean_of_its_epochs_as_the_best(quick):
    ends = Ends()
    trainer = quick(**SWA)
    assert (
        "down to 1 % of it in each epoch, weights averaged over" in trainer.describe()
    )
    schedule = trainer.detector.optimizer._learning_rate
    assert isinstance(schedule, CosineCycles)
    assert (schedule.base_lr, schedule.cycle_steps) == (0.0025, 2)
    trainer.fit(verbose=0, callbacks=[ends])
    means = trainer.detector.get_weights()
    for found, *values in zip(means, *ends.weights, strict=True):
        assert np.ptp(values, axis=0).max() > 1e-4
        np.testing.assert_allclose(found, np.mean(values, axis=0), rtol=1e-6)
    rows = read_history(trainer.run_dir / "history.csv")
    assert [row["averaged_epochs"] for row in rows] == [1, 2, 3]
    # The second of two steps: half of the way down the cosine.
    assert rows[0]["learning_rate"] == pytest.approx(0.0025 * (1 + 0.01) / 2)
    assert read_state(trainer.run_dir / "best.weights.h5")["best_epoch"] == 3


@pytest.mark.parametrize(
    "changes", [SWA, {"ema_momentum": 0.5, "epochs": 3}, {"epochs": 3}], ids=str
)
def test_a_run_stopped_anywhere_goes_on_bit_by_bit(quick, changes):
    stops = [
        # The second one in the evaluation that the first one has cut short.
        signal_evaluations(0),
        signal_evaluations(0),
        kill_after_the_second_epoch,
        # In that after the third and last epoch, and in one behind it.
        signal_evaluations(0),
        signal_evaluations(1),
    ]
    check_kill(quick, *stops, **changes)


@pytest.mark.parametrize("changes", [SWA, {"ema_momentum": 0.5, "epochs": 3}], ids=str)
def test_a_run_killed_within_an_epoch_keeps_its_average_bit_by_bit(quick, changes):
    check_kill(quick, kill_within_the_second_epoch, **changes)


def test_the_best_weights_of_a_run_with_a_moving_average_are_averaged(quick):
    raw, ends = quick("raw", val=False, epochs=1), Ends()
    raw.fit(verbose=0, callbacks=[ends])
    trainer, own_ends = quick(val=False, epochs=1, ema_momentum=0.5), Ends()
    assert "weights averaged with momentum 0.5" in trainer.describe()
    trainer.fit(verbose=0, callbacks=[own_ends])
    # After two steps (w1 + w2) / 2; training goes on from w2.
    assert_same_bits(own_ends.weights, ends.weights)
    best, last = (
        arrays_of(trainer.run_dir / f"{name}.weights.h5")[0]
        for name in ("best", "last")
    )
    key = next(key for key in best if key.endswith("vars/0"))
    assert np.abs(best[key] - last[key]).max() > 1e-5
    np.testing.assert_array_equal(last[key], ends.weights[0][0])
    averages = [value for name, value in last.items() if name.startswith("optimizer")]
    assert any(
        value.shape == best[key].shape and (value == best[key]).all()
        for value in averages
    )


@pytest.mark.parametrize(
    ("momentum", "keep_epochs", "aps", "kept"),
    [
        # AP of the two epochs, then of the last weights and of the mean of two epochs.
        (0.5, 2, (0.1, 0.2, 0.3, 0.4), "mean"),
        (0.5, 2, (0.1, 0.2, 0.4, 0.3), "last"),
        (0.5, 2, (0.1, 0.2, 0.2, 0.1), "average"),
        (0.5, 0, (0.1, 0.2, 0.3), "last"),
        (None, 2, (0.1, 0.2, 0.4), "mean"),
        (None, 0, (0.1, 0.2), "last"),
    ],
)
def test_the_better_of_average_last_weights_and_mean_is_kept(
    quick, monkeypatch, capsys, momentum, keep_epochs, aps, kept
):
    found = [*aps, 0.5]  # and that of metrics.json
    zeros = {**dict.fromkeys(METRICS, 0.0), "per_class": {}}
    monkeypatch.setattr(
        CocoEvaluation,
        "evaluate",
        lambda self: {**zeros, "AP": found.pop(0)},
    )
    trainer = quick(epochs=2, ema_momentum=momentum)
    trainer.keep_epochs = keep_epochs
    ends = Ends()
    trainer.fit(verbose=0, callbacks=[ends])
    assert not found
    best, last = (
        arrays_of(trainer.run_dir / f"{name}.weights.h5")[0]
        for name in ("best", "last")
    )
    key = next(key for key in best if key.endswith("vars/0"))
    first, second = (weights[0] for weights in ends.weights)
    np.testing.assert_array_equal(last[key], second)
    expected = {"mean": (first + second) / 2, "last": second}.get(kept)
    if expected is None:
        assert np.abs(best[key] - second).max() > 1e-6
        assert np.abs(best[key] - (first + second) / 2).max() > 1e-6
    else:
        np.testing.assert_allclose(best[key], expected, rtol=1e-6)
    said = capsys.readouterr().out
    state = read_state(trainer.run_dir / "best.weights.h5")
    assert (state["best"], state["best_epoch"]) == (max(aps), 2)
    if momentum:
        assert f"the last weights without average: val AP {aps[2]:.3f}" in said
    if keep_epochs:
        assert f"the mean of 2 epochs' weights: val AP {aps[-1]:.3f}" in said


def test_accumulated_batches_train_as_one_large_batch(quick):
    settings = {"warmup_steps": 3, "clip_norm": 1.0, "drop_epochs": (1.0,), "epochs": 3}
    large = quick("large", False, "one_device", batch_size=8, **settings)
    large.fit(verbose=0)
    small = quick(
        "small", False, "one_device", batch_size=2, accumulate_steps=4, **settings
    )
    assert small.learning_rate == large.learning_rate == pytest.approx(0.005)
    text = small.describe()
    assert "an update every 4 batches: effective batch 8" in text
    assert "scaled to 8)" in text and "gradient norm 1 at most" in text
    small.fit(verbose=0)
    for ours, theirs in zip(
        small.detector.get_weights(), large.detector.get_weights(), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    for name in ("step", "learning_rate"):
        columns = [
            [row[name] for row in read_history(run.run_dir / "history.csv")]
            for run in (small, large)
        ]
        np.testing.assert_allclose(*columns, rtol=1e-6)


def test_a_run_stopped_between_two_updates_goes_on_bit_by_bit(quick):
    # Four batches an epoch and three to an update: some are waiting at each end.
    changes = {"batch_size": 2, "accumulate_steps": 3, "epochs": 3}
    changes.update(val=False, strategy="one_device", ema_momentum=0.5)
    check_kill(quick, **changes)


def test_own_transforms_train_and_a_stopped_run_goes_on_bit_by_bit(quick):
    def tinted(example, rng):
        tint = tf.random.stateless_uniform([3], rng, 0, 100, "int32")
        image = tf.cast(example["image"] // 3, "int32") + tint
        return {**example, "image": tf.cast(image, "uint8")}

    def doubled(example, rng):
        parts = {key: example[key] for key in ("boxes", "labels")}
        parts = {key: tf.concat([each] * 2, axis=0) for key, each in parts.items()}
        return {**example, **parts}

    settings = {"transforms": (each for each in (tinted, doubled)), "max_boxes": 40}
    trainer = quick(settings=settings, val=False)
    batch = next(iter(trainer.train_batches))
    pixels = CONFIG.data.normalization.inverse(batch["images"][0].numpy())
    assert pixels[:64, :85].max() <= 185 and batch["boxes"].shape[1] == 40
    boxes = batch["boxes"][0].numpy()
    count = (batch["labels"][0].numpy() >= 0).sum() // 2
    np.testing.assert_array_equal(boxes[:count], boxes[count : 2 * count])
    said = trainer.describe()
    assert "in training transforms of your own (" in said and "tinted, " in said
    check_kill(quick, settings={**settings, "transforms": [tinted, doubled]}, val=False)


def test_half_precision_scales_the_loss_and_a_stopped_run_goes_on(quick):
    whole = check_kill(
        quick, precision="mixed_float16", epochs=3, ema_momentum=0.5, val=False
    )
    optimizer = whole.detector.optimizer
    assert isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    rows = read_history(whole.run_dir / "history.csv")
    # The gradients of some steps overflow until the scale has come down: they are no
    # updates, and neither the history nor the schedule counts them.
    scale = float(optimizer.dynamic_scale.numpy())
    assert rows[-1]["step"] == 6 + np.log2(scale / 2.0**15) > 0
    rate = optimizer.inner_optimizer._learning_rate(rows[-1]["step"] - 1)
    assert rows[-1]["learning_rate"] == pytest.approx(float(rate))


def test_the_learning_rate_is_taken_as_it_is_if_asked_for(quick):
    trainer = quick(scale_learning_rate=False)
    assert trainer.learning_rate == 0.01
    assert "rate 0.01 (as given, not scaled to 4 images)" in trainer.describe()


@pytest.mark.parametrize(
    ("changes", "received"),
    [
        ({"schedule": "poly"}, "schedule=poly"),
        ({"swa": True, "ema_momentum": 0.9}, "swa=True with ema_momentum=0.9"),
        ({"accumulate_steps": 0}, "accumulate_steps=0"),
        ({"accumulate_steps": 2}, "accumulate_steps=2 with MirroredStrategy"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(quick, changes, received):
    with pytest.raises(ValueError, match=f"Received: {received}"):
        quick(**changes)


def test_a_schedule_that_cannot_work_is_told_before_the_first_step(datasets, tmp_path):
    config = override(CONFIG, training__warmup_steps=99)
    with pytest.warns(UserWarning, match="warm-up takes 99 steps and the training has"):
        Trainer(config, *datasets, tmp_path / "run", make_strategy("mirrored"))


def test_a_precision_that_the_cpu_lacks_is_told_before_the_first_step(
    quick, monkeypatch
):
    monkeypatch.setattr(trainer_module, "cpu_flags", lambda: {"avx2"})
    with pytest.warns(UserWarning, match="does not compute in mixed_bfloat16"):
        quick(precision="mixed_bfloat16")
