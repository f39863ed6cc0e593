"""Draws boxes, grids and titles on images."""

import colorsys
import functools
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vfnet_tf.files import replacing
from vfnet_tf.foreign_text import one_line

# Ten colours that differ well on photographs and in print; further ones are computed.
_COLORS = (
    (228, 50, 45),
    (35, 120, 225),
    (50, 175, 70),
    (255, 165, 0),
    (155, 65, 205),
    (0, 190, 200),
    (245, 90, 185),
    (185, 205, 30),
    (145, 90, 45),
    (95, 110, 135),
)
_GOLDEN_RATIO = 0.618034
_MAX_ENLARGED_SIDE = 4096
_PAPER = (255, 255, 255)
_INK = (20, 20, 20)


def class_color(label):
    """Returns the colour of a class, always the same one.

    Args:
        label: int, 0 or more.

    Returns:
        `(red, green, blue)`, ints in 0..255.
    """
    label = int(label)
    if label < 0:
        raise ValueError(f"`label` must be >= 0. Received: label={label}")
    if label < len(_COLORS):
        return _COLORS[label]
    # Steps of the golden ratio keep hues away from recent ones.
    hue = (label * _GOLDEN_RATIO) % 1.0
    saturation, value = ((0.85, 0.9), (0.55, 0.95), (0.9, 0.6))[label % 3]
    return tuple(round(255 * x) for x in colorsys.hsv_to_rgb(hue, saturation, value))


