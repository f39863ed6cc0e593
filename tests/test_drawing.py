import numpy as np
import pytest
from PIL import Image

from vfnet_tf.drawing import (
    add_title,
    class_color,
    draw_comparison,
    draw_detections,
    draw_grid,
    save_image,
)

GREY = 128


def grey_image(height=300, width=400):
    return np.full((height, width, 3), GREY, "uint8")


def draw(boxes, labels, image=None, **arguments):
    """Draws with thin lines, no captions and no enlargement, for exact pixels."""
    style = {"captions": False, "min_side": 1, "line_width": 1, **arguments}
    return draw_detections(
        grey_image() if image is None else image, boxes, labels, **style
    )


def read(path):
    with Image.open(path) as picture:
        return np.asarray(picture)


def colored(picture, label):
    return np.all(picture == np.array(class_color(label), "uint8"), axis=-1)


def test_a_box_is_drawn_on_its_own_pixels():
    # [10, 20) x [30, 60): columns 10..19, rows 30..59.
    image = grey_image()
    picture = draw([[10, 30, 20, 60]], [0], image=image)
    rows, columns = np.nonzero(colored(picture, 0))
    assert (rows.min(), rows.max()) == (30, 59)
    assert (columns.min(), columns.max()) == (10, 19)
    assert len(rows) == 2 * 10 + 2 * 28  # the outline only
    assert picture.shape == (300, 400, 3) and picture.dtype == np.uint8
    assert (image == GREY).all()  # drawn on a copy


def test_padding_low_scores_and_boxes_outside_are_not_drawn():
    boxes = [[0, 0, 50, 50], [60, 60, 90, 90], [500, 20, 600, 50], [5, -90, 50, -5]]
    picture = draw(
        boxes, [-1, 0, 0, 0], scores=[0.9, 0.2, 0.9, 0.9], score_threshold=0.3
    )
    assert (picture == GREY).all()
    # A score at the threshold is drawn.
    picture = draw([[60, 60, 90, 90]], [0], scores=[0.25], score_threshold=0.25)
    assert colored(picture, 0).any()


def test_a_box_over_the_border_is_cut_there():
    picture = draw([[-50, -50, 1000, 1000]], [1])
    outline = colored(picture, 1)
    assert outline[0].all() and outline[-1].all()
    assert outline[:, 0].all() and outline[:, -1].all()


def test_the_best_box_lies_on_top():
    boxes = [[10, 10, 60, 60], [10, 10, 60, 60]]
    for scores, top in (([0.9, 0.1], 0), ([0.1, 0.9], 1)):
        picture = draw(boxes, [0, 1], scores=scores)
        assert colored(picture, top).any() and not colored(picture, 1 - top).any()


def test_no_boxes_give_the_image_back():
    np.testing.assert_array_equal(draw(np.zeros((0, 4)), []), grey_image())
    np.testing.assert_array_equal(draw([], [], scores=[]), grey_image())


def test_a_caption_stands_above_its_box_in_its_color():
    picture = draw_detections(
        grey_image(), [[100, 100, 200, 200]], [0], [0.5], ["cat"], font_size=12
    )
    caption = colored(picture, 0)[84:96, 100:130]
    assert caption.mean() > 0.5  # filled, less the letters
    assert (picture[84:96, 100:130] == 255).all(axis=-1).any()  # white letters on red


def test_a_caption_stays_inside_the_image_at_every_border():
    corners = ([0, 0, 30, 30], [380, 0, 400, 20], [0, 280, 9, 300])
    for box in (*corners, [391, 291, 400, 300]):
        alone = draw([box], [0])
        picture = draw([box], [0], captions=True, class_names=["platelet"])
        added = colored(picture, 0).sum() - colored(alone, 0).sum()
        assert added > 300, box


