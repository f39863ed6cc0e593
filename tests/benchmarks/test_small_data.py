import json
import subprocess

import pytest

from benchmarks import small_data
from vfnet_tf.cli import train
from vfnet_tf.config import load_config
from vfnet_tf.data.augmentation import presets


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Runs the study; each training notes its command and leaves metrics."""
    commands = []

    def run(command, stdout, stderr, check):
        assert check
        commands.append(command)
        out = tmp_path / "out" / command[command.index("--out") + 1].split("/")[-1]
        out.mkdir(parents=True)
        seed = int(command[command.index("--seed") + 1])
        metrics = {"AP": 0.4 + 0.1 * seed + 0.01 * len(commands), "AP50": 0.5}
        (out / "metrics.json").write_text(json.dumps(metrics))

    monkeypatch.setattr(subprocess, "run", run)

    def start(*arguments):
        small_data.main(
            [*("--data", "cells", "--weights", "w.npz"), "--out", f"{tmp_path}/out"]
            + list(arguments)
        )
        return commands

    return start


def test_a_study_trains_what_is_missing_and_prints_all_rows(study, capsys):
    assert len(study("--rows", "auto", "mosaic", "--seeds", "0")) == 2
    assert len(study("--rows", "auto", "mosaic")) == 4
    lines = capsys.readouterr().out.splitlines()[-2:]
    assert lines == [
        "| auto | 2 | 0.470 (0.410 to 0.530) | 0.500 |  |",
        "| mosaic | 2 | 0.480 (0.420 to 0.540) | 0.500 | +0.010 |",
    ]


def test_each_row_differs_from_the_first_in_its_config_or_options(study, tmp_path):
    commands = study("--seeds", "3", "--filters", "64")
    assert len(commands) == len(small_data.ROWS)
    seen = set()
    for row, command in zip(small_data.ROWS, commands, strict=True):
        config = load_config(command[command.index("--config") + 1])
        assert config.data.augment == row.augment
        assert (config.model.neck_filters, config.model.head_filters) == (64, 64)
        presets.augmentations(config.data.augment)
        seen.add((repr(config.data), row.options))
        # The options are those of `vfnet train`.
        fields = {f"--{name.replace('_', '-')}" for name in vars(train.OPTIONS())}
        assert {part for part in command if part.startswith("--")} <= fields | {
            "--no-export"
        }
        assert command.count("--recipe") == 1
    assert len(seen) == len(small_data.ROWS)
