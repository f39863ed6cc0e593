"""Each notebook runs in a kernel of its own, at small scale, and keeps its word."""

import contextlib
import importlib.util
import os
import pathlib
import re
import subprocess
import sys
import types

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

import vfnet_tf
from tests import loopback
from tests.official_file import write_official_file
from vfnet_tf.checkpoints import published

ROOT = pathlib.Path(__file__).parents[2]
# Notebook -> what its last cell prints, `name: number`, and between what it must lie.
RESULTS = {
    "quickstart": {
        "AP50": (0, 1),
        "detections": (1, 100),
        "score difference": (0, 1e-3),
    },
    "fine_tune": {
        "epochs": (2, 2),
        "loss, last epoch to first": (0, 1),
        "best AP50": (0, 1),
    },
    "varifocal_loss": {
        "loss, last epoch to first": (0, 0.7),
        "correlation of score and IoU": (0.3, 1),
        "the same with the focal loss": (0, 1),
    },
    "star_convolution": {
        "largest difference of all": (0, 1e-5),
        "cells that the star reads": (10, 25),
    },
    "export": {"detections": (1, 100), "box difference in pixels": (0, 1e-3)},
}
# An export traces ten graphs, a fine-tuning trains what tests/training does with fewer,
# and `quickstart` runs seven commands; the quick suite has those.
SLOW = {"export", "fine_tune", "quickstart"}
SECONDS_PER_CELL = 600


def read_source(name):
    return jupytext.read(ROOT / "colab" / f"{name}.py")


def code_of(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def text_of(cell):
    """What a cell printed."""
    return "".join(
        output.text
        for output in cell.outputs
        if output.output_type == "stream" and output.name == "stdout"
    )


@contextlib.contextmanager
def published_model(folder, monkeypatch):
    """A server with the file that `quickstart` asks for, in all processes of a notebook."""
    name = published.DEFAULT_PRESET
    file = write_official_file(vfnet_tf.build_detector(name), folder, name)
    # Python imports this module when it starts.
    (folder / "sitecustomize.py").write_text(
        "from vfnet_tf.checkpoints.published import PATHS\n"
        f"PATHS[{name!r}] = {file!r}\n"
    )
    with loopback.serve_folder(folder) as address:
        monkeypatch.setenv("VFNET_WEIGHTS_URL", address)
        monkeypatch.setenv("VFNET_OFFLINE", "0")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield


def execute(notebook, folder, monkeypatch):
    for name, value in {
        "VFNET_TF_SMALL": "1",
        "VFNET_TF_CACHE": str(folder / "cache"),
        "VFNET_HOME": str(folder / "home"),
        "PYTHONPATH": os.pathsep.join(
            [str(ROOT), str(folder), os.environ.get("PYTHONPATH", "")]
        ),
        # Nothing of the user's, and nothing is left in their home.
        "IPYTHONDIR": str(folder / "ipython"),
        "JUPYTER_RUNTIME_DIR": str(folder / "jupyter"),
        # Small scale needs no GPU, and other processes of the test run may hold it.
        "CUDA_VISIBLE_DEVICES": "-1",
    }.items():
        monkeypatch.setenv(name, value)
    NotebookClient(
        notebook,
        timeout=SECONDS_PER_CELL,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
    ).execute()
    return notebook


def test_every_notebook_is_known_here():
    for suffix in (".py", ".ipynb"):
        stems = {path.stem for path in (ROOT / "colab").glob(f"*{suffix}")}
        assert stems == set(RESULTS)


@pytest.mark.parametrize("name", RESULTS)
def test_a_notebook_is_in_step_with_its_source(name):
    """Mended by `jupytext --update --to ipynb colab/*.py`."""
    path = ROOT / "colab" / f"{name}.ipynb"
    notebook, source = nbformat.read(path, 4), read_source(name)
    cells, expected = (
        [(cell.cell_type, cell.source) for cell in one.cells]
        for one in (notebook, source)
    )
    assert cells == expected
    assert notebook.metadata.kernelspec == source.metadata.kernelspec
    # Pictures of a training differ from run to run: a diff would be all noise.
    assert not any(cell.outputs for cell in code_of(notebook))
    assert len(code_of(notebook)) < 15
    assert path.stat().st_size < 300_000


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else [])
        for name in RESULTS
    ],
)
def test_a_notebook_runs_and_finds_what_it_says(name, tmp_path, monkeypatch):
    with contextlib.ExitStack() as stack:
        if name == "quickstart":
            stack.enter_context(published_model(tmp_path, monkeypatch))
        notebook = execute(read_source(name), tmp_path, monkeypatch)
    pictures = 0
    for cell in code_of(notebook):
        if "plt.show()" in cell.source or "display(" in cell.source:
            assert any("image/png" in output.get("data", {}) for output in cell.outputs)
            pictures += 1
    assert pictures >= 1
    *_, before, last = notebook.cells
    assert before.cell_type == "markdown" and before.source.startswith("**Expected:**")
    assert "assert " in last.source
    found = dict(re.findall(r"^(.+): (\S+)$", text_of(last), re.MULTILINE))
    assert set(found) == set(RESULTS[name])
    for key, (lowest, highest) in RESULTS[name].items():
        assert lowest <= float(found[key]) <= highest, key


def test_all_notebooks_start_with_the_same_cell():
    first = {code_of(read_source(name))[0].source for name in RESULTS}
    assert len(first) == 1


@pytest.mark.parametrize("where", ["colab", "clone", "installed"])
def test_the_first_cell_installs_what_is_missing(where, monkeypatch, capsys):
    """In Colab the wheel of this version, in a clone the clone, otherwise nothing."""
    commands = []
    monkeypatch.setattr(
        subprocess, "run", lambda command, check: commands.append(command)
    )
    if where == "colab":
        monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("colab"))
    if where != "installed":
        find_spec = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util,
            "find_spec",
            lambda name, *more: None if name == "vfnet_tf" else find_spec(name, *more),
        )
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "3")
    exec(code_of(read_source("quickstart"))[0].source, {})
    wheel = f"vfnet_tf-{vfnet_tf.__version__}-py3-none-any.whl"
    expected = {"colab": [wheel], "clone": [".."], "installed": []}[where]
    assert [command[-1] for command in commands] == expected
    assert all(
        command[:4] == [sys.executable, "-m", "pip", "install"] for command in commands
    )
    assert "GPU:" in capsys.readouterr().out
