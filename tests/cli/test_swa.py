import json

import keras
import numpy as np
import pytest

from tests.tiny_run import LineDetector
from vfnet_tf import builder
from vfnet_tf.cli.__main__ import main
from vfnet_tf.cli.swa import phase
from vfnet_tf.config import (
    Config,
    DataConfig,
    TrainingConfig,
    load_config,
    override,
    save_config,
)
from vfnet_tf.data.synthetic import CLASS_NAMES, make_synthetic_dataset
from vfnet_tf.inference.load import find_checkpoint
from vfnet_tf.training import trainer
from vfnet_tf.training.run_state import read_state

CONFIG = Config(
    data=DataConfig(image_size=(64, 96)),
    training=TrainingConfig(epochs=3, batch_size=4, drop_epochs=(2,), ema_momentum=0.9),
    class_names=CLASS_NAMES,
    category_ids=(1, 2, 3, 4),
)


class NormedDetector(LineDetector):
    """With a batch norm that trains."""

    def __init__(self):
        super().__init__()
        self.norm = keras.layers.BatchNormalization()
        self.norm.build((None, 1))

    def call(self, inputs, training=None):
        return self.norm(super().call(inputs), training=training)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    directory = tmp_path_factory.mktemp("swa") / "set"
    return make_synthetic_dataset(directory, 8, 4, image_size=(96, 128))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A run of a `LineDetector` that has kept the weights of three epochs."""
    built = [LineDetector]

    def build(config, weights=None):
        detector = built[-1]()
        if weights is not None:
            detector.load_weights(weights)
        return detector

    monkeypatch.setattr(builder, "build_detector", build)
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    save_config(CONFIG, run_dir / "config.json")
    (run_dir / "metrics.json").write_text(json.dumps({"AP": 0.125}))
    write_weights(LineDetector(), run_dir)
    return run_dir, built


def write_weights(detector, run_dir):
    for value, name in ((1, "epoch-1"), (2, "epoch-2"), (6, "epoch-3"), (6, "best")):
        detector.dense.set_weights([np.full((3, 1), value), np.full(1, -value)])
        detector.save_weights(run_dir / f"{name}.weights.h5")


def swa(run_dir, data, *more):
    return main(["swa", str(run_dir), "--data", str(data), *map(str, more)])


def test_kept_weights_are_averaged_into_a_run_directory(folder, data, capfd):
    run_dir, _ = folder
    assert swa(run_dir, data) == 0
    config, weights = find_checkpoint(run_dir / "swa")
    assert config == CONFIG
    found = builder.build_detector(config, weights).dense.get_weights()
    np.testing.assert_array_equal(found[0], np.full((3, 1), 3))
    np.testing.assert_array_equal(found[1], [-3])
    metrics = json.loads((run_dir / "swa" / "metrics.json").read_text())
    said = capfd.readouterr()
    assert f"AP         {metrics['AP']:.3f} averaged, 0.125 before" in said.out
    assert "4/4 images" in said.err
    names = [path.rsplit("/", 1)[-1] for path in read_state(weights)["averaged_files"]]
    assert names == [f"epoch-{epoch}.weights.h5" for epoch in (1, 2, 3)]

    two = [run_dir / f"epoch-{epoch}.weights.h5" for epoch in (1, 2)]
    out = run_dir.parent / "two"
    assert swa(run_dir, data, "--out", out, "--checkpoints", *two) == 0
    found = builder.build_detector(config, out / "best.weights.h5").dense.get_weights()
    np.testing.assert_array_equal(found[1], [-1.5])


def test_batch_norms_see_training_images_again(folder, data, capfd):
    run_dir, built = folder
    built.append(NormedDetector)
    write_weights(NormedDetector(), run_dir)
    assert swa(run_dir, data) == 0
    assert "8/8 images" in capfd.readouterr().err
    _, weights = find_checkpoint(run_dir / "swa")
    norm = builder.build_detector(CONFIG, weights).norm
    # Of what the dense layer gives: -3 and three times the sum of normalised colours.
    assert norm.moving_mean.numpy() != 0
    assert 0 < norm.moving_variance.numpy() != 1


def test_training_on_starts_from_the_best_weights_with_cycles(
    folder, data, monkeypatch
):
    class QuickTrainer:
        def __init__(self, config, train_dataset, val_dataset, run_dir, **settings):
            made.append((config, run_dir, settings, len(train_dataset)))

        def describe(self):
            return "quick"

        def fit(self, verbose):
            return {"AP": 0.25}

    made = []
    monkeypatch.setattr(trainer, "Trainer", QuickTrainer)
    run_dir, _ = folder
    options = ["--epochs", "5", "--evaluate-every", "5", "--learning-rate", "0.5"]
    assert swa(run_dir, data, *options) == 0
    config, out, settings, count = made[0]
    assert config.training == override(
        CONFIG.training,
        epochs=5,
        schedule="cosine_cycles",
        swa=True,
        warmup_steps=0,
        ema_momentum=None,
        drop_epochs=(),
        base_learning_rate=0.5,
    )
    assert count == 8
    assert config.class_names == CLASS_NAMES and config.data == CONFIG.data
    assert out == run_dir / "swa"
    assert settings["initial_weights"] == run_dir / "best.weights.h5"
    assert settings["evaluate_every"] == 5


def test_the_phase_of_the_published_recipe():
    training = phase(load_config("vfnet_r50_fpn_1x_coco"), 12).training
    assert training == TrainingConfig(
        epochs=12, schedule="cosine_cycles", swa=True, warmup_steps=0, drop_epochs=()
    )


def test_what_cannot_be_averaged_is_refused(folder, data, tmp_path, mistake):
    run_dir, _ = folder

    def refused(text, *options):
        assert text in mistake("swa", run_dir, "--data", data, *options)

    both = ["--epochs", "3", "--checkpoints", "x"]
    refused("Received: --epochs 3, --checkpoints ['x']", *both)
    refused("Received: --epochs 0", "--epochs", "0")
    out = tmp_path / "other"
    out.mkdir()
    (out / "last.weights.h5").touch()
    refused("holds a run of its own", "--out", out)
    save_config(override(CONFIG, class_names=("cat",)), run_dir / "config.json")
    refused("the classes of the run, ('cat',)")
    for path in run_dir.glob("epoch-*"):
        path.unlink()
    refused("without epoch-*.weights.h5")
    assert not (run_dir / "swa").exists()
