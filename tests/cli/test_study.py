import json

import pytest

from tests.cli.test_train import CONFIG_FILE
from vfnet_tf.cli.__main__ import main
from vfnet_tf.paper import study


class QuickTrainer:
    """Trains nothing: notes what it is given and leaves metrics."""

    made = []

    def __init__(self, config, train_dataset, val_dataset, run_dir, **settings):
        self.config, self.run_dir, self.settings = config, run_dir, settings
        self.made.append(self)

    def describe(self):
        return f"quick {self.config.name}"

    def fit(self, verbose="auto"):
        self.run_dir.mkdir()
        metrics = {"AP": 0.125, "AP50": 0.25, "AP75": None}
        (self.run_dir / "metrics.json").write_text(json.dumps(metrics))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a config file and a small set; nothing is trained."""
    from vfnet_tf.data.synthetic import make_synthetic_dataset

    monkeypatch.setattr(study, "Trainer", QuickTrainer)
    monkeypatch.setattr(QuickTrainer, "made", [])
    (tmp_path / "tiny.py").write_text(CONFIG_FILE, encoding="utf-8")
    make_synthetic_dataset(tmp_path / "set", 4, 2, image_size=(64, 96))
    return tmp_path


def study_in(folder, table, *more):
    options = ["--config", str(folder / "tiny.py"), "--data", str(folder / "set")]
    return main(["study", table, *options, *more])


def test_a_study_trains_rows_with_the_options_and_shows_the_table(folder, capfd):
    options = ["--epochs", "3", "--batch-size", "2", "--image-size", "32", "64"]
    options += ["--seed", "5", "--precision", "mixed_bfloat16", "--weights", "none"]
    options += ["--out", str(folder / "study")]
    assert study_in(folder, "table3", "--rows", "star", "raw", *options) == 0
    run_dirs = [made.run_dir for made in QuickTrainer.made]
    assert run_dirs == [folder / "study" / name for name in ("raw", "star")]
    for made in QuickTrainer.made:
        training = made.config.training
        assert (training.epochs, training.batch_size, training.seed) == (3, 2, 5)
        assert training.precision == "mixed_bfloat16"
        assert made.config.data.image_size == (32, 64)
    said = capfd.readouterr().out
    assert (
        "| star | VFNet | ✓ | ✓ |  | 40.7 | 59.0 | 44.0 | 12.5 | 25.0 | 0.0 |" in said
    )
    assert "row 2 of 2: star" in said
    assert (folder / "study" / "table3.md").exists()

    # The same command with more rows goes on, with another option it does not.
    assert study_in(folder, "table3", "--rows", "star", "vfnet", *options) == 0
    assert QuickTrainer.made[-1].config.name == "vfnet"
    assert "star is finished already" in capfd.readouterr().out
    assert study_in(folder, "table3", *options, "--learning-rate", "0.1") == 2
    assert "base_learning_rate: 0.01 -> 0.1" in capfd.readouterr().err
    assert len(QuickTrainer.made) == 3


def test_without_data_the_base_is_that_of_the_generated_images(
    folder, monkeypatch, capfd
):
    from vfnet_tf.data import synthetic

    monkeypatch.setattr(synthetic, "make_synthetic_dataset", lambda: folder / "set")
    small = ["--backbone", "resnet18", "--rows", "gamma1p0_alpha0p50"]
    assert main(["study", "table2", *small]) == 0
    config = QuickTrainer.made[0].config
    assert (config.model.head_filters, config.training.optimizer) == (128, "adamw")
    assert config.model.loss_gamma == 1.0
    said = capfd.readouterr().out
    assert "generated images" in said and "runs/study_table2/table2.md" in said


def test_an_unknown_row_is_told_before_anything_is_read(folder, capfd):
    assert study_in(folder, "table5", "--rows", "fcos_focal") == 2
    said = capfd.readouterr()
    assert "retinanet_focal, retinanet_quality_focal" in said.err
    assert "Received: fcos_focal" in said.err and said.out == ""


def test_the_help_names_every_row(capsys):
    with pytest.raises(SystemExit):
        main(["study", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    rows = [row.name for name in ("table2", "table3") for row in study.find_rows(name)]
    parts = {
        part for row in study.find_rows("table5") for part in row.name.split("_", 1)
    }
    for name in (*rows, *parts):
        assert name in said, name
