import json
import pathlib
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

from benchmarks import speed
from vfnet_tf.config import list_configs, load_config
from vfnet_tf.data.formats.coco import read_coco
from vfnet_tf.layers import ConvNormAct


def run(tmp_path, only, repeats):
    """Runs a part of the benchmark; returns its rows."""
    path = tmp_path / "rows.json"
    settings = {"only": (only,), "repeats": repeats, "in_process": True, "json": path}
    assert speed.run(speed.BenchmarkOptions(**settings)) == 0
    return json.loads(path.read_text())


def test_the_star_convolution_is_measured_against_a_plain_one(
    monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(speed, "G_SIZE", 64)
    monkeypatch.setattr(speed, "STAR_SIZE", (12, 16))
    monkeypatch.setattr(speed, "DEFORMABLE_SIZE", (9, 11))
    monkeypatch.setattr(speed, "CHANNELS", 8)
    rows = run(tmp_path, "layers", repeats=1)
    plain, star, ratio, small, deformable, deformable_ratio = rows
    assert plain["name"] == "3x3 convolution 12x16x8"
    assert deformable["name"] == "deformable v2 9x11x8"
    assert plain["seconds"] > 0
    assert plain["in_g"] == plain["seconds"] / plain["g_seconds"]
    assert ratio["ratio"] == star["seconds"] / plain["seconds"]
    times = small["seconds"], deformable["seconds"]
    assert deformable_ratio["ratio"] == times[1] / times[0]
    text = capsys.readouterr().out
    assert "star convolution" in text
    assert f"{ratio['ratio']:.2f}x" in text


def test_the_unit_is_the_product_of_two_such_matrices(monkeypatch):
    assert speed.G_SIZE == 4096  # what G means in every table
    monkeypatch.setattr(speed, "G_SIZE", 32)
    timer = speed._Timer(1)
    factors = []
    product = timer._product
    monkeypatch.setattr(
        timer, "_product", lambda *both: factors.append(both) or product(*both)
    )
    assert timer._unit() > 0
    assert {tuple(one.shape) for both in factors for one in both} == {(32, 32)}


def test_the_table_has_every_architecture_once():
    names = speed.architectures()
    stems = [name for name in list_configs() if name.endswith("_coco")]
    detectors = {load_config(name).model.detector for name in names}
    assert detectors == {load_config(name).model.detector for name in stems}
    # Eleven of VFNet; raw, and with the star alone; FCOS's (ATSS's differs in its neck
    # and box code), ATSS, RetinaNet, FoveaBox, RepPoints.
    assert len(names) == 18
    assert "vfnet_raw_r50_fpn_1x_coco" in names
    assert "vfnet_raw_vfl_r50_fpn_1x_coco" not in names  # another loss


def test_assignment_and_losses_are_a_share_of_the_step(monkeypatch, small_detector):
    monkeypatch.setattr(speed, "LOSSES_SIZE", (64, 96))
    timer = speed._Timer(1)
    monkeypatch.setattr(timer, "_unit", lambda: 1.0)
    losses, step, share = speed._share_of_losses(timer, tf, small_detector())
    assert losses["name"] == "assignment and losses 2x64x96"
    assert 0 < losses["seconds"] < step["seconds"]
    assert share["ratio"] == losses["seconds"] / step["seconds"]


def test_operations_are_counted_as_by_hand(monkeypatch):
    monkeypatch.setattr(speed, "MODEL_SIZE", (8, 6))
    inputs = keras.Input((None, None, 3))
    x = ConvNormAct(8, 3)(inputs)
    x = ConvNormAct(4, 3, strides=2, groups=2)(x)
    model = keras.Model(inputs, ConvNormAct(5, 1, deformable=True)(x))
    cells, fewer = 8 * 6, 4 * 3
    # Convolution; two groups; offsets and masks of one tap; the deformed tap itself.
    products = cells * 27 * 8 + fewer * 36 * 4 + fewer * 4 * 3 + fewer * 4 * 5
    assert speed._gflop(tf, model) == 2 * products / 1e9


def test_models_are_lines_of_a_table():
    row = {"name": "x", "parameters": 32.9e6, "gflop": 500.0, "seconds": 2.0}
    row |= {"cpu_seconds": 3.9, "in_g": 4.0, "peak_gb": 1.5}
    header, rule, line = speed.format_models([row]).splitlines()
    assert line == "| x | 32.9 | 500 | 2.00 | 3.90 | 4.00 | 8.0 | 1.50 |"
    assert header.count("|") == rule.count("|") == line.count("|")


def test_the_forward_pass_that_is_timed_returns_every_output(small_detector):
    detector = small_detector()
    images = tf.zeros((1, 64, 96, 3))
    found = speed._forward(tf, detector)(images)
    assert set(found) == set(detector(images))
    assert {"class_logits", "boxes", "refined_boxes"} < set(found)


def test_the_first_training_step_is_told_with_its_graph(small_detector):
    class Timer:
        def row(self, name, function):
            return {"name": name, "loss": function()}

    rows = speed._training_step(Timer(), tf, small_detector())
    names = [row["name"] for row in rows[::2]]
    assert names == ["training step 2x256x320", "training step 4x256x320"]
    for step, first in zip(rows[::2], rows[1::2], strict=True):
        assert np.isfinite(step["loss"])
        # Each level traced apart would be more; see `vfnet_tf.ops.shapes`.
        assert 1000 < first["num_operations"] < 20_000
        assert first["first_seconds"] > 0
        line = speed.format_rows([first]).splitlines()[-1]
        assert line.endswith(f"{first['num_operations']} operations |")


def test_the_input_pipeline_is_measured_on_files_of_its_own(
    monkeypatch, tmp_path, capsys
):
    monkeypatch.setenv("VFNET_TF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(speed, "DATA_IMAGE_SIZE", (48, 64))
    monkeypatch.setattr(speed, "DATA_IMAGES", 6)
    monkeypatch.setattr(speed, "DATA_BATCH", 4)
    monkeypatch.setattr(speed, "DATA_SIZES", ((64, 96), (32, 32)))
    rows = run(tmp_path, "data", repeats=2)
    sources = ("input 48x64", "input 48x64 in TFRecords")
    names = [f"{source} to {size}" for size in ("64x96", "32x32") for source in sources]
    assert [row["name"] for row in rows] == names
    assert all(row["images_per_second"] > 0 and row["load"] >= 0 for row in rows)
    text = capsys.readouterr().out
    assert all(f"{row['images_per_second']:.1f} images/s" in text for row in rows)
    assert all(f"{row['cpu_ms']:.1f} ms of a core" in text for row in rows)
    # The set has that many JPEGs of that size.
    file = speed._write_photographs(tmp_path)
    dataset = read_coco(file, tmp_path)
    assert len(dataset) == 6 and set(map(tuple, dataset.sizes)) == {(48, 64)}


def test_every_augmentation_and_preset_is_measured(monkeypatch):
    variants = speed._augmented()
    assert {"Mosaic", 'augment="light"', 'augment="strong"'} <= set(variants)
    assert len(variants) == 12 + 4
    monkeypatch.setattr(speed, "DATA_IMAGE_SIZE", (48, 64))
    monkeypatch.setattr(speed, "DATA_IMAGES", 4)
    monkeypatch.setattr(speed, "DATA_SIZES", ((32, 64),))
    rows = speed._data(1, {"VerticalFlip": variants["VerticalFlip"]})
    assert [row["name"] for row in rows] == ["VerticalFlip to 32x64"]
    assert rows[0]["cpu_ms"] > 0


def test_the_evaluation_is_measured_on_detections_of_its_own():
    pytest.importorskip("faster_coco_eval")
    rows = speed._evaluation(num_images=30)
    assert [row["name"] for row in rows] == ["update, 30 images", "evaluate"]
    assert all(row["seconds"] > 0 and row["grown_mb"] >= 0 for row in rows)
    assert "evaluate" in speed.format_rows(rows)


def test_each_figure_is_told_in_g_with_and_without_onednn(monkeypatch, capsys):
    def measure(name, options, **variables):
        asked.append((name, variables))
        if name == "product":
            return [{"name": "G", "seconds": 2.0 + int(variables[ONEDNN] == "0")}]
        row = {"name": name, "seconds": 6.0, "cpu_seconds": 11.5}
        return [{**row, "in_g": 2.9, "peak_gb": 1.25}, {"name": "share", "ratio": 0.5}]

    asked = []
    monkeypatch.setattr(speed, "_measure_in_fresh_process", measure)
    assert speed.run(speed.BenchmarkOptions(only=("small",))) == 0
    products = [("product", {ONEDNN: "0"}), ("product", {ONEDNN: "1"})]
    assert asked == [*products, ("small", {}), *products]
    machine, products, *table = capsys.readouterr().out.splitlines()
    assert "cores of" in machine and f"keras {keras.__version__}" in machine
    assert products == "G: 3.000 s, 2.000 s with oneDNN"
    assert table[2:] == [
        "| small | 6 | 11.5 | 2.000 | 3.000 | 1.25 GB |",
        "| share |  |  |  |  | 0.50x |",
    ]
    assert {line.count("|") for line in table} == {7}


def test_the_cpu_seconds_are_those_of_the_fastest_run():
    def burn():
        time.sleep(naps.pop(0))
        end = time.process_time() + 0.05
        while time.process_time() < end:
            pass

    naps = [0.4, 0.2, 0.4]
    timer = speed._Timer(3)
    seconds, cpu_seconds = timer._best(burn)
    assert seconds >= 0.25 and 0.05 <= cpu_seconds < seconds - 0.1


def test_a_compiled_step_is_told_beside_its_compilation(capsys):
    class Detector:
        num_classes = 3

        def compile(self, optimizer, jit_compile):
            self.seconds = [0.3, 0.0, 0.0]
            assert jit_compile

        def train_on_batch(self, batch, return_dict):
            assert batch["images"].shape == (2, 256, 320, 3)
            time.sleep(self.seconds.pop(0))
            return {"loss": np.float32(1)}

    step, first = speed._compiled_step(Detector(), repeats=2)
    assert step["name"].endswith("XLA by tensorflow") and step["peak_gb"] > 0
    assert step["seconds"] < 0.3 <= first["seconds"]
    table = speed.format_rows([step, first])
    assert "GB" in table and f"{first['seconds']:.4g}" in table


def test_jax_has_a_process_with_its_backend(monkeypatch):
    def note(command, env, **settings):
        seen[command[command.index("--only") + 1]] = env["KERAS_BACKEND"]
        pathlib.Path(command[-1]).write_text("[]")

    seen = {}
    monkeypatch.setattr(speed.subprocess, "run", note)
    for name in ("jit", "jax"):
        assert speed._measure_in_fresh_process(name, speed.BenchmarkOptions()) == []
    assert seen == {"jit": "tensorflow", "jax": "jax"}
    with pytest.raises(ValueError, match="KERAS_BACKEND=jax"):
        speed._measure("jax", speed.BenchmarkOptions())


ONEDNN = speed.processor.ONEDNN


@pytest.mark.parametrize(
    ("name", "chosen"),
    [
        ("train", "training"),
        ("losses", "training"),
        ("jit", "training"),
        ("model", "inference"),
        ("data", ""),
    ],
)
def test_a_benchmark_chooses_as_the_commands_do(monkeypatch, name, chosen):
    calls = []
    for settings in ("training", "inference"):
        monkeypatch.setattr(
            speed.processor,
            f"speed_up_{settings}",
            lambda settings=settings: calls.append(settings),
        )
    for measured in (
        "_data",
        "_training_step",
        "_share_of_losses",
        "_model",
        "_compiled_step",
    ):
        monkeypatch.setattr(speed, measured, lambda *arguments: [])
    monkeypatch.setattr("vfnet_tf.builder.build_detector", lambda config: None)
    speed._measure(name, speed.BenchmarkOptions())
    assert calls == ([chosen] if chosen else [])