def test_captions_of_neighbours_do_not_cover_each_other():
    # Four boxes with the same top left corner; each caption finds its own place.
    boxes = [[100, 100, 220 + 30 * i, 180 + 25 * i] for i in range(4)]
    together = draw(boxes, [0, 1, 2, 3], captions=True, class_names=["name"] * 4)
    for label in range(4):
        alone = draw([boxes[label]], [label], captions=True, class_names=["name"] * 4)
        lines = draw([boxes[label]], [label])
        caption = colored(alone, label).sum() - colored(lines, label).sum()
        assert colored(together, label).sum() > 0.9 * caption


@pytest.mark.parametrize(
    ("size", "factor"),
    [((10, 20), 26), ((256, 300), 1), ((10, 1000), 4), ((5000, 10), 1)],
)
def test_a_strip_is_not_enlarged_beyond_what_can_be_saved(size, factor):
    picture = draw_detections(np.zeros((*size, 3), "uint8"), [[1, 1, 9, 9]], [0])
    assert picture.shape[:2] == (size[0] * factor, size[1] * factor)


def test_a_small_image_is_enlarged_until_captions_are_readable():
    image = np.full((40, 60, 3), GREY, "uint8")
    picture = draw_detections(image, [[10, 10, 20, 20]], [0], min_side=100)
    assert picture.shape == (120, 180, 3)  # 3 x 40 is the first that reaches 100
    bare = draw([[10, 10, 20, 20]], [0], image=image, min_side=100)
    rows, columns = np.nonzero(colored(bare, 0))
    assert (rows.min(), columns.max()) == (30, 59)


def test_lines_and_letters_grow_with_the_image():
    thin = draw_detections(grey_image(300, 300), [[50, 50, 250, 250]], [0])
    image = grey_image(3000, 3000)
    thick = draw_detections(image, [[500, 500, 2500, 2500]], [0])
    assert colored(thin, 0)[150].sum() == 2  # 1 pixel on each side
    assert colored(thick, 0)[1500].sum() == 24
    # 64 pixels are the largest letters: the caption above row 500 starts before 440.
    assert colored(thick, 0)[440].any()


@pytest.mark.parametrize("shape", [(300, 400), (300, 400, 1)])
def test_grey_and_float_images_are_taken(shape):
    image = np.full(shape, 127.6, "float32")
    picture = draw([[10, 10, 60, 60]], [0], image=image)
    assert picture.shape == (300, 400, 3) and (picture[200, 200] == 128).all()
    image[0, 0], image[0, 1] = -50, 300  # clipped
    picture = draw([], [], image=image)
    assert picture[0, 0, 0] == 0 and picture[0, 1, 0] == 255


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"boxes": [[0, 0, 1]], "labels": [0]}, r"boxes=\(1, 3\)"),
        ({"boxes": [[0, 0, 1, 1]], "labels": [0, 1]}, r"labels=\(2,\)"),
        ({"boxes": [[0, 0, 1, 1]], "labels": [0], "scores": [1, 1]}, r"scores=\(2,\)"),
        ({"boxes": [[0, 0, np.nan, 1]], "labels": [0]}, r"boxes\[0\]=\[0.0, 0.0, nan"),
        ({"boxes": [], "labels": [], "image": np.zeros((4, 4, 4))}, r"\(4, 4, 4\)"),
        ({"boxes": [], "labels": [], "image": np.zeros((0, 4, 3))}, r"\(0, 4, 3\)"),
        (
            {"boxes": [[0, 0, 9, 9]], "labels": [1], "class_names": ["cat"]},
            "label=1, 1 class names",
        ),
    ],
)
def test_arrays_and_names_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        draw(**{**arguments, "captions": True})


def test_colors_of_the_first_thirty_classes_differ_and_never_change():
    colors = [class_color(label) for label in range(30)]
    assert colors == [class_color(np.int32(label)) for label in range(30)]
    distances = [
        np.abs(np.subtract(a, b)).sum()
        for i, a in enumerate(colors)
        for b in colors[i + 1 :]
    ]
    assert min(distances) >= 20
    with pytest.raises(ValueError, match="label=-1"):
        class_color(-1)


