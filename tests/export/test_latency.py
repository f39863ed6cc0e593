import json
import os

import keras
import numpy as np
import pytest

from tests import tiny_run
from vfnet_tf.cli import benchmark
from vfnet_tf.cli.__main__ import main
from vfnet_tf.export import latency

if keras.backend.backend() != "tensorflow":
    pytest.skip("a SavedModel needs the TensorFlow backend", allow_module_level=True)

#: The parts that a server uses; loading takes 0.1 s, the first answer 0.2 s.
FAKE_TENSORFLOW = """
import time, types

class Answer:
    def numpy(self): return 1

class Model:
    calls = 0
    def __call__(self, image_bytes):
        assert image_bytes == [b"image"]
        time.sleep(0 if self.calls else 0.2)
        Model.calls += 1
        return {"num_detections": Answer()}

def load(directory):
    time.sleep(0.1)
    return types.SimpleNamespace(signatures={"serving_default": Model()})

def check(threads):
    assert threads == 2

constant = list
saved_model = types.SimpleNamespace(load=load)
threading = types.SimpleNamespace(
    set_intra_op_parallelism_threads=check, set_inter_op_parallelism_threads=check
)
config = types.SimpleNamespace(threading=threading)
"""

ROW = {
    "batch": 8,
    "threads": 2,
    "decode": [0.010, 0.012],
    "pre-process": [0.02],
    "network": [1.0, 2.0],
    "NMS": [0.001],
    "total": [1.5, 2.5],
    "import": 4.0,
    "load": 2.5,
    "first call": 1.25,
    "cold start": 7.75,
    "peak_gb": 1.234,
    "load_before": 0.5,
    "load_after": 2.0,
    "total_to_network": 1.375,
}


@pytest.fixture(scope="module")
def detector():
    return tiny_run.tiny_detector(tiny_run.quick_config())


@pytest.fixture(scope="module")
def exported(tmp_path_factory, detector):
    from vfnet_tf.export.saved_model.exporter import export_saved_model

    return export_saved_model(
        detector,
        tmp_path_factory.mktemp("latency") / "model",
        config=tiny_run.quick_config(),
        image_size=(64, 80),
        nms_iou_threshold=0.45,
    )


def test_the_stages_are_parts_of_the_export(exported, tmp_path):
    files = latency._write_files(tmp_path, (86, 108), 1)
    functions = latency.stage_functions(exported, files)
    assert tuple(functions) == (*latency.STAGES, "serve_tensor", "detect")
    found = {name: function() for name, function in functions.items()}
    assert found["decode"].shape == (1, 86, 108, 3)
    assert found["pre-process"].shape == (1, 64, 96, 3)  # 64x80, padded
    assert found["network"].shape == (1, 9 * (8 * 12 + 4 * 6 + 2 * 3 + 2 + 1), 3)
    assert found["NMS"].shape == (1, 100) and found["NMS"][0, 0] > 0.05
    assert found["total"].shape == (1,)
    # Both sides of the ratio have the same detections.
    count = int(found["serve_tensor"][0])
    assert count > 3 and np.count_nonzero(found["detect"][0]) == count


@pytest.mark.slow
def test_an_export_is_measured_stage_by_stage(exported, capsys):
    arguments = [str(exported), "--batches", "1", "2"]
    arguments += ["--threads", "1", "--repeats", "1"]
    assert main(["benchmark", *arguments]) == 0
    text = capsys.readouterr().out
    assert "JPEGs of 86x108" in text
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert [line.split()[1] for line in lines] == ["images", "1", "2"]
    assert text.count("total to network") == 2 and text.count("export to detect") == 1


def test_each_setting_is_measured_and_printed(exported, monkeypatch, tmp_path, capsys):
    calls = []

    def cold_start(path, opening, threads, calls, batch, files):
        assert path == exported and all(map(os.path.isfile, files))
        return {name: ROW[name] for name in latency.COLD_START}

    def stages(path, files, threads, rounds):
        calls.append((len(files), threads, rounds))
        row = {name: ROW[name] for name in (*latency.STAGES, "total_to_network")}
        return {**row, "export_to_detect": 1.04} if len(files) == 1 else row

    monkeypatch.setattr(latency, "_cold_start", cold_start)
    monkeypatch.setattr(latency, "_stages_in_fresh_process", stages)
    path = tmp_path / "rows.json"
    arguments = ["--repeats", "3", "--batches", "1", "2", "--json", str(path)]
    assert main(["benchmark", str(exported), *arguments]) == 0
    # One image has four times as many rounds; 1 and 2 threads are the default.
    assert calls == [(1, 1, 12), (1, 2, 12), (2, 1, 3), (2, 2, 3)]
    rows = json.loads(path.read_text())
    assert [(row["batch"], row["threads"]) for row in rows] == [c[:2] for c in calls]
    assert capsys.readouterr().out.count("total to network 1.375") == 4