def draw_detections(
    image,
    boxes,
    labels,
    scores=None,
    class_names=None,
    *,
    score_threshold=0.0,
    captions=True,
    colors=None,
    min_side=256,
    line_width=None,
    font_size=None,
):
    """Draws boxes with captions on a copy of an image.

    The best box lies on top. Captions move to the nearest free place around their box.

    Args:
        image: uint8 or float `[h, w, 3]`, `[h, w, 1]` or `[h, w]` in 0..255.
        boxes: float `[N, 4]` xyxy, pixels of `image`; cut at its border.
        labels: int `[N]`; rows with a negative label are padding and are skipped.
        scores: float `[N]` in [0, 1], shown with two decimals, or None for ground
            truth.
        class_names: sequence of names by label, or None for the label's number.
        score_threshold: float, boxes with a lower score are not drawn.
        captions: bool, False draws boxes only; or N texts in place of names and scores,
            empty ones for boxes without.
        colors: int `[N, 3]` RGB, in place of the colours of the classes.
        min_side: int pixels; an image with a shorter side is enlarged by a whole
            factor to this size, so that captions are readable, unless the longer side
            would pass 4096. 1 never enlarges.
        line_width, font_size: int pixels, by the image's size if None.

    Returns:
        uint8 `[h * f, w * f, 3]`, f the factor of `min_side`, 1 for most images.

    Raises:
        ValueError: shapes that do not agree, boxes that are not finite, a label
            without a name.
    """
    boxes, labels, scores = _checked_boxes(boxes, labels, scores)
    canvas = _as_canvas(image)
    factor = -(-int(min_side) // min(canvas.size))
    # A strip of 20000x10 would become too large for a JPEG.
    factor = max(1, min(factor, _MAX_ENLARGED_SIDE // max(canvas.size)))
    if factor > 1:
        size = (canvas.width * factor, canvas.height * factor)
        canvas = canvas.resize(size, Image.Resampling.NEAREST)
    width, height = canvas.size
    line_width = line_width or max(1, round(min(width, height) / 250))
    font_size = font_size or int(np.clip(min(width, height) / 36, 11, 64))
    painter = ImageDraw.Draw(canvas)

    keep = labels >= 0
    if scores is not None:
        keep &= scores >= score_threshold
    order = np.flatnonzero(keep)
    if scores is not None:
        order = order[np.argsort(scores[order], kind="stable")]
    visible = []
    for row in order:
        corners = _visible_corners(boxes[row] * factor, width, height)
        if corners is None:
            continue  # outside the image
        visible.append((row, corners))
        color = _color_of(labels, row, colors)
        # A dark line beneath shows the box on a background of its own colour.
        _rectangle(painter, corners, _shade(color), line_width + 2, inset=-1)
        _rectangle(painter, corners, color, line_width)
    if captions is not False:
        font, taken = _font(font_size), []
        places = []
        for row, corners in reversed(visible):  # the best box chooses its place first
            if captions is True:
                text = _caption(labels[row], scores, row, class_names)
            else:
                text = one_line(captions[row], 80)
            if not text:
                continue
            place = _caption_place(painter, text, font, corners, canvas.size, taken)
            taken.append(place)
            places.append((row, text, place))
        for row, text, place in reversed(places):
            color = _color_of(labels, row, colors)
            _write_caption(painter, text, font, place, color)
    return np.asarray(canvas)


def draw_comparison(
    image, ground_truth, detections, class_names=None, *, score_threshold=0.3, **style
):
    """Draws ground truth (left) beside detections (right), each with a title.

    Args:
        image: see `draw_detections`.
        ground_truth: dict `{"boxes": [M, 4], "labels": [M]}`, -1 pads.
        detections: dict `{"boxes": [D, 4], "scores": [D], "labels": [D]}` of the same
            image, -1 pads; optionally `num_detections`, the number of valid rows.
        class_names: sequence of names by label, or None.
        score_threshold: float, detections with a lower score are not drawn.
        **style: further arguments of `draw_detections`.

    Returns:
        uint8 `[h', w', 3]`.
    """
    count = detections.get("num_detections")
    rows = slice(None if count is None else int(np.asarray(count)))
    found = {
        key: np.asarray(detections[key])[rows] for key in ("boxes", "scores", "labels")
    }
    left = draw_detections(
        image,
        ground_truth["boxes"],
        ground_truth["labels"],
        class_names=class_names,
        **style,
    )
    right = draw_detections(
        image,
        found["boxes"],
        found["labels"],
        found["scores"],
        class_names,
        score_threshold=score_threshold,
        **style,
    )
    num_true = int(np.sum(np.asarray(ground_truth["labels"]) >= 0))
    shown = (found["labels"] >= 0) & (found["scores"] >= score_threshold)
    panels = [
        add_title(left, f"ground truth: {num_true}"),
        add_title(
            right, f"detections with score >= {score_threshold:g}: {shown.sum()}"
        ),
    ]
    return draw_grid(panels, columns=2)


def draw_grid(images, columns=None, *, cell_size=None, gap=8):
    """Lays images out row by row on white.

    Args:
        images: sequence of images, see `draw_detections`; sizes may differ.
        columns: int, by default about as many as rows.
        cell_size: largest (height, width) of an image in pixels; larger images are
            shrunk. By default the largest height and width of the images.
        gap: int pixels between images.

    Returns:
        uint8 `[H, W, 3]`.

    Raises:
        ValueError: no image, or `columns` below 1.
    """
    canvases = [_as_canvas(image) for image in images]
    if not canvases:
        raise ValueError("A grid must have at least one image. Received: images=[]")
    if columns is None:
        columns = int(np.ceil(np.sqrt(len(canvases))))
    if columns < 1:
        raise ValueError(f"`columns` must be >= 1. Received: columns={columns}")
    columns = min(columns, len(canvases))
    if cell_size is not None:
        for canvas in canvases:
            canvas.thumbnail((cell_size[1], cell_size[0]), Image.Resampling.LANCZOS)
    width = max(canvas.width for canvas in canvases)
    height = max(canvas.height for canvas in canvases)
    rows = -(-len(canvases) // columns)
    size = (columns * (width + gap) - gap, rows * (height + gap) - gap)
    grid = Image.new("RGB", size, _PAPER)
    for number, canvas in enumerate(canvases):
        row, column = divmod(number, columns)
        grid.paste(canvas, (column * (width + gap), row * (height + gap)))
    return np.asarray(grid)


def add_title(image, text):
    """Sets a line of text above an image; a longer line is cut to the width.

    Returns:
        uint8 `[h + strip, w, 3]`.
    """
    canvas, text = _as_canvas(image), one_line(text)
    font = _font(int(np.clip(min(canvas.size) / 28, 13, 72)))
    painter = ImageDraw.Draw(canvas)
    while text and painter.textlength(text, font=font) > canvas.width - 8:
        text = text[:-2].rstrip() + "…" if len(text) > 2 else ""
    ascent, descent = font.getmetrics()
    strip = ascent + descent + 8
    titled = Image.new("RGB", (canvas.width, canvas.height + strip), _PAPER)
    titled.paste(canvas, (0, strip))
    ImageDraw.Draw(titled).text((4, 4), text, fill=_INK, font=font)
    return np.asarray(titled)


def save_image(path, image):
    """Writes an image as PNG or JPEG, by the path's ending; whole or not at all.

    Missing folders are made.
    """
    with replacing(path, is_shared=True) as temporary:
        _as_canvas(image).save(temporary, quality=92)


def _as_canvas(image):
    """Copies an array to a PIL RGB image."""
    pixels = np.asarray(image)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.shape[-1] not in (1, 3) or 0 in pixels.shape:
        raise ValueError(
            "An image must be [h, w, 3], [h, w, 1] or [h, w]. Received: "
            f"shape={np.shape(image)}"
        )
    if pixels.dtype != np.uint8:
        pixels = np.clip(np.round(pixels.astype("float32")), 0, 255).astype("uint8")
    if pixels.shape[-1] == 1:
        pixels = np.repeat(pixels, 3, axis=-1)
    return Image.fromarray(np.ascontiguousarray(pixels))


def _checked_boxes(boxes, labels, scores):
    labels = np.asarray(labels).reshape(-1).astype("int64")
    boxes = np.asarray(boxes, "float64")
    if boxes.size == 0:
        boxes = boxes.reshape(-1, 4)
    scores = None if scores is None else np.asarray(scores, "float64")
    if boxes.shape != (len(labels), 4) or (
        scores is not None and scores.shape != labels.shape
    ):
        raise ValueError(
            "Boxes must be [N, 4], labels and scores [N]. Received: "
            f"boxes={boxes.shape}, labels={labels.shape}, "
            f"scores={None if scores is None else scores.shape}"
        )
    broken = ~np.isfinite(boxes).all(axis=-1) & (labels >= 0)
    if broken.any():
        row = int(np.flatnonzero(broken)[0])
        raise ValueError(
            f"Boxes must be finite. Received: boxes[{row}]={boxes[row].tolist()}"
        )
    return boxes, labels, scores


def _visible_corners(box, width, height):
    """Returns int corners inside the image, inclusive, or None if there are none."""
    x1, y1, x2, y2 = box
    if x2 < 0 or y2 < 0 or x1 >= width or y1 >= height or x2 < x1 or y2 < y1:
        return None
    corners = np.array([x1, y1, x2 - 1, y2 - 1]).round()
    limit = np.array([width, height, width, height]) - 1
    x1, y1, x2, y2 = np.clip(corners, 0, limit).astype(int).tolist()
    return x1, y1, max(x1, x2), max(y1, y2)


def _rectangle(painter, corners, color, line_width, inset=0):
    x1, y1, x2, y2 = corners
    corners = (x1 + inset, y1 + inset, x2 - inset, y2 - inset)
    painter.rectangle(corners, outline=color, width=line_width)


def _shade(color):
    return tuple(value // 4 for value in color)


def _color_of(labels, row, colors):
    if colors is None:
        return class_color(labels[row])
    return tuple(int(value) for value in colors[row])


def _caption(label, scores, row, class_names):
    label = int(label)
    if class_names is None:
        name = str(label)
    elif label < len(class_names):
        name = str(class_names[label])
    else:
        raise ValueError(
            f"Each label must have a name. Received: label={label}, "
            f"{len(class_names)} class names"
        )
    name = one_line(name, 60)
    return name if scores is None else f"{name} {scores[row]:.2f}"


def _caption_place(painter, text, font, corners, size, taken):
    """Finds the rectangle for a caption that covers the least of the others.

    Returns:
        `(x1, y1, x2, y2)` pixels inside the image, if it is large enough.
    """
    x1, y1, x2, y2 = corners
    left, _, right, _ = painter.textbbox((0, 0), text, font=font)
    ascent, descent = font.getmetrics()
    width, height = right - left + 4, ascent + descent
    wishes = [
        (x1, y1 - height),  # above, the usual place
        (x2 - width + 1, y1 - height),
        (x1, y2 + 1),  # below
        (x1, y1),  # inside, at the top and the bottom
        (x1, y2 - height + 1),
        (x2 - width + 1, y2 + 1),
    ]
    best, least = None, None
    for number, (x, y) in enumerate(wishes):
        # A wish that has to move into the image may cover the box: later ones win.
        inside_x = min(max(x, 0), max(size[0] - width, 0))
        inside_y = min(max(y, 0), max(size[1] - height, 0))
        place = (inside_x, inside_y, inside_x + width, inside_y + height)
        covered = sum(_overlap(place, other) for other in taken)
        cost = (covered, inside_y != y, number)
        if least is None or cost < least:
            best, least = place, cost
    return best


def _overlap(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(width, 0) * max(height, 0)


def _write_caption(painter, text, font, place, color):
    painter.rectangle((place[0], place[1], place[2] - 1, place[3] - 1), fill=color)
    # Rec. 601 luma: black on light colours, white on dark ones.
    luma = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]
    ink = (0, 0, 0) if luma > 140 else (255, 255, 255)
    painter.text((place[0] + 2, place[1]), text, fill=ink, font=font)


@functools.lru_cache(maxsize=32)
def _font(size):
    """Loads DejaVu Sans, which matplotlib ships: Latin, Greek, Cyrillic and more."""
    import matplotlib

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    try:
        return ImageFont.truetype(str(path), size)
    except OSError:
        return ImageFont.load_default(size)
