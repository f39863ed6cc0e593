"""The page of `vfnet scan`: findings, histograms and pictures of the worst cases."""

import pathlib

import numpy as np
from PIL import Image

from vfnet_tf.data.images.numpy_decode import load_image
from vfnet_tf.data.scan.kinds import KINDS, LEVELS
from vfnet_tf.drawing import draw_detections
from vfnet_tf.foreign_text import figure_text
from vfnet_tf.reports import web_page
from vfnet_tf.reports.curves import new_figure

#: Largest number of pictures and lines of a kind; scan.json has all.
MAX_PICTURES = 12
MAX_LINES = 100
#: Largest number of classes with a bar; the table has all.
MAX_BARS = 40

_THUMB_SIDE = 320
# Pictures of each group, for the kinds that concern pairs of images.
_PER_GROUP = 2
_GROUPS = ("leakage", "shared_by_evaluations", "duplicate_image")
# A box below this share of the image's longer side is enlarged.
_CLOSE = 0.15


def scan_page(result, title):
    """Makes the page.

    Args:
        result: `data.scan.ScanResult`.
        title: str, name of the data.

    Returns:
        `WebPage`.
    """
    verdict = result.verdict()
    page = web_page.WebPage(f"Scan of {title}", f"{verdict[0].upper()}{verdict[1:]}.")
    found = result.by_kind()
    if found:
        rows = [
            (
                KINDS[kind].level,
                KINDS[kind].title,
                sum(finding.count for finding in findings),
                KINDS[kind].advice,
            )
            for kind, findings in found.items()
        ]
        header = ("level", "what was found", "count", "what it means")
        page.add("Findings", web_page.table_html(header, rows))
    if result.splits:
        _add_splits(page, result)
        page.add(
            "Classes",
            web_page.figure_html(_class_figure(result.splits)),
            _class_table(result.splits),
        )
    for level in LEVELS:
        parts = [
            part
            for kind, findings in found.items()
            if KINDS[kind].level == level
            for part in _kind_parts(kind, findings)
        ]
        if parts:
            page.add(f"{level.capitalize()}s", *parts)
    return page


def _add_splits(page, result):
    """Adds the section on images and boxes of each split."""
    names = "images images_listed images_without_objects boxes crowd_regions"
    spreads = "image_height image_width objects_per_image box_height_at_training_size "
    spreads += "box_width_at_training_size"
    numbers = [split.to_json() for split in result.splits.values()]

    def cell(value):
        if value is None:
            return "–"
        return f"{value['min']:.4g} / {value['mean']:.4g} / {value['max']:.4g}"

    rows = [
        (name.replace("_", " "), *(one[name] for one in numbers))
        for name in names.split()
    ]
    rows += [
        (
            f"{name.replace('_', ' ')} (min / mean / max)",
            *(cell(one[name]) for one in numbers),
        )
        for name in spreads.split()
    ]
    table = web_page.table_html(("", *result.splits), rows)
    size = "{} x {}".format(*result.image_size)
    page.add(
        "Images and boxes",
        table,
        web_page.figure_html(_histograms(result)),
        note=f"The training size is {size} pixels. Images are those that can be used, "
        "upright; boxes those that training keeps.",
    )


def _histograms(result):
    """Box sizes, aspect ratios, objects per image and image sizes, by split."""
    figure = new_figure(10.5, 7)
    (sides, ratios), (objects, images) = figure.subplots(2, 2)
    splits = result.splits
    shorter = {name: split.box_sizes.min(axis=1) for name, split in splits.items()}
    _plot_shares(sides, shorter, "boxes", log=True)
    sides.axvline(result.small_side, color="0.4", linestyle=":")
    sides.set_title(
        f"shorter side at the training size (dotted: {result.small_side:g})"
    )
    sides.set_xlabel("pixels")
    aspects = {name: split.aspect_ratios for name, split in splits.items()}
    _plot_shares(ratios, aspects, "boxes", log=True)
    ratios.set_title("aspect ratio of boxes")
    ratios.set_xlabel("width / height")
    counts = {name: split.objects_per_image for name, split in splits.items()}
    _plot_shares(objects, counts, "images", log=False)
    objects.set_title("objects per image")
    objects.set_xlabel("objects")
    for name, split in splits.items():
        sizes, number = np.unique(split.image_sizes, axis=0, return_counts=True)
        area = 12 + 150 * np.sqrt(number / number.max())
        images.scatter(
            sizes[:, 1], sizes[:, 0], area, alpha=0.5, label=name, rasterized=True
        )
    images.set(xlim=(0, None), ylim=(0, None))
    images.set_title("image sizes (larger dots: more images)")
    images.set_xlabel("width")
    images.set_ylabel("height")
    for axes in (sides, ratios, objects, images):
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="small")
    return figure


def _plot_shares(axes, values, what, log):
    """Histograms of shares, so that splits of different size compare."""
    from matplotlib.ticker import LogLocator, NullFormatter

    values = {name: array for name, array in values.items() if len(array)}
    axes.set_ylabel(f"% of {what}")
    if not values:
        return
    together = np.concatenate(list(values.values()))
    low, high = float(together.min()), float(together.max())
    if log:
        bins = np.geomspace(low / 1.05, high * 1.05, 41)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        step = max(1, int(np.ceil((high - low + 1) / 40)))
        bins = np.arange(low, high + step + 1, step) - 0.5
    for name, array in values.items():
        weights = np.full(len(array), 100 / len(array))
        axes.hist(array, bins, weights=weights, histtype="step", label=name)


