import json

import keras
import tensorflow as tf

from vfnet_tf.cli import benchmark
from vfnet_tf.config import list_configs, load_config
from vfnet_tf.layers import ConvNormAct


def test_the_star_convolution_is_measured_against_a_plain_one(tmp_path, capsys):
    path = tmp_path / "rows.json"
    options = benchmark.BenchmarkOptions(
        only=("layers",), repeats=1, in_process=True, json=path
    )
    assert benchmark.run(options) == 0
    rows = json.loads(path.read_text())
    plain, star, ratio, small, deformable, deformable_ratio = rows
    assert plain["seconds"] > 0
    assert plain["in_g"] == plain["seconds"] / plain["g_seconds"]
    assert ratio["ratio"] == star["seconds"] / plain["seconds"]
    times = small["seconds"], deformable["seconds"]
    assert deformable_ratio["ratio"] == times[1] / times[0]
    text = capsys.readouterr().out
    assert "star convolution" in text
    assert f"{ratio['ratio']:.2f}x" in text


def test_the_table_has_every_architecture_once():
    names = benchmark.architectures()
    models = {load_config(n).model for n in list_configs() if n.endswith("_coco")}
    assert {load_config(name).model for name in names} == models
    assert len(names) == len(models) == 11


def test_operations_are_counted_as_by_hand(monkeypatch):
    monkeypatch.setattr(benchmark, "MODEL_SIZE", (8, 6))
    inputs = keras.Input((None, None, 3))
    x = ConvNormAct(8, 3)(inputs)
    x = ConvNormAct(4, 3, strides=2, groups=2)(x)
    model = keras.Model(inputs, ConvNormAct(5, 1, deformable=True)(x))
    cells, fewer = 8 * 6, 4 * 3
    # Convolution; two groups; offsets and masks of one tap; the deformed tap itself.
    products = cells * 27 * 8 + fewer * 36 * 4 + fewer * 4 * 3 + fewer * 4 * 5
    assert benchmark._gflop(tf, model) == 2 * products / 1e9


def test_models_are_lines_of_a_table():
    row = {"name": "x", "parameters": 32.9e6, "gflop": 500.0, "seconds": 2.0}
    text = benchmark.format_models([{**row, "in_g": 4.0, "peak_gb": 1.5}])
    header, rule, line = text.splitlines()
    assert line == "| x | 32.9 | 500 | 2.00 | 4.00 | 8.0 | 1.50 |"
    assert header.count("|") == rule.count("|") == line.count("|")
