import os
import pathlib
import subprocess
import sys

import pytest

from vfnet_tf.cli import process
from vfnet_tf.cli.process import choose_onednn

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


@pytest.mark.parametrize(("given", "level"), [(None, "2"), ("0", "0")])
def test_every_command_keeps_start_up_notes_quiet(given, level):
    code = "import os, vfnet_tf.cli; print(os.environ['TF_CPP_MIN_LOG_LEVEL'])"
    environment = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    if given:
        environment["TF_CPP_MIN_LOG_LEVEL"] = given
    answer = run_python(code, environment)
    assert answer.stdout == f"{level}\n", answer.stderr


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


@pytest.mark.parametrize("command", [["train"], ["study", "table3"]], ids=str)
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
        f"from vfnet_tf.cli.__main__ import main\nmain({command})"
    )
    answer = run_python(code)
    assert answer.stdout == "chosen []\n", answer.stderr
