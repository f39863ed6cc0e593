import ctypes
import os
import pathlib
import subprocess
import sys

import pytest

from vfnet_tf.cli import process
from vfnet_tf.cli.process import choose_onednn, share_heap

ROOT = pathlib.Path(__file__).parents[2]


def run_python(code, environment=None):
    return subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_threads_share_a_heap_on_few_cores_only(monkeypatch):
    calls = []

    class Library:
        def mallopt(self, option, value):
            calls.append((option, value))
            return 1

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library())
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("MALLOC_ARENA_MAX", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert share_heap() and calls == [(-8, 1)]
    with monkeypatch.context() as context:
        context.setattr(os, "cpu_count", lambda: 5)
        assert not share_heap()
    with monkeypatch.context() as context:
        context.setenv("MALLOC_ARENA_MAX", "4")
        assert not share_heap()
    with monkeypatch.context() as context:
        context.setattr(sys, "platform", "darwin")
        assert not share_heap()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert not share_heap()
    assert len(calls) == 1


@pytest.mark.parametrize(("given", "level"), [(None, "2"), ("0", "0")])
def test_every_command_shares_the_heap_and_keeps_start_up_notes_quiet(given, level):
    code = (
        "import os, ctypes\n"
        "os.cpu_count = lambda: 2\n"
        "class Library:\n"
        "    def mallopt(self, *call): print('mallopt', *call)\n"
        "ctypes.CDLL = lambda name: Library()\n"
        "import vfnet_tf.cli\n"
        "print(os.environ['TF_CPP_MIN_LOG_LEVEL'])"
    )
    ours = ("TF_CPP_MIN_LOG_LEVEL", "MALLOC_ARENA_MAX")
    environment = {k: v for k, v in os.environ.items() if k not in ours}
    if given:
        environment["TF_CPP_MIN_LOG_LEVEL"] = given
    answer = run_python(code, environment)
    assert answer.stdout == f"mallopt -8 1\n{level}\n", answer.stderr


@pytest.mark.parametrize("machine", ["x86_64", "AMD64", "aarch64"])
def test_onednn_is_chosen_before_tensorflow_is_there(monkeypatch, machine):
    monkeypatch.setattr(process.platform, "machine", lambda: machine)
    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)
    monkeypatch.setattr(os, "environ", {})
    choose_onednn()
    wanted = {} if machine == "aarch64" else {"TF_ENABLE_ONEDNN_OPTS": "1"}
    assert os.environ == wanted
    os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"
    choose_onednn()
    assert os.environ["TF_ENABLE_ONEDNN_OPTS"] == "0"
    del os.environ["TF_ENABLE_ONEDNN_OPTS"]
    monkeypatch.setitem(sys.modules, "tensorflow", object())
    choose_onednn()
    assert os.environ == {}  # too late for TensorFlow


@pytest.mark.parametrize("command", ["train.main([])", "study.main(['table3'])"])
def test_a_command_that_trains_chooses_before_the_backend_is_there(command):
    # The backend reads the environment when it is imported; only a process can tell.
    code = (
        "import sys\n"
        "from vfnet_tf.cli import process\n"
        "def stop():\n"
        "    late = set(sys.modules) & {'keras', 'tensorflow', 'jax', 'torch'}\n"
        "    print('chosen', sorted(late))\n"
        "    raise SystemExit\n"
        "process.choose_onednn = stop\n"
        f"from vfnet_tf.cli import study, train\n{command}"
    )
    answer = run_python(code)
    assert answer.stdout == "chosen []\n", answer.stderr
