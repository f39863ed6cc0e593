import subprocess
import types

import pytest

from vfnet_tf.training import hardware
from vfnet_tf.training.strategies import make_strategy


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("81559\n24576\n", 24576 * 2**20),  # the smallest of several
        ("", hardware.UNKNOWN_GPU_BYTES),
        ("[N/A]\n", hardware.UNKNOWN_GPU_BYTES),
        (FileNotFoundError(), hardware.UNKNOWN_GPU_BYTES),
        (subprocess.TimeoutExpired("nvidia-smi", 10), hardware.UNKNOWN_GPU_BYTES),
    ],
)
def test_the_memory_of_gpus_is_that_of_the_smallest(monkeypatch, answer, expected):
    def run(command, **settings):
        if isinstance(answer, Exception):
            raise answer
        return types.SimpleNamespace(stdout=answer)

    monkeypatch.setattr(subprocess, "run", run)
    assert hardware.gpu_memory() == expected


@pytest.mark.parametrize(
    ("memory", "expected"),
    [((64, None), 64), ((64, 16), 16), ((64, 10**6), 64), ((None, None), 8 * 2**30)],
)
def test_the_memory_of_the_host_is_what_a_container_leaves(
    monkeypatch, memory, expected
):
    monkeypatch.setattr(hardware, "host_memory", lambda: memory)
    found = hardware.hardware_of(make_strategy("one_device"))
    assert found == hardware.Hardware(is_gpu=False, replicas=1, memory=expected)


@pytest.mark.parametrize(
    ("precision", "flags", "is_slow"),
    [
        ("float32", {"avx2"}, False),
        ("mixed_bfloat16", {"avx2", "fma"}, True),
        ("mixed_bfloat16", {"avx2", "avx512f"}, False),
        ("mixed_bfloat16", {"asimd", "bf16"}, False),
        ("mixed_bfloat16", set(), False),  # not told by this system
        ("mixed_float16", {"avx2", "avx512f", "avx512_bf16"}, True),
        ("mixed_float16", {"avx512f", "avx512_fp16"}, False),
    ],
)
def test_a_precision_that_the_cpu_lacks_is_a_fault(precision, flags, is_slow):
    faults = hardware.precision_faults(precision, flags)
    assert len(faults) == is_slow
    assert all(precision in fault for fault in faults)
