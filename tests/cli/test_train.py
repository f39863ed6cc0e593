import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from vfnet_tf.cli import train
from vfnet_tf.cli.__main__ import main

CONFIG_FILE = """
from vfnet_tf.config import *

config = Config(
    name="tiny_file",
    model=ModelConfig(
        backbone=BackboneConfig("resnet18", norm="batch_norm", frozen_stages=-1),
        neck_filters=32, head_filters=32, head_convs=1,
    ),
    data=DataConfig(image_size=(64, 96), cache_decoded=True),
    training=TrainingConfig(epochs=2, batch_size=4, warmup_steps=2, drop_epochs=(1,)),
)
"""


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A folder with a config file, a small set and a cache of its own."""
    from vfnet_tf.data.synthetic import make_synthetic_dataset

    monkeypatch.setenv("VFNET_TF_CACHE", str(tmp_path / "cache"))
    (tmp_path / "tiny.py").write_text(CONFIG_FILE, encoding="utf-8")
    make_synthetic_dataset(tmp_path / "set", 8, 4, image_size=(96, 128))
    return tmp_path


def options_of(data, *more):
    return [
        "--config",
        str(data / "tiny.py"),
        "--data",
        str(data / "set"),
        "--out",
        str(data / "run"),
        *more,
    ]


def test_training_ends_with_a_saved_model_and_says_the_ap(data, capfd):
    status = main(["train", *options_of(data, "--epochs", "1")])
    said = capfd.readouterr().out
    assert status == 0
    assert (data / "run" / "saved_model" / "saved_model.pb").exists()
    for text in ("1 replica", "learning", "8 images", "class_loss", "AP50"):
        assert text in said


def test_options_change_the_config(data):
    options = train.TrainOptions(
        config=str(data / "tiny.py"),
        backbone="keras:ResNet50",
        epochs=4,
        batch_size=2,
        image_size=(32, 64),
    )
    config = train._resolve(options)
    assert config.model.backbone.name == "keras:ResNet50"
    assert config.data.normalization.channel_order == "bgr"
    assert config.training.batch_size == 2
    assert config.training.drop_epochs == (2.0,)  # half of the way, as in the file
    assert config.data.image_size == (32, 64)


def test_imagenet_by_name_is_an_error_where_it_cannot_be_had(data, capfd):
    status = main(["train", *options_of(data, "--weights", "imagenet")])
    assert status == 2
    assert "--weights imagenet" in capfd.readouterr().err


def test_missing_weights_and_data_are_named(data, capfd):
    assert main(["train", *options_of(data, "--weights", "nowhere.npz")]) == 2
    assert "nowhere.npz" in capfd.readouterr().err
    assert main(["train", "--data", str(data / "nothing")]) == 2
    assert "nothing" in capfd.readouterr().err


def test_a_killed_run_goes_on_where_it_was(data):
    """kill -9 after the first of three epochs, then the same command again."""
    command = [sys.executable, "-m", "vfnet_tf.cli", "train"]
    command += options_of(data, "--epochs", "3", "--no-export")
    root = pathlib.Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    run_dir = data / "run"
    process = subprocess.Popen(
        command, env=environment, cwd=root, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 240
    while not (run_dir / "last.weights.h5").exists():
        assert process.poll() is None, "the run ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = subprocess.run(
        command, env=environment, cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "resuming after epoch" in done.stdout

    once = data / "once"
    command[command.index(str(run_dir))] = str(once)
    subprocess.run(command, env=environment, cwd=root, check=True, capture_output=True)
    interrupted = json.loads((run_dir / "metrics.json").read_text())
    straight = json.loads((once / "metrics.json").read_text())
    losses = [_losses(folder / "history.csv") for folder in (run_dir, once)]
    np.testing.assert_allclose(*losses, rtol=1e-4)
    assert interrupted["AP"] == pytest.approx(straight["AP"], abs=1e-3)


def _losses(path):
    rows = [line.split(",") for line in path.read_text().splitlines()]
    column = rows[0].index("loss")
    return [float(row[column]) for row in rows[1:]]
