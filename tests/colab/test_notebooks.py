import json
import pathlib

import pytest

NOTEBOOKS = sorted((pathlib.Path(__file__).parents[2] / "colab").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom(path, monkeypatch, tmp_path):
    """Runs the code cells in one namespace; the last one checks the stated result."""
    monkeypatch.setenv("VFNET_TF_CACHE", str(tmp_path))
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    sources = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    namespace = {}
    for number, source in enumerate(sources):
        exec(compile(source, f"{path.name}:{number}", "exec"), namespace)
    assert "assert" in sources[-1]
    assert len(namespace["losses"]) == namespace["EPOCHS"]
