"""Plans the batches of an epoch: images, order, crops, sizes and canvases.

A plan is made with numpy and depends on the seed and the epoch only: a resumed run has
the same batches as a run without interruption.
"""

import dataclasses

import keras
import numpy as np
import tensorflow as tf

from vfnet_tf.data.canvases import (
    CANVAS_MULTIPLE,
    assign_canvases,
    choose_canvas_shapes,
    is_landscape,
    resized_sizes,
)
from vfnet_tf.data.random_sizes import RandomSizes

# Columns of a plan: one row per image of the epoch. The seed takes two, and where images
# are cropped, (top, left, height, width) follow.
RECORD, IS_REPEAT, HEIGHT, WIDTH, SHORT, LONG, SEED = range(7)
CROP = 8


class EpochOrder(keras.callbacks.Callback):
    """The epoch that the next iteration over a training pipeline plays.

    Each iteration adds one. Given to `fit(callbacks=[...])` it follows Keras's count: so
    `initial_epoch` plays the right order after a resume, and an iterator that was opened
    without use in between changes nothing.

    A run that was stopped within an epoch continues with the rest of it:

        batches.epoch_order.resume(epoch, step)
        model.fit(batches.take(len(batches) - step), initial_epoch=epoch, ...)

    Args:
        start_epoch: int >= 0, the epoch of the first iteration.
    """

    def __init__(self, start_epoch=0):
        super().__init__()
        # A table, since a variable would be mirrored if made in a strategy's scope.
        self._table = tf.lookup.experimental.MutableHashTable(tf.int64, tf.int64, 0)
        self._place = None
        self.next_epoch = start_epoch

    @property
    def next_epoch(self):
        """int, the epoch that the next iteration plays; it can be set."""
        return int(self._table.lookup(tf.constant(0, tf.int64)))

    @next_epoch.setter
    def next_epoch(self, epoch):
        self._set(epoch, 0)

    def _set(self, epoch, step):
        keys = tf.constant([0, 1], tf.int64)
        self._table.insert(keys, tf.constant([epoch, step], tf.int64))

    def resume(self, epoch, step):
        """Makes `fit` skip the first `step` batches of that epoch, once."""
        self._place = (int(epoch), int(step))

    def on_epoch_begin(self, epoch, logs=None):
        place, self._place = self._place, None
        self._set(int(epoch), place[1] if place and place[0] == epoch else 0)

    def take(self):
        """Returns epoch and first batch, two int64 `[]`, and moves on; in a graph too."""
        keys = tf.constant([0, 1], tf.int64)
        epoch, step = tf.unstack(self._table.lookup(keys), num=2)
        following = tf.stack([epoch + 1, tf.constant(0, tf.int64)])
        with tf.control_dependencies([self._table.insert(keys, following)]):
            return tuple(tf.ensure_shape(tf.identity(x), []) for x in (epoch, step))


@dataclasses.dataclass
class Group:
    """Images of one orientation that share a canvas.

    Attributes:
        records: int `[n]`, indices.
        canvases: int `[num_scales, 2]`, (height, width) of the canvas per scale.
        larger: index of a later group of the same orientation whose canvas holds this
            one, or None.
        fitting: int `[>= n]`, indices of all images of the orientation that fit.
    """

    records: np.ndarray
    canvases: np.ndarray
    larger: int | None = None
    fitting: np.ndarray | None = None


def repeat_factors(dataset, threshold):
    """How often an epoch repeats each image, by its rarest class (as LVIS does).

    Args:
        dataset: `DetectionDataset`.
        threshold: float in (0, 1], share of the images.

    Returns:
        float `[N]`, at least 1: sqrt(threshold / share of the images that have the
        class) for the rarest class of an image below the threshold.
    """
    members = [np.unique(record.labels) for record in dataset]
    counts = np.bincount(np.concatenate(members), minlength=1)
    shares = np.maximum(counts, 1) / len(members)
    factors = np.maximum(1.0, np.sqrt(threshold / shares))
    return np.array([factors[labels].max(initial=1.0) for labels in members])


def _repeat(records, factors, rng):
    """Each record `factors` times on average, always the same number in all."""
    order = rng.permutation(len(records))
    ends = np.cumsum(factors[order])
    ends[-1] = np.ceil(ends[-1])
    # Points of distance 1 from a random start: a longer stretch has more of them.
    points = np.floor(ends - (1.0 - rng.random())).astype("int64")
    return np.repeat(records[order], np.diff(points, prepend=-1))


