import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vfnet_tf.data import augmentation

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def figures():
    return runpy.run_path(str(DOCS / "augmentation_figures.py"))


def test_every_augmentation_has_a_picture_on_the_page(figures):
    kinds = {type(each).__name__ for each in figures["FIGURES"].values()}
    assert kinds == set(augmentation.__all__) - {"Augmentation"}
    page = (DOCS / "augmentation.md").read_text("utf-8")
    paths = sorted((DOCS / "figures" / "augmentation").iterdir())
    assert [path.stem for path in paths] == sorted(figures["FIGURES"])
    assert sum(path.stat().st_size for path in paths) < 400_000
    for path in paths:
        assert f"(figures/augmentation/{path.name})" in page
    assert all(f"**`{kind}`**" in page for kind in kinds)


@pytest.mark.parametrize("name", ["vertical_flip", "mosaic"])
def test_a_picture_shows_an_image_and_two_draws(figures, name):
    drawn = figures["figure"](name)
    height, width = figures["SIZE"]
    first, second = drawn[:, :width], drawn[:, width + 4 :][:, :width]
    assert drawn.shape == (height, 3 * width + 8, 3)
    assert (first != second).any()
    stored = np.asarray(Image.open(DOCS / f"figures/augmentation/{name}.jpg"))
    # JPEG, and the coding of other versions, change pixels a little.
    assert np.abs(stored.astype(int) - drawn).mean() < 8
