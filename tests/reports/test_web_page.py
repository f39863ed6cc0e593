import html.parser
import re

import matplotlib.figure
import numpy as np
import pytest

from vfnet_tf.reports import web_page


class Outline(html.parser.HTMLParser):
    """Tags, attributes and texts in order; raises if tags do not match."""

    def __init__(self, text):
        super().__init__()
        self.texts, self.sources, self.open = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "img"):
            self.open.append(tag)
        self.sources += [v for k, v in attributes if k in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def make_page():
    page = web_page.WebPage("Cells & more", "3 < 4")
    table = web_page.table_html(("class", "AP"), [("<b>disc", 0.12345), ("x", None)])
    page.add("Numbers", table, note="A <dash> where nothing is.")
    figure = matplotlib.figure.Figure()
    figure.subplots().plot([0, 1])
    picture = web_page.image_html(np.zeros((20, 1000, 3), "uint8"), 'a "wide" one')
    page.add("Pictures", web_page.figure_html(figure), web_page.gallery_html([picture]))
    return page


def test_texts_are_escaped_and_numbers_rounded():
    texts = Outline(make_page().html()).texts
    for text in ("Cells & more", "3 < 4", "<b>disc", "0.123", "–", 'a "wide" one'):
        assert text in texts
    assert "A <dash> where nothing is." in texts


def test_nothing_is_loaded_from_elsewhere_and_nothing_runs():
    page = make_page().html()
    sources = Outline(page).sources
    outside = [source[:9] for source in sources if source[0] != "#"]
    assert outside == ["data:imag"] * 2
    assert [source for source in sources if source[0] == "#"] == ["#s0", "#s1"]
    assert "<script" not in page and not re.search(r"url\(", page)


def test_a_page_that_cannot_be_written_leaves_the_old_one(tmp_path):
    path = make_page().save(tmp_path / "folder" / "report.html")
    old = path.read_bytes()
    broken = web_page.WebPage("x")
    broken.add("half", 5)  # no str: joining fails while the file is written
    with pytest.raises(TypeError):
        broken.save(path)
    assert path.read_bytes() == old
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


def test_a_large_picture_is_made_smaller():
    small = web_page.image_html(np.zeros((40, 40, 3), "uint8"))
    large = web_page.image_html(np.zeros((4000, 4000, 3), "uint8"), max_side=40)
    assert len(large) == len(small)


def test_columns_of_words_stand_left_and_numbers_right():
    rows = [("a", 0.5, "+1.0 %", "word"), ("b", None, "–", "3 words")]
    table = web_page.table_html(("name", "value", "part", "text"), rows)
    assert '<th>value</th><th>part</th><th class="text">text</th>' in table
    assert '<td class="text">3 words</td>' in table and "<td>+1.0 %</td>" in table
    assert "<th>value</th>" in web_page.table_html(("name", "value"), [])


def test_a_figure_gives_equal_bytes_each_time():
    figures = [matplotlib.figure.Figure() for _ in range(2)]
    for figure in figures:
        figure.subplots().plot([0, 1])
    first, second = map(web_page.figure_html, figures)
    assert first == second