class Planner:
    """Turns (seed, epoch) into rows of work; see `build_pipeline`.

    Args:
        groups: list of `Group`.
        scales: list of (short, long) or (height, width).
        batch_size, seed, shuffle, training, drop_remainder: as in `build_pipeline`.
        repeats: float `[N]`, see `repeat_factors`, or None for each image once.
    """

    def __init__(
        self,
        groups,
        scales,
        batch_size,
        seed,
        shuffle,
        training,
        drop_remainder,
        repeats=None,
    ):
        self.groups = groups
        self.scales = np.asarray(scales, "int64")
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.training = training
        self.drop_remainder = drop_remainder
        self.repeats = repeats
        self.num_batches = self._count_batches()

    def sample_groups(self):
        """Groups of an epoch that is drawn to count them, list of `Group`."""
        return self._draw_groups(np.random.default_rng(0))[0]

    def _moves_up(self, group):
        # In evaluation each image has its smallest canvas, as padding changes what norms
        # and convolutions give (docs/parity.md, S32).
        return self.training and group.larger is not None

    def _count_batches(self):
        groups = self.sample_groups()
        counts = [len(group.records) for group in groups]
        num_batches = 0
        for number, group in enumerate(groups):
            full, rest = divmod(counts[number], self.batch_size)
            num_batches += full
            if rest and self._moves_up(group):
                counts[group.larger] += rest
            elif rest and not self.drop_remainder:
                num_batches += 1
        return num_batches

    def _fill(self, rng, rest, group):
        """Records that complete the last batch `rest` of a group."""
        num_missing = self.batch_size - len(rest)
        if not self.training:
            return np.resize(rest, num_missing)
        # Like the official sampler, but without an image twice in a batch if possible.
        others = np.setdiff1d(group.fitting, rest)
        others = others if len(others) >= num_missing else group.fitting
        if not self.shuffle:
            return np.resize(others, num_missing)
        return rng.choice(others, num_missing, replace=len(others) < num_missing)

    def _draw_groups(self, rng):
        """The groups of one epoch, and their draws for `_rows`."""
        if self.repeats is None:
            return self.groups, None
        repeated = [
            dataclasses.replace(
                group, records=_repeat(group.records, self.repeats[group.records], rng)
            )
            for group in self.groups
        ]
        return repeated, None

    def plan(self, epoch):
        """Returns int64 `[num_batches * B, 8 or 12]`, columns as named above."""
        rng = np.random.default_rng([self.seed, epoch])
        size = self.batch_size
        groups, draws = self._draw_groups(rng)
        pools = [group.records for group in groups]
        batches, canvases = [], []
        for number, group in enumerate(groups):
            records = pools[number]
            records = rng.permutation(records) if self.shuffle else records
            is_repeat = np.zeros(len(records), "int64")
            num_whole = len(records) - len(records) % size
            rest = records[num_whole:]
            if len(rest) and (self._moves_up(group) or self.drop_remainder):
                if self._moves_up(group):
                    pools[group.larger] = np.concatenate([pools[group.larger], rest])
                records, is_repeat = records[:num_whole], is_repeat[:num_whole]
            elif len(rest):
                repeats = self._fill(rng, rest, group)
                records = np.concatenate([records, repeats])
                # Trained on, but not evaluated, a second time.
                mark = np.full(len(repeats), 0 if self.training else 1)
                is_repeat = np.concatenate([is_repeat, mark])
            rows = np.stack([records, is_repeat], axis=-1).reshape(-1, size, 2)
            batches.append(rows)
            canvases.append(np.tile(group.canvases, (len(rows), 1, 1)))
        batches, canvases = np.concatenate(batches), np.concatenate(canvases)
        if self.shuffle:
            order = rng.permutation(len(batches))
            batches, canvases = batches[order], canvases[order]
        return self._rows(rng, batches, canvases, draws).astype("int64")

    def _rows(self, rng, batches, canvases, draws):
        """The plan of `batches`, int `[n, B, 2]`, on `canvases`, `[n, num_scales, 2]`."""
        scale = rng.integers(len(self.scales), size=len(batches))
        canvas = canvases[np.arange(len(batches)), scale]
        per_batch = np.concatenate([canvas, self.scales[scale]], axis=-1)
        per_batch = np.repeat(per_batch, self.batch_size, axis=0)
        rows = batches.reshape(-1, 2)
        seeds = rng.integers(2**31 - 1, size=(len(rows), 2))
        return np.concatenate([rows, per_batch, seeds], axis=-1)


