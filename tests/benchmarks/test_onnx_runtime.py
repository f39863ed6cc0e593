import runpy
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "onnx_runtime.py"


def test_ways_take_turns_and_the_first_call_does_not_count():
    script, calls = runpy.run_path(str(SCRIPT)), []
    ways = {name: lambda image, name=name: calls.append((name, image)) for name in "ab"}
    medians = script["measure"](ways, "image", repeats=2)
    assert calls == [("a", "image"), ("b", "image")] * 3
    assert set(medians) == {"a", "b"} and min(medians.values()) >= 0
