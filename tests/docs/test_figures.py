import runpy
from pathlib import Path

import numpy as np
import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def figures():
    return runpy.run_path(str(DOCS / "figures.py"))


@pytest.fixture(scope="module")
def paths(figures, tmp_path_factory):
    return figures["main"](tmp_path_factory.mktemp("figures"))


def test_every_figure_is_drawn_small_and_is_on_the_page(paths):
    page = (DOCS / "how_vfnet_works.md").read_text("utf-8")
    assert len(paths) == 4
    for path in paths:
        text = path.read_text("utf-8")
        assert text.startswith("<?xml") and len(text) < 80_000
        assert f"(figures/{path.name})" in page
        assert (DOCS / "figures" / path.name).stat().st_size < 80_000


def test_the_same_figure_is_the_same_file(figures, paths, tmp_path, monkeypatch):
    monkeypatch.delitem(figures["FIGURES"], "atss")
    monkeypatch.delitem(figures["FIGURES"], "varifocal_loss")
    first = {path.name: path.read_bytes() for path in paths}
    for path in figures["main"](tmp_path):
        assert path.read_bytes() == first[path.name]


def test_the_star_has_the_corners_and_middles_of_the_box(figures):
    # The cell's corner is (32, 48); 10 left, 20 up, 30 right, 5 down.
    points = figures["star_points"]((32, 48), (10, 20, 30, 5), 16, (8, 8))
    expected = [(x, y) for y in (28, 48, 53) for x in (22, 32, 62)]
    np.testing.assert_allclose(points, expected, atol=1e-4)
