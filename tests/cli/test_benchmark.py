import json

from vfnet_tf.cli import benchmark


def test_the_star_convolution_is_measured_against_a_plain_one(tmp_path, capsys):
    path = tmp_path / "rows.json"
    options = benchmark.BenchmarkOptions(
        only=("layers",), repeats=1, in_process=True, json=path
    )
    assert benchmark.run(options) == 0
    rows = json.loads(path.read_text())
    plain, star, ratio = rows
    assert plain["seconds"] > 0
    assert plain["in_g"] == plain["seconds"] / plain["g_seconds"]
    assert ratio["ratio"] == star["seconds"] / plain["seconds"]
    text = capsys.readouterr().out
    assert "star convolution" in text
    assert f"{ratio['ratio']:.2f}x" in text
