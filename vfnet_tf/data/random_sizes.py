"""Draws the crop and the scale of each image of an epoch, with numpy, beforehand.

So the size of an image is known before it is decoded, which puts it on one of a few
canvases, and another image can replace one whose crop would lose all boxes.
"""

import dataclasses

import numpy as np

from vfnet_tf.data.canvases import CANVAS_MULTIPLE, keep_ratio_sizes

# The least side of a crop as a fraction of the image's (docs/parity.md, S31).
MIN_CROP_FRACTION = 0.75
# Draws of another image for one whose boxes are all cropped away.
MAX_REPLACEMENTS = 10
# The least number of sizes that are drawn to choose canvases.
_NUM_SAMPLES = 4096


def choose_nested_canvases(sizes, bound, max_shapes):
    """Chooses canvases, each within the next, that waste the least area on `sizes`.

    An image goes on the smallest that holds it. As they are nested, images that fill no
    batch on one canvas can always move to the next, and the number of full batches
    depends on the number of images alone. Dynamic programming finds the best of all
    chains of multiples of 32.

    Args:
        sizes: int `[N, 2]`, (height, width) that images are expected to have.
        bound: int `[2]`, (height, width) that no image exceeds: the last canvas.
        max_shapes: int >= 1.

    Returns:
        int64 `[1..max_shapes, 2]`, (height, width), ascending.
    """
    padded = -(-np.asarray(sizes, "int64") // CANVAS_MULTIPLE) * CANVAS_MULTIPLE
    bound = -(-np.asarray(bound, "int64") // CANVAS_MULTIPLE) * CANVAS_MULTIPLE
    heights, rows = np.unique(np.append(padded[:, 0], bound[0]), return_inverse=True)
    widths, columns = np.unique(np.append(padded[:, 1], bound[1]), return_inverse=True)
    counts = np.zeros((len(heights), len(widths)))
    np.add.at(counts, (rows[:-1], columns[:-1]), 1)
    fitting = counts.cumsum(axis=0).cumsum(axis=1)
    area = heights[:, None] * widths
    # Area spent on all images that fit a cell's canvas, if it is the chain's last.
    spent = area * fitting
    origins = []
    for _ in range(max_shapes - 1):
        longer = np.empty_like(spent)
        origin = np.empty(spent.shape, "int64")
        for i, j in np.ndindex(spent.shape):
            smaller = spent[: i + 1, : j + 1] - area[i, j] * fitting[: i + 1, : j + 1]
            best = int(np.argmin(smaller))
            origin[i, j] = best // (j + 1) * len(widths) + best % (j + 1)
            longer[i, j] = smaller.flat[best] + area[i, j] * fitting[i, j]
        spent = longer
        origins.append(origin)
    cell = fitting.size - 1
    cells = [cell]
    for origin in reversed(origins):
        cell = int(origin.flat[cell])
        cells.append(cell)
    i, j = np.divmod(sorted(set(cells)), len(widths))
    return np.stack([heights[i], widths[j]], axis=-1)


@dataclasses.dataclass
class ImageDraws:
    """What was drawn for the images of one epoch; one row for each place in it.

    Attributes:
        records: int64 `[N]`, index of the image; its own place, unless replaced.
        crops: int64 `[N, 4]`, (top, left, height, width) in pixels of the image.
        scales: int64 `[N, 2]`, (short, long) that the crop is resized to fit into.
        sizes: int64 `[N, 2]`, (height, width) after the resize.
    """

    records: np.ndarray
    crops: np.ndarray
    scales: np.ndarray
    sizes: np.ndarray


class RandomSizes:
    """Draws crops and scales for the images of a dataset.

    A crop has a height and a width of 0.75 to 1 times the image's, drawn independently,
    and lies anywhere in it. Where it would leave none of an image's boxes, another image
    of the same orientation takes the place, with draws of its own. The caps of the short
    and the long side are whole numbers drawn independently for each image; should the
    first be the larger one, they change places. The official code does all of that but
    tries other images without end (docs/parity.md, S30 and S31).

    Args:
        sizes: int `[N, 2]`, (height, width) of the images.
        boxes: list of N float `[R, 4]`, `(x1, y1, x2, y2)` in pixels.
        landscape: bool `[N]`, the orientation of the images.
        scale_range: ((short, long), (short, long)), smallest and largest in pixels.
        crop_probability: float in [0, 1].
        keep_ratio: bool; False stretches all images to the larger pair of
            `scale_range`, read as (height, width).
    """

    def __init__(
        self, sizes, boxes, landscape, scale_range, crop_probability, keep_ratio=True
    ):
        self.sizes = np.asarray(sizes, "int64").reshape(-1, 2)
        self.landscape = np.asarray(landscape, bool)
        self.low, self.high = np.asarray(scale_range, "int64")
        self.crop_probability = crop_probability
        self.keep_ratio = keep_ratio
        self._num_boxes = np.asarray([len(rows) for rows in boxes])
        self._first_box = np.cumsum([0, *self._num_boxes[:-1]])
        self._boxes = np.concatenate(boxes).astype("float32").reshape(-1, 4)
        self._same_side = {
            side: np.flatnonzero(self.landscape == side) for side in (False, True)
        }

    def _resized(self, sizes, scales):
        if not self.keep_ratio:
            return np.tile(self.high, (len(sizes), 1))
        return keep_ratio_sizes(sizes, scales.min(axis=1), scales.max(axis=1))

    def bounds(self):
        """The largest height and the largest width that each image can get, `[N, 2]`."""
        heights, widths = self.sizes.T
        least_heights, least_widths = heights, widths
        if self.crop_probability > 0:
            least = (self.sizes * MIN_CROP_FRACTION + 0.5).astype("int64")
            least_heights, least_widths = np.maximum(least, 1).T
        scales = np.tile(self.high, (len(self.sizes), 1))
        # After the resize a side is longest where it was long and the other one short.
        tall = self._resized(np.stack([heights, least_widths], axis=-1), scales)
        wide = self._resized(np.stack([least_heights, widths], axis=-1), scales)
        return np.stack([tall[:, 0], wide[:, 1]], axis=-1)

    def draw(self, rng):
        """Draws for all images: `ImageDraws`.

        Args:
            rng: `numpy.random.Generator`.
        """
        records = np.arange(len(self.sizes))
        crops = self._draw_crops(rng, records)
        lost = np.flatnonzero(self._loses_all_boxes(records, crops))
        for _ in range(MAX_REPLACEMENTS):
            if not len(lost):
                break
            for side, others in self._same_side.items():
                places = lost[self.landscape[lost] == side]
                if len(places):
                    records[places] = rng.choice(others, len(places))
            crops[lost] = self._draw_crops(rng, records[lost])
            lost = lost[self._loses_all_boxes(records[lost], crops[lost])]
        # The last resort is a whole image.
        crops[lost, :2], crops[lost, 2:] = 0, self.sizes[records[lost]]
        scales = rng.integers(self.low, self.high + 1, size=(len(records), 2))
        if self.keep_ratio:
            scales.sort(axis=1)
        sizes = self._resized(crops[:, 2:], scales)
        return ImageDraws(records, crops, scales, sizes)

    def _draw_crops(self, rng, records):
        """(top, left, height, width) for each record, int64 `[n, 4]`."""
        sizes = self.sizes[records]
        fractions = rng.uniform(MIN_CROP_FRACTION, 1.0, sizes.shape)
        cropped = np.maximum((sizes * fractions + 0.5).astype("int64"), 1)
        is_cropped = rng.random(len(sizes)) < self.crop_probability
        cropped = np.where(is_cropped[:, None], cropped, sizes)
        corners = rng.integers(0, sizes - cropped + 1)
        return np.concatenate([corners, cropped], axis=-1)

    def _loses_all_boxes(self, records, crops):
        """Whether an image that has boxes keeps none in its crop, bool `[n]`."""
        counts = self._num_boxes[records]
        places = np.repeat(np.arange(len(records)), counts)
        within = np.arange(len(places)) - np.repeat(np.cumsum(counts) - counts, counts)
        x1, y1, x2, y2 = self._boxes[
            np.repeat(self._first_box[records], counts) + within
        ].T
        top, left, height, width = crops[places].T
        is_left = np.minimum(x2, left + width) > np.maximum(x1, left)
        is_left &= np.minimum(y2, top + height) > np.maximum(y1, top)
        kept = np.bincount(places[is_left], minlength=len(records))
        return (counts > 0) & (kept == 0)

    def choose_canvases(self, max_shapes):
        """Nested canvases for each orientation: dict is landscape -> int `[n, 2]`.

        They depend on the dataset and the range alone. With `max_shapes` 1 both
        orientations share one.

        Args:
            max_shapes: int >= 1, how many to choose at most for both together.
        """
        rng = np.random.default_rng(0)
        rounds = -(-_NUM_SAMPLES // len(self.sizes))
        samples = np.stack([self.draw(rng).sizes for _ in range(rounds)])
        bounds = self.bounds()
        members = {side: rows for side, rows in self._same_side.items() if len(rows)}
        if max_shapes < len(members):
            members = {None: np.arange(len(self.sizes))}
        # The more frequent orientation gets the odd canvas.
        order = sorted(members, key=lambda side: -len(members[side]))
        canvases = {}
        for number, side in enumerate(order):
            share = (max_shapes - number - 1) // len(order) + 1
            rows = members[side]
            canvases[side] = choose_nested_canvases(
                samples[:, rows].reshape(-1, 2), bounds[rows].max(axis=0), share
            )
        if None in canvases:
            both = canvases.pop(None)
            canvases = {
                side: both for side, rows in self._same_side.items() if len(rows)
            }
        return canvases