def test_the_cold_start_is_the_sum_of_its_parts(tmp_path):
    # A TensorFlow that answers at once.
    (tmp_path / "tensorflow.py").write_text(FAKE_TENSORFLOW)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path))
        file = tmp_path / "a.jpg"
        file.write_bytes(b"image")
        opening = latency._OPEN_SAVED_MODEL
        row = latency._cold_start(tmp_path, opening, 2, 3, 1, [str(file)])
    assert tuple(row) == (*latency.COLD_START, "calls") and len(row["calls"]) == 3
    assert row["first call"] >= 0.2 and row["load"] >= 0.1 and row["import"] > 0
    parts = row["import"] + row["load"] + row["first call"]
    assert row["cold start"] == pytest.approx(parts)
    # Only its own memory, without that of the tests.
    assert 0.005 < row["peak_gb"] < 0.1


def test_the_detector_comes_back_from_an_export(exported, detector):
    from vfnet_tf.export.saved_model.exporter import read_metadata

    metadata = read_metadata(exported)
    found = latency.load_exported_detector(exported, metadata)
    for mine, its in zip(found.weights, detector.weights, strict=True):
        np.testing.assert_array_equal(mine.value, its.value)
    assert found.nms_iou_threshold == 0.45 != detector.nms_iou_threshold
    with pytest.raises(ValueError, match="must know its config"):
        latency.load_exported_detector(exported, {**metadata, "config": None})
    other = dict(metadata["config"], model=dict(metadata["config"]["model"]))
    other["model"]["num_classes"] = 4
    with pytest.raises(ValueError, match="must be those of its config"):
        latency.load_exported_detector(exported, {**metadata, "config": other})


def test_rows_are_lines_of_the_table_in_milliseconds():
    header = latency.format_header("model", (1080, 1800)).splitlines()
    line = latency.format_row(ROW)
    assert header[-1].count("|") == header[-2].count("|") == line.count("|")
    assert line.startswith("| 8 | 2 | 11 / 12 | 20 / 20 | 1500 / 1950 | 1 / 1 |")
    assert line.endswith("| 7.8 (4.0 + 2.5 + 1.2) | 1.23 | 0.5 to 2.0 |")


def test_ratios_are_printed_with_their_targets():
    text = latency.format_ratios([ROW, {**ROW, "batch": 1, "export_to_detect": 1.04}])
    assert "8 images, 2 threads: total to network 1.375 (target 1.25)" in text
    assert text.endswith("export to detect 1.040 (target 1.05)")


def test_a_ratio_is_of_calls_that_were_neighbours():
    # The machine became three times as slow in the third round, for both.
    assert latency._median_ratio([1.1, 1.1, 3.3], [1.0, 1.0, 3.0]) == pytest.approx(1.1)


def test_a_process_that_fails_says_why(tmp_path):
    with pytest.raises(ValueError, match="No module named 'nothing_like_it'"):
        latency._run_python(["-c", "import nothing_like_it"], "model", tmp_path)


def test_a_litert_file_is_measured_without_tensorflow(tmp_path, capsys):
    pytest.importorskip("ai_edge_litert", reason="needs ai-edge-litert (extra litert)")
    import tensorflow as tf

    class Doubling(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((1, 8, 8, 3), name="images")])
        def raw(self, images):
            return {"boxes": 2 * images}

    module = Doubling()
    signatures = {"raw": module.raw.get_concrete_function()}
    tf.saved_model.save(module, str(tmp_path / "saved"), signatures=signatures)
    converter = tf.lite.TFLiteConverter.from_saved_model(
        str(tmp_path / "saved"), signature_keys=["raw"]
    )
    path = tmp_path / "model.tflite"
    path.write_bytes(converter.convert())
    options = benchmark.BenchmarkOptions(export=path, threads=(1,), repeats=1)
    assert benchmark.run(options) == 0
    assert "tensorflow" not in latency._COLD_START + latency._OPEN_LITERT
    header, rule, line = capsys.readouterr().out.strip().splitlines()
    assert header.startswith("| model.tflite |")
    assert header.count("|") == rule.count("|") == line.count("|")
