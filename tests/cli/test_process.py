import os
import pathlib
import subprocess
import sys

import pytest

from tests import tiny_run
from vfnet_tf.cli import process, start_notes

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


NOTES = (
    "WARNING: All log messages before absl::InitializeLog() is called are written\n"
    "I0000 00:00:1796018520.90    4472 port.cc:153] oneDNN custom operations are on.\n"
)
NO_DRIVER = "I0000 00:00:1796018520.91    4472 cudart_stub.cc:31] Could not find cuda\n"
WARNING = "W0000 00:00:1796018520.92    4472 placer.cc:1] already registered\n"
ERROR = "E0000 00:00:1796018520.93    4472 cuda_platform.cc:52] failed call to cuInit\n"
OTHER = "libfoo.so: version mismatch\n"


@pytest.mark.parametrize(
    ("level", "has_device", "shown"),
    [
        (1, False, WARNING + ERROR + OTHER),
        (2, False, ERROR + OTHER),
        (3, False, OTHER),
        # What TensorFlow says of a GPU that is there is news.
        (3, True, NO_DRIVER + ERROR + OTHER),
    ],
)
def test_of_what_tensorflow_says_of_its_start_the_news_is_shown(
    level, has_device, shown
):
    text = NOTES + NO_DRIVER + WARNING + ERROR + OTHER
    assert start_notes.news(text + start_notes.DONE, level, has_device) == shown
    # Of an import that failed all is shown.
    assert start_notes.news(text, level, has_device) == text


#: A module in the place of TensorFlow that writes a note and then does something else.
WITH_STAND_IN = """
import importlib.util, os, sys
from vfnet_tf.cli import process

class Loader:
    def create_module(self, spec):
        return None
    def exec_module(self, module):
        os.write(2, {notes!r}.encode())
        {action}

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "tensorflow":
            return importlib.util.spec_from_loader(name, Loader())

sys.meta_path.insert(0, Finder())
process.hide_start_notes()
import tensorflow
print("python's own", file=sys.stderr, flush=True)
os.system("echo a process of its own >&2")
"""


@pytest.mark.parametrize(
    ("action", "level", "start", "end"),
    [
        ("pass", None, "", "python's own\na process of its own\n"),
        ("print('odd', file=sys.stderr)", None, "odd\n", "of its own\n"),
        ("pass", "0", NOTES, "of its own\n"),
        (
            "raise ImportError('no libcudart')",
            None,
            NOTES,
            "ImportError: no libcudart\n",
        ),
        ("os.abort()", None, NOTES, NOTES),
    ],
    ids=["silent", "odd", "level 0", "error", "abort"],
)
def test_an_import_says_only_what_is_news(action, level, start, end):
    environment = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    if level is not None:
        environment["TF_CPP_MIN_LOG_LEVEL"] = level
    code = WITH_STAND_IN.format(notes=NOTES, action=action)
    said = run_python(code, environment).stderr
    assert (NOTES in said) == (start == NOTES)
    assert (said.startswith(start) or action.startswith("raise")) and said.endswith(end)


def test_a_command_that_imports_tensorflow_writes_nothing_to_stderr(tmp_path):
    if process.has_device():
        pytest.skip("what TensorFlow says of a GPU is shown")
    run = tiny_run.write_run(tmp_path / "run")
    environment = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    arguments = ["convert", run, "--to-pytorch", "--out", tmp_path / "a.safetensors"]
    answer = subprocess.run(
        [sys.executable, "-m", "vfnet_tf.cli", *map(str, arguments)],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0 and answer.stdout.startswith("weights    ")
    assert answer.stderr == ""
