import csv
import json

import numpy as np
import pytest

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
from vfnet_tf.data.coco import find_coco_splits, read_coco
from vfnet_tf.data.synthetic import make_synthetic_dataset
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
    names = {path.name for path in trainer.run_dir.iterdir()}
    assert names >= {
        "config.json",
        "best.weights.h5",
        "last.weights.h5",
        "history.csv",
        "history.png",
        "metrics.json",
        "samples.png",
    }
    saved = json.loads((trainer.run_dir / "metrics.json").read_text())
    assert saved["AP"] == pytest.approx(metrics["AP"])


def test_the_history_has_loss_parts_and_ap(finished):
    trainer, _ = finished
    with (trainer.run_dir / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2
    for name in ("loss", "class_loss", "box_loss", "refined_box_loss", "val_AP"):
        assert np.isfinite([float(row[name]) for row in rows]).all()
    parts = ("class_loss", "box_loss", "refined_box_loss")
    total = sum(float(rows[0][name]) for name in parts)
    assert float(rows[0]["loss"]) == pytest.approx(total, rel=1e-5)


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
    for ours, theirs in zip(rebuilt.weights, trainer.detector.weights, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())


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
    for found, given in zip(trainer.detector.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(found, given)
    # A run that is gone on with has weights of its own.
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


def test_without_validation_there_are_weights_but_no_metrics(datasets, tmp_path):
    one = override(CONFIG, training__epochs=1)
    trainer = Trainer(
        one, datasets[0], None, tmp_path / "run", make_strategy("mirrored")
    )
    assert trainer.fit(verbose=0) is None
    assert (tmp_path / "run" / "best.weights.h5").exists()


def test_an_unknown_optimizer_is_refused(datasets, tmp_path):
    wrong = override(CONFIG, training__optimizer="lion")
    with pytest.raises(ValueError, match="optimizer=lion"):
        Trainer(wrong, *datasets, tmp_path / "run", make_strategy("mirrored"))


def test_scales_are_drawn_in_training_only(monkeypatch):
    from vfnet_tf.training import trainer

    settings = []
    monkeypatch.setattr(
        trainer, "build_pipeline", lambda dataset, **given: settings.append(given)
    )
    several = override(Config(), data__scales=((32, 64), (64, 96)))
    for config, training in ((several, True), (several, False), (Config(), True)):
        trainer.Trainer._pipeline(None, config, None, training)
    found = [given["scales"] for given in settings]
    assert found == [[(32, 64), (64, 96)], None, None]


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
    batches = trainer._pipeline(trainer.config, datasets[1], training=False)
    assert batches.canvas_shapes == [(64, 96)]
    assert {
        tuple(size) for batch in batches for size in batch["image_size"].numpy()
    } == {(64, 85)}
