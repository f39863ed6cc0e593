"""From a dataset of records to batches, as a `tf.data.Dataset`.

Which images make a batch, in which order, cropped and scaled how and on which canvas, is
planned beforehand with numpy; decoding, resizing, flipping and padding then run in
TensorFlow's threads.
A plan depends on the seed and the epoch only, so a resumed run sees what the
uninterrupted one would have seen.
"""

import dataclasses

import keras
import numpy as np
import tensorflow as tf

from vfnet_tf.data import transforms
from vfnet_tf.data.example import PADDING_IMAGE_ID, PADDING_LABEL
from vfnet_tf.data.images import decode
from vfnet_tf.data.normalization import TORCHVISION
from vfnet_tf.data.random_sizes import CANVAS_MULTIPLE, RandomSizes, keep_ratio_sizes

# Epochs whose order is planned beforehand; later ones repeat them from the first. With
# crops COCO takes 5.6 MB an epoch, so that the 41 epochs of VFNet-X all differ.
MAX_ORDERS = 128
MAX_ORDER_BYTES = 256 * 2**20

# Columns of a plan: one row per image of the epoch. The seed takes two, and where images
# are cropped, (top, left, height, width) follow.
_RECORD, _IS_REPEAT, _HEIGHT, _WIDTH, _SHORT, _LONG, _SEED = range(7)
_CROP = 8


def _resized_sizes(sizes, image_size, keep_ratio):
    """Sizes after the resize: int `[N, 2]`, equal to `transforms.keep_ratio_size`."""
    if not keep_ratio:
        return np.tile(np.asarray(image_size, "int64"), (len(sizes), 1))
    return keep_ratio_sizes(sizes, *image_size)


def check_image_size(image_size, keep_ratio):
    """Returns `image_size` as two ints, or says what is wrong with it."""
    pair = tuple(image_size) if np.ndim(image_size) == 1 else ()
    is_right = len(pair) == 2 and all(int(v) == v and v >= 1 for v in pair)
    if not is_right or (keep_ratio and pair[0] > pair[1]):
        rule = "(short, long) with short <= long" if keep_ratio else "(height, width)"
        raise ValueError(
            f"`image_size` must be {rule}, positive whole pixels. "
            f"Received: image_size={image_size}"
        )
    return int(pair[0]), int(pair[1])


def _check_scale_range(scale_range, keep_ratio):
    """Returns the range as ((short, long), (short, long)), or says what is wrong."""
    if not keep_ratio:
        raise ValueError(
            "`scale_range` needs `keep_ratio=True`. "
            f"Received: scale_range={scale_range}, keep_ratio={keep_ratio}"
        )
    pairs = [check_image_size(pair, keep_ratio) for pair in scale_range]
    if len(pairs) != 2 or np.any(np.less(pairs[1], pairs[0])):
        raise ValueError(
            "`scale_range` must be the smallest and the largest (short, long). "
            f"Received: scale_range={scale_range}"
        )
    return tuple(pairs)


def _is_landscape(sizes):
    """Whether w / h > 1, as the official code groups images (fact S33)."""
    sizes = np.asarray(sizes)
    return sizes[:, 1] > sizes[:, 0]


