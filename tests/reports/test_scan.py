import numpy as np
import pytest
from PIL import Image

from vfnet_tf.data.scan.findings import Finding, Picture, ScanResult, SplitStatistics
from vfnet_tf.drawing import class_color
from vfnet_tf.reports import scan
from vfnet_tf.reports.scan import draw_picture, scan_page


@pytest.fixture
def grey(tmp_path):
    """A grey image of 400x300 with a white pixel block at (200, 150)."""
    pixels = np.full((300, 400, 3), 128, "uint8")
    pixels[148:152, 198:202] = 255
    path = tmp_path / "grey.png"
    Image.fromarray(pixels).save(path)
    return str(path)


def where(pixels, color):
    """(x1, y1, x2, y2) of all pixels of a colour."""
    rows, columns = np.nonzero((pixels == color).all(axis=-1))
    return columns.min(), rows.min(), columns.max(), rows.max()


def test_a_box_is_drawn_at_the_scale_of_the_thumbnail(grey):
    pixels = draw_picture(Picture(grey, ((100, 50, 300, 250),)), side=200)
    assert pixels.shape == (150, 200, 3)
    assert where(pixels, class_color(0)) == (50, 25, 149, 124)


def test_a_small_box_is_shown_from_close_by(grey):
    pixels = draw_picture(Picture(grey, ((196, 146, 204, 154),)), side=240)
    # 24 pixels to each side of the center, five times enlarged.
    assert pixels.shape == (240, 240, 3)
    assert where(pixels, class_color(0)) == (100, 100, 139, 139)
    assert (pixels[118:122, 118:122] == 255).all()


def test_a_box_that_reaches_outside_is_shown_whole_but_not_a_million_pixels(grey):
    pixels = draw_picture(Picture(grey, ((300, 100, 500, 200),)), side=250)
    assert pixels.shape == (150, 250, 3)
    assert where(pixels, class_color(0)) == (150, 50, 249, 99)
    pixels = draw_picture(Picture(grey, ((-1e9, 100, 1e9, 200),)), side=240)
    assert pixels.shape == (60, 240, 3)


def test_two_classes_have_two_colours_and_bad_files_no_picture(grey, tmp_path):
    boxes = ((100, 50, 300, 250), (120, 70, 280, 230))
    pixels = draw_picture(Picture(grey, boxes, ("cell", "platelet")))
    assert where(pixels, class_color(0)) and where(pixels, class_color(1))
    (tmp_path / "text.jpg").write_text("no image")
    assert draw_picture(Picture(str(tmp_path / "text.jpg"))) is None
    # A box without extent is no reason to fail.
    assert draw_picture(Picture(grey, ((10, 10, 5, 18),))).shape == (240, 320, 3)


def statistics(counts, num_boxes=3):
    return SplitStatistics(
        "a.json",
        "images",
        2,
        0,
        np.array([[300, 400], [30, 40]]),
        np.array([[10, 20]] * num_boxes, "float32").reshape(-1, 2),
        np.full(num_boxes, 2, "float32"),
        np.array([num_boxes, 0]),
        counts,
    )


def test_the_page_has_a_section_for_each_level_that_was_found(grey):
    findings = [
        Finding("leakage", "train+val", "a & b", 2, (Picture(grey), Picture(grey))),
        Finding("bad_box", "train", "<b>", 1, (Picture("nowhere.jpg"),)),
    ]
    splits = {"train": statistics({"<cell>": 3}), "val": statistics({"<cell>": 0}, 0)}
    page = scan_page(ScanResult((800, 1333), 8, splits, findings), "cells")
    headings = [heading for heading, _, _ in page.sections]
    assert headings == ["Findings", "Images and boxes", "Classes", "Errors", "Warnings"]
    text = page.html()
    assert "Not safe to train on: 1 error, 1 warning, 0 notes." in text
    assert "a &amp; b" in text and "&lt;b&gt;" in text and "&lt;cell&gt;" in text
    assert text.count("data:image/jpeg") == 2 and text.count("image/svg") == 2


def test_a_picture_of_one_finding_says_what_and_of_several_which(grey):
    findings = [
        Finding(
            "degenerate_box", "train", "annotation 7 is empty", 1, (Picture(grey),)
        ),
        Finding("leakage", "train+val", "two alike", 2, (Picture(grey),)),
    ]
    text = scan_page(ScanResult((800, 1333), 8, {}, findings), "cells").html()
    assert "<figcaption>train: annotation 7 is empty</figcaption>" in text
    assert "<figcaption>train+val: grey.png</figcaption>" in text


def test_many_findings_and_classes_are_cut_and_nothing_is_lost_silently(grey):
    findings = [
        Finding("bad_box", "train", f"box {n}", 1, (Picture(grey),)) for n in range(105)
    ]
    counts = {f"class {n}": n for n in range(60)}
    splits = {"train": statistics(counts)}
    text = scan_page(ScanResult((800, 1333), 8, splits, findings), "cells").html()
    assert text.count("data:image/jpeg") == scan.MAX_PICTURES
    assert "box 99<" in text and "box 100<" not in text
    assert "and 5 more, see scan.json" in text
    assert all(f">{name}<" in text for name in counts)


def test_a_set_that_could_not_be_read_has_a_page_too():
    findings = [Finding("unreadable_split", "train", "no json")]
    page = scan_page(ScanResult((800, 1333), 8, {}, findings), "cells")
    assert [heading for heading, _, _ in page.sections] == ["Findings", "Errors"]