class RandomSizePlanner(Planner):
    """Groups the images of each epoch by the canvases that their drawn sizes need.

    So images of like size share a batch. The official code pads every batch to its
    largest image; with many images in a step that is nearly always the largest size.

    Args:
        random_sizes: `RandomSizes`.
        canvases: dict of its `choose_canvases`.
        others: see `Planner`, from `batch_size`.
    """

    def __init__(self, random_sizes, canvases, *others):
        self.random_sizes = random_sizes
        self.canvases = canvases
        # The records of a group are places of the epoch until `_rows` looks them up.
        super().__init__([], [], *others)

    def _draw_groups(self, rng):
        draws = self.random_sizes.draw(rng)
        groups = []
        for side, canvases in self.canvases.items():
            members = np.flatnonzero(self.random_sizes.landscape == side)
            fits = np.all(draws.sizes[members, None] <= canvases, axis=-1)
            smallest = np.argmax(fits, axis=1)
            for number, canvas in enumerate(canvases):
                is_last = number == len(canvases) - 1
                groups.append(
                    Group(
                        members[smallest == number],
                        canvas[None],
                        larger=None if is_last else len(groups) + 1,
                        fitting=members,
                    )
                )
        return groups, draws

    def _rows(self, rng, batches, canvases, draws):
        place, is_repeat = batches.reshape(-1, 2).T
        canvas = np.repeat(canvases[:, 0], self.batch_size, axis=0)
        columns = [draws.records[place], is_repeat, canvas, draws.scales[place]]
        columns.append(rng.integers(2**31 - 1, size=(len(place), 2)))
        if self.random_sizes.crop_probability > 0:
            columns.append(draws.crops[place])
        return np.column_stack(columns)


def plan_random_sizes(dataset, scale_range, random_crop, max_shapes, keep_ratio, order):
    """A `RandomSizePlanner` and the sorted list of its canvas shapes."""
    if max_shapes < 1:
        raise ValueError(
            f"`max_shapes` must be >= 1. Received: max_shapes={max_shapes}"
        )
    random_sizes = RandomSizes(
        dataset.sizes,
        [record.boxes for record in dataset],
        is_landscape(dataset.sizes),
        scale_range,
        random_crop,
        keep_ratio,
    )
    canvases = random_sizes.choose_canvases(max_shapes)
    shapes = {tuple(map(int, row)) for rows in canvases.values() for row in rows}
    return RandomSizePlanner(random_sizes, canvases, *order), sorted(shapes)


def make_groups(dataset, scales, is_multi_scale, canvas_shapes, max_shapes, keep_ratio):
    """Divides the images into groups whose members may share a batch.

    Returns:
        (list of `Group`, each before its `larger` one; list of all canvas shapes).
    """
    landscape = is_landscape(dataset.sizes)
    indices = np.arange(len(dataset))
    groups = []
    if is_multi_scale:
        for side in (False, True):
            members = indices[landscape == side]
            if not len(members):
                continue
            sizes = [dataset.sizes[index] for index in members]
            hulls = [
                choose_canvas_shapes(sizes, scale, 1, keep_ratio)[0] for scale in scales
            ]
            groups.append(Group(members, np.asarray(hulls), fitting=members))
        shapes = {tuple(hull) for group in groups for hull in group.canvases.tolist()}
        return groups, sorted(shapes)
    if canvas_shapes is None:
        canvas_shapes = choose_canvas_shapes(
            dataset.sizes, scales[0], max_shapes, keep_ratio
        )
    shapes = [tuple(shape) for shape in canvas_shapes]
    if not shapes or any(
        len(shape) != 2 or side < 1 or side % CANVAS_MULTIPLE
        for shape in shapes
        for side in shape
    ):
        raise ValueError(
            "`canvas_shapes` must be (height, width) in multiples of "
            f"{CANVAS_MULTIPLE}. Received: canvas_shapes={canvas_shapes}"
        )
    # Sorted by area, a canvas comes before those that hold it.
    shapes = sorted(set(shapes), key=lambda shape: (shape[0] * shape[1], shape))
    resized = resized_sizes(dataset.sizes, scales[0], keep_ratio)
    canvas = assign_canvases(dataset, resized, shapes)
    for side in (False, True):
        first = len(groups)
        for number, shape in enumerate(shapes):
            members = indices[(canvas == number) & (landscape == side)]
            if len(members):
                fits = np.all(resized <= shape, axis=-1) & (landscape == side)
                group = Group(members, np.asarray([shape]), fitting=indices[fits])
                groups.append(group)
        for number, group in enumerate(groups[first:], first):
            for later in range(number + 1, len(groups)):
                if np.all(groups[later].canvases >= group.canvases):
                    group.larger = later
                    break
    return groups, shapes