def test_the_comparison_shows_truth_left_and_confident_detections_right():
    truth = {"boxes": [[10, 10, 90, 90], [0, 0, 0, 0]], "labels": [0, -1]}
    found = {
        "boxes": [[20, 20, 80, 80], [100, 100, 150, 150], [200, 200, 250, 250]],
        "scores": [0.9, 0.1, 0.8],
        "labels": [1, 2, 3],
        "num_detections": 2,
    }
    picture = draw_comparison(grey_image(), truth, found)
    middle = picture.shape[1] // 2
    left, right = picture[:, :middle], picture[:, middle:]
    assert colored(left, 0).any() and not colored(right, 0).any()
    assert colored(right, 1).any() and not colored(left, 1).any()
    assert not colored(picture, 2).any()  # below the threshold
    assert not colored(picture, 3).any()  # beyond num_detections
    assert picture.shape[1] == 2 * 400 + 8 and picture.shape[0] > 300


def test_a_grid_fills_rows_and_leaves_the_rest_white():
    images = [np.full((20, 30, 3), value, "uint8") for value in (10, 20, 30)]
    grid = draw_grid(images, columns=2, gap=4)
    assert grid.shape == (44, 64, 3)
    assert (grid[:20, :30] == 10).all() and (grid[:20, 34:] == 20).all()
    assert (grid[24:, :30] == 30).all()
    assert (grid[24:, 34:] == 255).all() and (grid[20:24] == 255).all()


def test_a_grid_chooses_columns_and_shrinks_into_cells():
    images = [grey_image(100, 200)] * 5
    assert draw_grid(images, gap=0).shape == (200, 600, 3)  # 3 columns, 2 rows
    assert draw_grid(images, gap=0, cell_size=(50, 50)).shape == (50, 150, 3)
    assert draw_grid(images[:1], columns=4).shape == (100, 200, 3)
    with pytest.raises(ValueError, match="at least one image"):
        draw_grid([])
    with pytest.raises(ValueError, match="columns=0"):
        draw_grid(images, columns=0)


def test_a_title_that_is_too_long_is_cut_to_the_width():
    picture = add_title(grey_image(), "w" * 500)
    assert picture.shape[1] == 400 and picture.shape[0] > 300
    assert (picture[-300:] == GREY).all()
    assert (picture[:-300, -4:] == 255).all()


def test_saved_images_come_back(tmp_path):
    image = np.arange(30 * 20 * 3, dtype="uint8").reshape(30, 20, 3)
    save_image(tmp_path / "new" / "picture.png", image)
    np.testing.assert_array_equal(read(tmp_path / "new" / "picture.png"), image)
    save_image(tmp_path / "new" / "picture.jpg", image)
    assert read(tmp_path / "new" / "picture.jpg").shape == (30, 20, 3)
    names = sorted(path.name for path in (tmp_path / "new").iterdir())
    assert names == ["picture.jpg", "picture.png"]


def test_each_box_can_have_its_own_color_and_text():
    boxes, red = [[50, 50, 150, 150], [200, 100, 300, 200]], (255, 0, 0)
    style = {"captions": ["", "missed"], "colors": [red, (0, 0, 255)]}
    picture = draw_detections(grey_image(), boxes, [0, 0], **style)
    assert (picture == red).all(axis=-1)[50:150, 50:150].any()
    # Blue: the border, and the ground of the caption above it.
    is_blue = (picture == (0, 0, 255)).all(axis=-1)
    assert is_blue[:99].sum() > 100 and not is_blue[:, :198].any()
    without = draw_detections(
        grey_image(), boxes, [0, 0], **{**style, "captions": False}
    )
    np.testing.assert_array_equal(picture[:, :190], without[:, :190])