def _class_figure(splits):
    """Bars of the number of boxes of each class, by split."""
    total = {}
    for split in splits.values():
        for name, count in split.class_counts.items():
            total[name] = total.get(name, 0) + count
    names = sorted(total, key=total.get, reverse=True)
    shown = names
    if len(names) > MAX_BARS:
        shown = names[: MAX_BARS // 2] + names[-MAX_BARS // 2 :]
    figure = new_figure(10.5, 1.2 + 0.22 * len(shown) * max(1, len(splits)) ** 0.5)
    axes = figure.subplots()
    height = 0.8 / len(splits)
    for number, (split_name, split) in enumerate(splits.items()):
        places = np.arange(len(shown)) + number * height
        widths = [split.class_counts.get(name, 0) for name in shown]
        axes.barh(places, widths, height, label=split_name, align="edge")
    # Symlog, so that a class with one box has a bar and one without has none.
    axes.set_xscale("symlog", linthresh=1)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_yticks(np.arange(len(shown)) + 0.4, [figure_text(name) for name in shown])
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.set_xlabel("boxes")
    if shown is not names:
        half = MAX_BARS // 2
        axes.set_title(f"the {half} most and the {half} least frequent classes")
    axes.grid(alpha=0.3, axis="x")
    axes.legend(fontsize="small")
    return figure


def _class_table(splits):
    names = dict.fromkeys(
        name for split in splits.values() for name in split.class_counts
    )
    rows = [
        (name, *(split.class_counts.get(name) for split in splits.values()))
        for name in names
    ]
    return web_page.table_html(
        ("class", *(f"boxes in {name}" for name in splits)), rows
    )


def _kind_parts(kind, findings):
    """Yields the parts of a section with text and pictures of one kind of findings."""
    lines = [(finding.split, finding.text) for finding in findings[:MAX_LINES]]
    if len(findings) > MAX_LINES:
        lines.append(("", f"and {len(findings) - MAX_LINES} more, see scan.json"))
    images = []
    for finding in findings:
        pictures = finding.pictures[: _PER_GROUP if kind in _GROUPS else MAX_PICTURES]
        for picture in pictures:
            if len(images) >= MAX_PICTURES:
                break
            pixels = draw_picture(picture)
            if pixels is not None:
                name = pathlib.Path(picture.path).name
                caption = finding.text if finding.count == 1 else name
                caption = f"{finding.split}: {caption}"
                images.append(web_page.image_html(pixels, caption, _THUMB_SIDE))
    title = KINDS[kind].title
    yield web_page.subheading_html(f"{title[0].upper()}{title[1:]}", KINDS[kind].advice)
    yield web_page.table_html(("split", "what"), lines)
    if images:
        yield web_page.gallery_html(images)


def draw_picture(picture, side=_THUMB_SIDE):
    """Draws the boxes of a `data.scan.Picture` and enlarges small ones.

    A box outside the image is shown with a margin, at most as large as the image.

    Args:
        picture: `Picture`.
        side: int, pixels of the longer side.

    Returns:
        uint8 `[h, w, 3]`; None if the image cannot be decoded.
    """
    try:
        image = Image.fromarray(load_image(picture.path))
    except Exception:  # PIL's decoders raise errors of many classes.
        return None
    boxes = np.asarray(picture.boxes, "float64").reshape(-1, 4)
    left, top, right, bottom = _window(boxes, image.size)
    image = image.crop((left, top, right, bottom))
    factor = side / max(image.size)
    width, height = (max(1, round(length * factor)) for length in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    boxes = (boxes - [left, top, left, top]) * factor
    names = list(dict.fromkeys(picture.names))
    return draw_detections(
        np.asarray(image),
        boxes,
        [names.index(name) for name in picture.names] or [0] * len(boxes),
        class_names=names or None,
        captions=bool(names),
        min_side=1,
        line_width=2,
        font_size=12,
    )


def _window(boxes, size):
    """The part of an image to show, ints `(left, top, right, bottom)`, not empty."""
    width, height = size
    whole = np.array([0, 0, width, height])
    # Limits wrong coordinates, which would make a picture of a million pixels.
    limit = np.array([width, height, width, height])
    edges = np.clip(boxes, whole - limit, whole + limit)[
        (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    ]
    if not len(edges):
        return 0, 0, width, height
    first, last = edges[:, :2].min(axis=0), edges[:, 2:].max(axis=0)
    longest = (last - first).max()
    if longest < _CLOSE * max(size):
        reach = max(3 * longest, 24)
        center = (first + last) / 2
        first, last = center - reach, center + reach
        first, last = np.maximum(first, 0), np.minimum(last, size)
        if (last - first >= 1).all():
            return *map(int, np.floor(first)), *map(int, np.ceil(last))
        return 0, 0, width, height
    first, last = np.minimum(first, 0), np.maximum(last, size)
    return *map(int, np.floor(first)), *map(int, np.ceil(last))
