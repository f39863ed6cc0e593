import runpy
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


# A step of ResNet-50 takes seconds.
@pytest.mark.slow
def test_a_step_changes_what_is_trained_and_nothing_else():
    script = runpy.run_path(str(BENCHMARKS / "pytorch_layers.py"))
    torch.manual_seed(0)
    network = script["Layers"]()
    before = {name: tensor.clone() for name, tensor in network.named_parameters()}
    script["make_step"](network, torch.randn(1, 3, 64, 64))()
    changed = {
        n for n, t in network.named_parameters() if not torch.equal(t, before[n])
    }
    frozen = {name for name in before if name.startswith(("stem.", "stages.0."))}
    assert frozen and changed == set(before) - frozen


def test_the_first_call_of_a_measurement_does_not_count():
    script = runpy.run_path(str(BENCHMARKS / "pytorch_layers.py"))
    calls = []
    least, median = script["seconds"](lambda: calls.append(0), repeats=3)
    assert len(calls) == 4 and 0 <= least <= median
