"""Every page and picture shows classes of any name, as text and without a warning."""

import html
import json
import warnings

import numpy as np
import pytest
from PIL import Image

from vfnet_tf.cli.__main__ import main
from vfnet_tf.data.scan.findings import Finding, Picture, ScanResult, SplitStatistics
from vfnet_tf.drawing import add_title, draw_detections
from vfnet_tf.foreign_text import figure_text, one_line, terminal_text
from vfnet_tf.reports import (
    compare_histories,
    evaluation_figures,
    plot_history,
    web_page,
)
from vfnet_tf.reports.scan import scan_page

NAMES = [
    "US$5_$10",
    "$",
    "$$",
    r"\$a\$",
    r"$\frac{1}$",
    r"$\undefined{$",
    "_hidden",
    "a_b^c",
    "\\",
    "<b>&amp;</b><script>alert(1)</script>",
    "\"'>]]><!--",
    "🐈 猫",
    "\u05d7\u05ea\u05d5\u05dc",
    "\u202eturned",
    "two\nlines\r\n",
    "\x1b[2J\x07",
    "\udcff",
    "x" * 5000,
    " ",
    "nolegend_",
]


@pytest.fixture(autouse=True)
def no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


def assert_plain(page):
    """A page that can be written, has no element of a name and steers no terminal."""
    page.encode()
    assert "<script" not in page and "<b>" not in page
    assert terminal_text(page) == page


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_figure_shows_the_name_as_it_is(name):
    from matplotlib.cbook import is_math_text
    from matplotlib.text import Text

    shown = Text(text=figure_text(name))
    plain, is_math = shown._preprocess_math(shown.get_text())
    assert not is_math and not is_math_text(shown.get_text())
    assert plain.removeprefix(" ") == one_line(name, 60).removeprefix(" ")
    assert not plain.startswith("_")


def test_the_page_of_a_scan(tmp_path):
    path = tmp_path / "grey.png"
    Image.new("RGB", (80, 60), (128, 128, 128)).save(path)
    boxes = tuple((2, 2, 30, 30) for _ in NAMES)
    counts = {name: 1 + k for k, name in enumerate(NAMES)}
    split = SplitStatistics(
        "a.json",
        "images",
        2,
        0,
        np.array([[60, 80]]),
        np.full((3, 2), 20, "float32"),
        np.full(3, 2, "float32"),
        np.array([3]),
        counts,
    )
    findings = [
        Finding("leakage", "train", name, 1, (Picture(str(path), boxes, tuple(NAMES)),))
        for name in NAMES
    ]
    result = ScanResult((800, 1333), 8, {"train": split}, findings)
    assert_plain(scan_page(result, NAMES[-6]).html())


def test_the_figures_of_an_evaluation():
    matrix = np.ones((len(NAMES) + 1, len(NAMES) + 1), int)
    confusion = evaluation_figures.confusion(matrix, NAMES)
    ones = np.linspace(1, 0, 101)

    class Curves:
        iou_thresholds = np.array([0.5])
        recalls = np.linspace(0, 1, 101)
        precision = np.broadcast_to(
            ones[:, None, None, None], (1, 101, len(NAMES), 1, 1)
        )[..., 0]

    # Ten classes in a figure, so that each name is in one.
    drawn = [confusion]
    for first in range(0, len(NAMES), 10):
        Curves.precision = np.repeat(ones[None, :, None, None], 10, axis=2)
        names = NAMES[first : first + 10]
        figure = evaluation_figures.precision_recall_by_class(Curves, names)
        (legend,) = [axes.get_legend() for axes in figure.axes]
        assert len(legend.get_texts()) == len(names)
        drawn.append(figure)
    cells = [(name, 0.5) for name in NAMES]
    table = web_page.table_html(("class", NAMES[3]), cells)
    page = web_page.WebPage(NAMES[9], NAMES[10])
    parts = [web_page.figure_html(figure, NAMES[11]) for figure in drawn]
    page.add(NAMES[0], table, *parts, note=NAMES[14])
    assert_plain(page.html())


@pytest.mark.parametrize("with_images", [True, False])
def test_the_page_of_an_evaluation(tmp_path, with_images):
    names = [name for name in NAMES if name.strip() and name != "\udcff"]
    (tmp_path / "val").mkdir()
    if with_images:
        Image.new("RGB", (300, 200), (90, 120, 150)).save(tmp_path / "val" / "a.png")
    boxes = [
        {"image_id": 1, "category_id": 1 + k, "bbox": [10 * k, 8 * k, 60, 40]}
        for k in range(len(names))
    ]
    truth = [
        {**box, "id": 1 + k, "area": 2400, "iscrowd": 0} for k, box in enumerate(boxes)
    ]
    # Each class is found as the next one: every name is in the confusions too.
    results = [{**box, "score": 0.9} for box in boxes]
    results += [
        {**box, "category_id": 1 + (k + 1) % len(names), "score": 0.8}
        for k, box in enumerate(boxes)
    ]
    image = {"id": 1, "file_name": "a.png", "width": 300, "height": 200}
    categories = [{"id": 1 + k, "name": name} for k, name in enumerate(names)]
    content = {"images": [image], "annotations": truth, "categories": categories}
    (tmp_path / "annotations").mkdir()
    data = tmp_path / "annotations" / "instances_val.json"
    data.write_text(json.dumps(content))
    (tmp_path / "results.json").write_text(json.dumps(results))
    report = tmp_path / "report.html"
    options = ["--results", tmp_path / "results.json", "--data", data]
    assert main(["evaluate", *map(str, options), "--report", str(report)]) == 0
    page = report.read_text("utf-8")
    assert_plain(page)
    for name in names:
        if len(name) < 60:
            assert html.escape(terminal_text(name)) in page, name


def test_the_curves_of_a_history_and_of_runs(tmp_path):
    columns = {f"{name}loss": [1.0, 0.5] for name in NAMES}
    plot_history({"epoch": [1, 2], **columns}, tmp_path / "history.png")
    with Image.open(tmp_path / "history.png") as picture:
        assert picture.size[0] > 100
    runs = {name: {"epoch": [1, 2], "loss": [1.0, 0.5]} for name in NAMES}
    (figure,) = compare_histories(runs)
    assert len(figure.axes[0].get_legend().get_texts()) == len(NAMES)
    assert_plain(web_page.figure_html(figure))


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_picture_with_the_name(name):
    image = np.full((120, 200, 3), 200, "uint8")
    drawn = draw_detections(image, [[20, 40, 90, 90]], [0], [0.5], [name], min_side=1)
    titled = add_title(image, name)
    captioned = draw_detections(
        image, [[20, 40, 90, 90]], [0], captions=[name], min_side=1
    )
    for picture in (drawn, titled[-120:], captioned):
        assert picture.shape == (120, 200, 3)
    # A caption has the height of one line.
    changed = np.flatnonzero((drawn != image).any(axis=(1, 2)))
    assert changed.min() >= 22