def choose_canvas_shapes(sizes, image_size, max_shapes=4, keep_ratio=True):
    """Chooses a few padded shapes that together waste little area on `sizes`.

    Starting from every shape that occurs (rounded up to multiples of 32), the two of
    one orientation whose common hull adds the least padding are merged until at most
    `max_shapes` are left. Few shapes keep a compiled graph from being traced, and
    memory from being laid out, anew for every image size.

    Args:
        sizes: sequence of (height, width) of the original images, pixels.
        image_size: (short, long) in pixels, or (height, width) if not `keep_ratio`.
        max_shapes: int >= 1. With 1, both orientations share one shape.
        keep_ratio: bool, see `build_pipeline`.

    Returns:
        Sorted list of (height, width), multiples of 32; every image fits into one.

    Raises:
        ValueError: for no sizes, a bad `image_size` or `max_shapes` below 1.
    """
    if len(sizes) == 0:
        raise ValueError("`sizes` must hold at least one size. Received: sizes=[]")
    if max_shapes < 1:
        raise ValueError(
            f"`max_shapes` must be >= 1. Received: max_shapes={max_shapes}"
        )
    image_size = check_image_size(image_size, keep_ratio)
    resized = _resized_sizes(sizes, image_size, keep_ratio)
    padded = -(-resized // CANVAS_MULTIPLE) * CANVAS_MULTIPLE
    rows = np.column_stack([_is_landscape(sizes), padded])
    rows, counts = np.unique(rows, axis=0, return_counts=True)
    landscape, shapes = rows[:, 0], rows[:, 1:]
    while len(shapes) > max_shapes:
        hulls = np.maximum(shapes[:, None], shapes[None, :])
        cost = counts * shapes.prod(axis=-1)
        added = (counts[:, None] + counts) * hulls.prod(axis=-1)
        added = (added - cost[:, None] - cost).astype("float64")
        is_mixed = landscape[:, None] != landscape
        # Orientations are mixed only when nothing else is left to merge.
        added = added + is_mixed * (1.0 + np.abs(added).max())
        added[np.tril_indices(len(shapes))] = np.inf
        first, second = np.unravel_index(np.argmin(added), added.shape)
        shapes[first] = hulls[first, second]
        counts[first] += counts[second]
        landscape, shapes, counts = (
            np.delete(values, second, axis=0) for values in (landscape, shapes, counts)
        )
    return sorted({(int(height), int(width)) for height, width in shapes})


def _assign_canvases(dataset, resized, canvas_shapes):
    """Index of the smallest canvas that holds each image: int `[N]`."""
    canvases = np.asarray(canvas_shapes, "int64").reshape(-1, 2)
    area = canvases.prod(axis=1).astype("float64")
    fits = np.all(resized[:, None] <= canvases, axis=-1)
    is_homeless = ~fits.any(axis=1)
    if is_homeless.any():
        index = int(np.flatnonzero(is_homeless)[0])
        raise ValueError(
            f"Every resized image must fit into one of `canvas_shapes`; "
            f"{dataset[index].path!r} is {resized[index].tolist()} (height, width). "
            f"Received: canvas_shapes={canvases.tolist()}"
        )
    return np.argmin(np.where(fits, area, np.inf), axis=1)


class EpochOrder(keras.callbacks.Callback):
    """Which epoch the next iteration over a training pipeline plays.

    Each iteration moves on by one. Given to `fit(callbacks=[...])` it follows Keras's
    own count, so that `initial_epoch` replays the right order after a resume, and an
    iterator that was opened and thrown away in between shifts nothing.

    A run that was stopped within an epoch goes on with the rest of it:

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
        """Lets `fit` begin that epoch behind its first `step` batches, once."""
        self._place = (int(epoch), int(step))

    def on_epoch_begin(self, epoch, logs=None):
        place, self._place = self._place, None
        self._set(int(epoch), place[1] if place and place[0] == epoch else 0)

    def take(self):
        """Returns the epoch and its first batch to play now, and moves on; in a graph too.

        Returns:
            Two int64 `[]`.
        """
        keys = tf.constant([0, 1], tf.int64)
        epoch, step = tf.unstack(self._table.lookup(keys), num=2)
        following = tf.stack([epoch + 1, tf.constant(0, tf.int64)])
        with tf.control_dependencies([self._table.insert(keys, following)]):
            return tuple(tf.ensure_shape(tf.identity(x), []) for x in (epoch, step))


@dataclasses.dataclass
class _Group:
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


class _Planner:
    """Turns (seed, epoch) into rows of work; see `build_pipeline`.

    Args:
        groups: list of `_Group`.
        scales: list of (short, long) or (height, width).
        batch_size, seed, shuffle, training, drop_remainder: as in `build_pipeline`.
    """

    def __init__(
        self, groups, scales, batch_size, seed, shuffle, training, drop_remainder
    ):
        self.groups = groups
        self.scales = np.asarray(scales, "int64")
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.training = training
        self.drop_remainder = drop_remainder
        self.num_batches = self._count_batches()

    def _moves_up(self, group):
        # Evaluation keeps to the smallest canvas: padding has an influence (fact S32).
        return self.training and group.larger is not None

    def _count_batches(self):
        groups = self._draw_groups(np.random.default_rng(0))[0]
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
        # As the official sampler, but without a second copy in the batch if possible.
        others = np.setdiff1d(group.fitting, rest)
        others = others if len(others) >= num_missing else group.fitting
        if not self.shuffle:
            return np.resize(others, num_missing)
        return rng.choice(others, num_missing, replace=len(others) < num_missing)

    def _draw_groups(self, rng):
        """The groups of one epoch, and what `_rows` needs to know of them."""
        return self.groups, None

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


class _RandomSizePlanner(_Planner):
    """Groups the images of each epoch by the canvases that their drawn sizes need.

    Images of like size share a batch, as images of like shape do without a range: the
    official code pads every batch to its largest image, which for many images in a step
    is nearly always as large as can be.

    Args:
        random_sizes: `RandomSizes`.
        canvases: dict of its `choose_canvases`.
        others: as of `_Planner`, from `batch_size`.
    """

    def __init__(self, random_sizes, canvases, *others):
        self.random_sizes = random_sizes
        self.canvases = canvases
        # A group's records are places of the epoch here, until `_rows`.
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
                    _Group(
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


class _RecordTensors:
    """The records of a dataset as a few tensors that tf.data functions capture."""

    def __init__(self, dataset):
        records = list(dataset)
        counts = [len(record.boxes) for record in records]
        # A captured tensor on an accelerator would be copied for every image.
        with tf.device("CPU:0"):
            self.paths = tf.constant([record.path for record in records])
            self.orientations = tf.constant(
                [record.orientation for record in records], "int32"
            )
            self.needs_pil = tf.constant([record.needs_pil for record in records])
            self.image_ids = tf.constant([r.image_id for r in records], "int64")
            self.row_splits = tf.constant(np.cumsum([0, *counts]), "int64")
            self.boxes = tf.constant(
                np.concatenate([record.boxes for record in records]), "float32"
            )
            self.labels = tf.constant(
                np.concatenate([record.labels for record in records]), "int32"
            )
        self.has_pil = any(record.needs_pil for record in records)

    def example(self, index):
        """One example as in `data.example`, the image decoded from its file."""
        rows = slice(self.row_splits[index], self.row_splits[index + 1])
        image = decode.load_image(
            self.paths[index],
            self.orientations[index],
            self.needs_pil[index] if self.has_pil else False,
        )
        return {
            "image": image,
            "boxes": self.boxes[rows],
            "labels": self.labels[rows],
            "image_id": self.image_ids[index],
        }


def _cache_resized(load, num_records, sizes, num_parallel, limit):
    """Decodes and resizes all images once and keeps them as one string of bytes.

    Args:
        load: function, int64 index to a resized example.
        num_records: int N.
        sizes: int `[N, 2]`, sizes after the resize.
        num_parallel: int.
        limit: int, bytes.

    Returns:
        A function like `load` that reads from memory.
    """
    sizes = np.asarray(sizes, "int64")
    splits = np.cumsum([0, *(sizes.prod(axis=1) * 3)])
    if splits[-1] > limit:
        raise ValueError(
            f"`cache_decoded=True` would take {splits[-1]} bytes, `cache_limit` allows "
            f"{limit}. Received: cache_decoded=True for {num_records} images"
        )
    pixels = np.empty(splits[-1], "uint8")
    examples = tf.data.Dataset.range(num_records).map(
        tf.autograph.experimental.do_not_convert(load),
        num_parallel_calls=num_parallel,
        deterministic=True,
    )
    rest = []
    for index, example in enumerate(examples.as_numpy_iterator()):
        pixels[splits[index] : splits[index + 1]] = example.pop("image").ravel()
        rest.append(example)
    with tf.device("CPU:0"):
        pixels, splits = tf.constant(pixels), tf.constant(splits, "int64")
        sizes = tf.constant(sizes)
        row_splits = tf.constant(np.cumsum([0, *(len(e["boxes"]) for e in rest)]))
        boxes = tf.constant(np.concatenate([example["boxes"] for example in rest]))
        labels = tf.constant(np.concatenate([example["labels"] for example in rest]))
        scales = tf.constant(np.stack([example["scale"] for example in rest]))
        image_ids = tf.constant(np.stack([example["image_id"] for example in rest]))

    def load_cached(index):
        rows = slice(row_splits[index], row_splits[index + 1])
        image = pixels[splits[index] : splits[index + 1]]
        shape = tf.concat([sizes[index], [3]], axis=0)
        return {
            "image": tf.ensure_shape(tf.reshape(image, shape), [None, None, 3]),
            "boxes": boxes[rows],
            "labels": labels[rows],
            "scale": scales[index],
            "image_id": image_ids[index],
        }

    return load_cached


def _pad_objects(example, max_boxes):
    """Pads boxes with zeros and labels with -1 to `max_boxes` rows."""
    padding = [[0, max_boxes - tf.shape(example["boxes"])[0]]]
    boxes = tf.pad(example["boxes"], [*padding, [0, 0]])
    labels = tf.pad(example["labels"], padding, constant_values=PADDING_LABEL)
    return {
        **example,
        "boxes": tf.ensure_shape(boxes, [max_boxes, 4]),
        "labels": tf.ensure_shape(labels, [max_boxes]),
    }


@tf.autograph.experimental.do_not_convert
def _trim(batch):
    """Leaves out the repeats that fill a last batch."""
    is_kept = batch["image_id"] != PADDING_IMAGE_ID
    return {name: tf.boolean_mask(value, is_kept) for name, value in batch.items()}


def build_pipeline(
    dataset,
    *,
    batch_size,
    image_size,
    normalization=TORCHVISION,
    training,
    keep_ratio=True,
    canvas_shapes=None,
    max_shapes=4,
    scales=None,
    scale_range=None,
    flip=0.5,
    random_crop=0.0,
    cut_out=0.0,
    shuffle=None,
    seed=0,
    start_epoch=0,
    max_boxes=None,
    drop_remainder=False,
    pad_last_batch=True,
    num_parallel=2,
    cache_decoded=False,
    cache_limit=4 * 2**30,
    replicas=range(1),
    num_replicas=1,
):
    """Builds the batches of a dataset; see `data.example` for what a batch holds.

    A batch holds images of one orientation on one canvas. One iteration is one epoch
    of known cardinality. In training all batches are full: images left over move to a
    larger canvas, and the last batch of the largest is filled up with other images
    drawn at random. In evaluation every image comes once, on the smallest canvas that
    holds it; repeats that fill a last batch have `image_id` -1.

    Args:
        dataset: `DetectionDataset`.
        batch_size: int, images of one step over all replicas.
        image_size: (short, long): images are resized to fit into it, either way up;
            with `keep_ratio=False` (height, width): images are stretched to it.
        normalization: `Normalization` of the backbone's weights.
        training: bool, shuffle and flip by default, every epoch anew.
        keep_ratio: bool, how to read `image_size`.
        canvas_shapes: list of (height, width), multiples of 32, that images are padded
            to. None chooses them by `choose_canvas_shapes`.
        max_shapes: int, how many to choose at most. A model built for one static shape
            needs 1.
        scales: list of (short, long), one of which is drawn for each batch in place of
            `image_size` (multi-scale training); each has one canvas per orientation.
        scale_range: ((short, long), (short, long)), smallest and largest: each image is
            resized to fit into a pair whose numbers are drawn independently from it, in
            place of `image_size`, and images of like size make a batch; see
            `RandomSizes`. `max_shapes` holds for both orientations together. Training
            only.
        flip: float, probability of a horizontal flip; training only.
        random_crop: float, probability that an image is cropped before it is resized,
            see `RandomSizes`; training only.
        cut_out: float, probability of `transforms.cut_out`; training only.
        shuffle: bool; None shuffles in training only.
        seed: int >= 0, with the epoch it fixes order, fill-up and all that is drawn.
        start_epoch: int >= 0, the epoch of the first iteration, for a resumed run.
        max_boxes: int, M; None takes the most boxes of an image in the dataset.
        drop_remainder: bool, leave out what does not fill a last batch.
        pad_last_batch: bool, in evaluation; False gives smaller last batches instead.
        num_parallel: int, images prepared at a time.
        cache_decoded: bool, keep all resized images in memory as bytes: much faster
            for small sets. They are decoded when the pipeline is built.
        cache_limit: int, bytes that `cache_decoded` may take.
        replicas: range of int, those of the `num_replicas` that this pipeline feeds. It
            gives the share of each, one after the other, then those of the next batch.
            Pipelines of one seed that feed different replicas share each batch without
            overlap, and each decodes its own images only.
        num_replicas: int >= 1, what divides a batch; `batch_size` is a multiple.

    Returns:
        `tf.data.Dataset` of batch dicts. Its attribute `canvas_shapes` lists all padded
        shapes, (height, width); a training pipeline also has `epoch_order`, an
        `EpochOrder` callback for `fit`, and the functions `image_ids`, from epoch and
        step to the ids of that batch, and `shapes_of_epoch`, from epoch to the padded
        shape of each step.

    Raises:
        ValueError: for arguments out of range or against each other, an image that
            fits on no canvas, more boxes than `max_boxes`, or no batch at all.
    """
    for name, value, lowest in (
        ("batch_size", batch_size, 1),
        ("seed", seed, 0),
        ("start_epoch", start_epoch, 0),
        ("num_parallel", num_parallel, 1),
    ):
        if value < lowest:
            raise ValueError(f"`{name}` must be >= {lowest}. Received: {name}={value}")
    for name, value in (
        ("flip", flip),
        ("random_crop", random_crop),
        ("cut_out", cut_out),
    ):
        if not 0 <= value <= 1:
            raise ValueError(f"`{name}` must be in [0, 1]. Received: {name}={value}")
    if len(dataset) == 0:
        raise ValueError("`dataset` must hold at least one image. Received: 0 images")
    most_boxes = max(1, *(len(record.boxes) for record in dataset))
    max_boxes = most_boxes if max_boxes is None else max_boxes
    if max_boxes < most_boxes:
        raise ValueError(
            f"`max_boxes` must be at least {most_boxes}, the most boxes of an image. "
            f"Received: max_boxes={max_boxes}"
        )
    if scales is not None and (cache_decoded or canvas_shapes is not None):
        raise ValueError(
            "`scales` cannot be combined with `cache_decoded` or `canvas_shapes`. "
            f"Received: scales={scales}, cache_decoded={cache_decoded}, "
            f"canvas_shapes={canvas_shapes}"
        )
    has_random_sizes = scale_range is not None or random_crop > 0
    if has_random_sizes and (
        cache_decoded or canvas_shapes is not None or scales is not None
    ):
        raise ValueError(
            "`scale_range` and `random_crop` cannot be combined with `cache_decoded`, "
            "`canvas_shapes` or `scales`. "
            f"Received: scale_range={scale_range}, random_crop={random_crop}, "
            f"cache_decoded={cache_decoded}, canvas_shapes={canvas_shapes}, "
            f"scales={scales}"
        )
    if scale_range is not None:
        scale_range = _check_scale_range(scale_range, keep_ratio)
    has_random_sizes = has_random_sizes and training
    _check_replicas(replicas, num_replicas, batch_size)
    if num_replicas > 1 and not pad_last_batch:
        raise ValueError(
            "Replicas need shares of one size: leave `pad_last_batch` True. "
            f"Received: pad_last_batch={pad_last_batch}, num_replicas={num_replicas}"
        )
    shuffle = training if shuffle is None else shuffle
    scale_list = [
        check_image_size(size, keep_ratio)
        for size in ([image_size] if scales is None else scales)
    ]
    order = (batch_size, seed, shuffle, training, drop_remainder)
    if has_random_sizes:
        planner, shapes = _plan_random_sizes(
            dataset,
            scale_range or scale_list * 2,
            random_crop,
            max_shapes,
            keep_ratio,
            order,
        )
    else:
        groups, shapes = _group(
            dataset,
            scale_list,
            scales is not None,
            canvas_shapes,
            max_shapes,
            keep_ratio,
        )
        planner = _Planner(groups, scale_list, *order)
    if planner.num_batches == 0:
        groups = planner._draw_groups(np.random.default_rng(0))[0]
        counts = [len(group.records) for group in groups]
        raise ValueError(
            "`drop_remainder=True` must leave at least one batch. "
            f"Received: batch_size={batch_size}, images by canvas={counts}"
        )

    records = _RecordTensors(dataset)
    resize = transforms.resize_keep_ratio if keep_ratio else transforms.resize_exact

    def load(index, size=scale_list[0], rectangle=None):
        example = records.example(index)
        if rectangle is not None:
            example = transforms.crop(*tf.unstack(rectangle))(example)
        return resize(size[0], size[1])(example)

    load_resized = load
    if cache_decoded:
        resized = _resized_sizes(dataset.sizes, scale_list[0], keep_ratio)
        load_resized = _cache_resized(
            lambda index: load(index), len(dataset), resized, num_parallel, cache_limit
        )

    # Nothing is written in Python's own control flow, and to convert it would take
    # seconds of every start.
    @tf.autograph.experimental.do_not_convert
    def prepare(row):
        if cache_decoded:
            example = load_resized(row[_RECORD])
        else:
            size = tf.cast(row[_SHORT : _LONG + 1], "int32")
            rectangle = None
            if training and random_crop > 0:
                rectangle = tf.cast(row[_CROP:], "int32")
            example = load_resized(row[_RECORD], size, rectangle)
        rng = tf.cast(row[_SEED : _SEED + 2], "int32")
        if training and cut_out > 0:
            own = tf.random.experimental.stateless_fold_in(rng, 1)
            example = transforms.cut_out(probability=cut_out)(example, own)
        if training and flip > 0:
            example = transforms.flip_horizontal(flip)(example, rng)
        example = transforms.normalize(normalization)(example)
        canvas = tf.cast(row[_HEIGHT : _WIDTH + 1], "int32")
        example = transforms.pad_to(canvas[0], canvas[1])(example)
        example = _pad_objects(example, max_boxes)
        image = example.pop("image")
        # With one shape all of the graph behind can be static.
        static = shapes[0] if len(shapes) == 1 else (None, None)
        image_id = tf.where(
            row[_IS_REPEAT] == 1,
            tf.constant(PADDING_IMAGE_ID, "int64"),
            example["image_id"],
        )
        return {
            "images": tf.ensure_shape(image, [*static, 3]),
            "boxes": example["boxes"],
            "labels": example["labels"],
            "image_size": tf.ensure_shape(example["image_size"], [2]),
            "scale": tf.ensure_shape(example["scale"], [2]),
            "image_id": image_id,
        }

    share = batch_size // num_replicas

    def plan(epoch):
        rows = planner.plan(epoch)
        by_replica = rows.reshape(-1, num_replicas, share * rows.shape[1])
        return by_replica[:, list(replicas)].reshape(-1, rows.shape[1])

    epoch_order = EpochOrder(start_epoch)
    if training:
        # All orders beforehand, so that no thread of the pipeline waits for the GIL.
        first = plan(0).astype("int32")
        count = max(1, min(MAX_ORDERS, MAX_ORDER_BYTES // first.nbytes))
        orders = np.empty((count, *first.shape), "int32")
        for epoch in range(count):
            orders[epoch] = plan(epoch)
        orders = tf.constant(orders)

        @tf.autograph.experimental.do_not_convert
        def rows_of_epoch(_):
            epoch, step = epoch_order.take()
            rows = orders[epoch % count][step * share * len(replicas) :]
            return tf.data.Dataset.from_tensor_slices(tf.cast(rows, "int64"))

        batches = tf.data.Dataset.from_tensors(0).flat_map(rows_of_epoch)
    else:
        batches = tf.data.Dataset.from_tensor_slices(plan(start_epoch))
    batches = batches.map(prepare, num_parallel_calls=num_parallel, deterministic=True)
    batches = batches.batch(share, drop_remainder=True)
    if not training and not pad_last_batch:
        batches = batches.map(_trim)
    batches = batches.apply(
        tf.data.experimental.assert_cardinality(planner.num_batches * len(replicas))
    )
    batches = batches.prefetch(2)
    options = tf.data.Options()
    options.deterministic = True
    # Nothing here is left to tune, and closing an iterator can wait for the tuning
    # thread's next period, up to a minute (TF 2.21, seen under MirroredStrategy).
    options.autotune.enabled = False
    # One process reads all files: there is nothing to shard by file.
    options.experimental_distribute.auto_shard_policy = (
        tf.data.experimental.AutoShardPolicy.OFF
    )
    batches = batches.with_options(options)
    batches.canvas_shapes = shapes
    if training:

        def image_ids(epoch, step):
            rows = planner.plan(epoch % count)[step * batch_size :][:batch_size]
            return [int(dataset[index].image_id) for index in rows[:, _RECORD]]

        def shapes_of_epoch(epoch):
            rows = planner.plan(epoch % count)[::batch_size, _HEIGHT : _WIDTH + 1]
            return [(int(height), int(width)) for height, width in rows]

        batches.epoch_order = epoch_order
        batches.image_ids = image_ids
        batches.shapes_of_epoch = shapes_of_epoch
    return batches


def _plan_random_sizes(
    dataset, scale_range, random_crop, max_shapes, keep_ratio, order
):
    """A `_RandomSizePlanner` and the sorted list of its canvas shapes."""
    if max_shapes < 1:
        raise ValueError(
            f"`max_shapes` must be >= 1. Received: max_shapes={max_shapes}"
        )
    random_sizes = RandomSizes(
        dataset.sizes,
        [record.boxes for record in dataset],
        _is_landscape(dataset.sizes),
        scale_range,
        random_crop,
        keep_ratio,
    )
    canvases = random_sizes.choose_canvases(max_shapes)
    shapes = {tuple(map(int, row)) for rows in canvases.values() for row in rows}
    return _RandomSizePlanner(random_sizes, canvases, *order), sorted(shapes)


def _check_replicas(replicas, num_replicas, batch_size):
    if num_replicas < 1 or batch_size % num_replicas:
        raise ValueError(
            "`batch_size` must be a multiple of `num_replicas`, which is >= 1. "
            f"Received: batch_size={batch_size}, num_replicas={num_replicas}"
        )
    if not len(replicas) or min(replicas) < 0 or max(replicas) >= num_replicas:
        raise ValueError(
            "`replicas` must hold some of 0 .. num_replicas - 1. "
            f"Received: replicas={replicas}, num_replicas={num_replicas}"
        )


def _group(dataset, scales, is_multi_scale, canvas_shapes, max_shapes, keep_ratio):
    """Divides the images into groups whose members may share a batch.

    Returns:
        (list of `_Group`, those that move up before their targets; all canvas shapes).
    """
    landscape = _is_landscape(dataset.sizes)
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
            groups.append(_Group(members, np.asarray(hulls), fitting=members))
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
    # By area, so that a canvas comes before those that hold it.
    shapes = sorted(set(shapes), key=lambda shape: (shape[0] * shape[1], shape))
    resized = _resized_sizes(dataset.sizes, scales[0], keep_ratio)
    canvas = _assign_canvases(dataset, resized, shapes)
    for side in (False, True):
        first = len(groups)
        for number, shape in enumerate(shapes):
            members = indices[(canvas == number) & (landscape == side)]
            if len(members):
                fits = np.all(resized <= shape, axis=-1) & (landscape == side)
                group = _Group(members, np.asarray([shape]), fitting=indices[fits])
                groups.append(group)
        for number, group in enumerate(groups[first:], first):
            for later in range(number + 1, len(groups)):
                if np.all(groups[later].canvases >= group.canvases):
                    group.larger = later
                    break
    return groups, shapes
