"""From a dataset of records to batches, as a `tf.data.Dataset`.

Which images make a batch, in which order, cropped and scaled how and on which canvas, is
planned beforehand with numpy; decoding, resizing, augmenting and padding then run in
TensorFlow's threads.
A plan depends on the seed and the epoch only, so a resumed run sees what the
uninterrupted one would have seen.
"""

import dataclasses

import numpy as np
import tensorflow as tf

from vfnet_tf.data.augmentation.augmentation import Augmentation
from vfnet_tf.data.augmentation.partners import (
    count_partner_epochs,
    make_partner_loader,
    with_partners,
)
from vfnet_tf.data.augmentation.presets import training_transforms
from vfnet_tf.data.canvases import check_image_size, check_scale_range, resized_sizes
from vfnet_tf.data.epoch_plan import (
    CROP,
    HEIGHT,
    IS_REPEAT,
    LONG,
    RECORD,
    SEED,
    SHORT,
    WIDTH,
    EpochOrder,
    Planner,
    make_groups,
    plan_random_sizes,
    repeat_factors,
)
from vfnet_tf.data.example import PADDING_IMAGE_ID, PADDING_LABEL
from vfnet_tf.data.images import decode
from vfnet_tf.data.images.places import find_place
from vfnet_tf.data.own_transforms import (
    check_transforms,
    is_own,
    name_of,
    with_checks,
)
from vfnet_tf.data.settings import DataConfig
from vfnet_tf.data.transforms import (
    compose,
    crop,
    normalize,
    pad_to,
    resize_exact,
    resize_keep_ratio,
)

# Epochs whose order is planned beforehand; the epochs after them repeat these orders from
# the first, with other draws of the transforms. With crops COCO takes 5.6 MB an epoch: the
# 41 epochs of VFNet-X all differ.
MAX_ORDERS = 128
MAX_ORDER_BYTES = 256 * 2**20


class _RecordTensors:
    """The records of a dataset as a few tensors that tf.data functions capture."""

    def __init__(self, dataset):
        records = list(dataset)
        counts = [len(record.boxes) for record in records]
        # A captured tensor on an accelerator would be copied for every image.
        with tf.device("CPU:0"):
            self.paths = tf.constant([record.path for record in records])
            self.orientations = tf.constant([r.orientation for r in records], "int32")
            self.needs_pil = tf.constant([record.needs_pil for record in records])
            self.image_ids = tf.constant([r.image_id for r in records], "int64")
            self.row_splits = tf.constant(np.cumsum([0, *counts]), "int64")
            boxes = np.concatenate([record.boxes for record in records])
            labels = np.concatenate([record.labels for record in records])
            self.boxes = tf.constant(boxes, "float32")
            self.labels = tf.constant(labels, "int32")
        self.has_pil = any(record.needs_pil for record in records)
        self.in_records = any(find_place(record.path) for record in records)

    def example(self, index):
        """One example, see `data.example`; its image is decoded from the file."""
        rows = slice(self.row_splits[index], self.row_splits[index + 1])
        image = decode.load_image(
            self.paths[index],
            self.orientations[index],
            self.needs_pil[index] if self.has_pil else False,
            self.in_records,
        )
        return {
            "image": image,
            "boxes": self.boxes[rows],
            "labels": self.labels[rows],
            "image_id": self.image_ids[index],
        }


def _cache_resized(load, num_records, sizes, num_parallel, limit):
    """Loads all examples once; returns a function like `load` that reads from memory.

    `load` takes an int64 index; `sizes` are int `[N, 2]`, (height, width) of its images;
    `limit` is in bytes.
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
    count = tf.shape(example["boxes"])[0]
    check = tf.debugging.assert_less_equal(
        count,
        max_boxes,
        "A transform gave an image more boxes than `max_boxes`: give `build_pipeline` or "
        "`Trainer` a `max_boxes=...` as large as an image can get.",
    )
    with tf.control_dependencies([check] if check is not None else []):
        padding = [[0, max_boxes - count]]
    boxes = tf.pad(example["boxes"], [*padding, [0, 0]])
    labels = tf.pad(example["labels"], padding, constant_values=PADDING_LABEL)
    return {
        **example,
        "boxes": tf.ensure_shape(boxes, [max_boxes, 4]),
        "labels": tf.ensure_shape(labels, [max_boxes]),
    }


@tf.autograph.experimental.do_not_convert
def _trim(batch):
    """Removes the repeats that fill a last batch."""
    is_kept = batch["image_id"] != PADDING_IMAGE_ID
    return {name: tf.boolean_mask(value, is_kept) for name, value in batch.items()}


def build_pipeline(
    dataset,
    data=None,
    *,
    batch_size,
    training,
    transforms=None,
    canvas_shapes=None,
    shuffle=None,
    seed=0,
    start_epoch=0,
    epochs=None,
    max_boxes=None,
    drop_remainder=False,
    pad_last_batch=True,
    num_parallel=2,
    cache_limit=4 * 2**30,
    replicas=range(1),
    num_replicas=1,
    **fields,
):
    """Builds the batches of a dataset; see `data.example` for what a batch holds.

    A batch holds images of one orientation on one canvas. One iteration is one epoch
    of known cardinality. In training all batches are full: images left over move to a
    larger canvas, and the last batch of the largest is filled up with other images
    drawn at random. In evaluation every image comes once, on the smallest canvas that
    holds it; repeats that fill a last batch have `image_id` -1.

    Args:
        dataset: `DetectionDataset`.
        data: `DataConfig`, how images are resized, augmented and normalised; None for
            its defaults.
        batch_size: int, images of one step over all replicas.
        training: bool. Training shuffles, and applies what `data` draws at random.
        transforms: list of transforms of resized images before they are normalised, see
            `data.transforms`. None takes `augmentation.presets.training_transforms(data)`
            in training and none in evaluation. Each gets a seed of its own. What own
            functions give is checked, see `data.own_transforms`.
        canvas_shapes: list of (height, width), multiples of 32, that images are padded
            to. None chooses them by `choose_canvas_shapes`.
        shuffle: bool; None shuffles in training only.
        seed: int >= 0, with the epoch it fixes order, fill-up and all that is drawn.
        start_epoch: int >= 0, the epoch of the first iteration, for a resumed run.
        epochs: int >= 1, those of the training, which say when `data.partners_off`
            begins. Augmentations of several images need it; None lets them run in all
            epochs, with a warning.
        max_boxes: int, M; None takes the most boxes of an image in the dataset, or more
            if the augmentations add some. Own transforms that add boxes need it.
        drop_remainder: bool, leave out what does not fill a last batch.
        pad_last_batch: bool, in evaluation; False gives smaller last batches instead.
        num_parallel: int, images prepared at a time.
        cache_limit: int, bytes that `data.cache_decoded` may take.
        replicas: range of int, those of the `num_replicas` that this pipeline feeds. It
            gives the share of each, one after the other, then those of the next batch.
            Pipelines of one seed that feed different replicas share each batch without
            overlap, and each decodes its own images only.
        num_replicas: int >= 1, what divides a batch; `batch_size` is a multiple.
        **fields: fields of `DataConfig` in place of those of `data`, such as
            `image_size=(480, 640)`.

    Returns:
        `tf.data.Dataset` of batch dicts. Its attribute `canvas_shapes` lists all padded
        shapes, (height, width); a training pipeline also has `epoch_order`, an
        `EpochOrder` callback for `fit`, and the functions `image_ids`, from epoch and
        step to the ids of that batch, and `shapes_of_epoch`, from epoch to the padded
        shape of each step.

    Raises:
        TypeError: for a keyword that is neither an argument nor a field of `DataConfig`.
        ValueError: for arguments out of range or against each other, an image that
            fits on no canvas, more boxes than `max_boxes`, or no batch at all.
    """
    data = _with_fields(data or DataConfig(), fields)
    if transforms is None:
        transforms = training_transforms(data) if training else []
    transforms = check_transforms(transforms)
    names = [
        f"`{name_of(each)}` (transforms[{place}])" if is_own(each) else None
        for place, each in enumerate(transforms)
    ]
    is_idle = [getattr(each, "is_idle", False) for each in transforms]
    names, transforms = (
        [each for each, idle in zip(values, is_idle, strict=True) if not idle]
        for values in (names, transforms)
    )
    max_boxes = _checked_max_boxes(dataset, transforms, max_boxes)
    _check_numbers(
        data,
        batch_size=(batch_size, 1),
        seed=(seed, 0),
        start_epoch=(start_epoch, 0),
        epochs=(1 if epochs is None else epochs, 1),
        num_parallel=(num_parallel, 1),
    )
    if training:
        _check_sizes(data, canvas_shapes)
    _check_replicas(replicas, num_replicas, batch_size, pad_last_batch)
    shuffle = training if shuffle is None else shuffle
    order = (batch_size, seed, shuffle, training, drop_remainder)
    planner, shapes, size = _make_planner(dataset, data, canvas_shapes, training, order)

    load = _make_loader(dataset, data, training, size, num_parallel, cache_limit)
    partner_epochs = count_partner_epochs(transforms, data.partners_off, epochs)

    def steps(row, epoch):
        load_other = make_partner_loader(load, row, RECORD, len(dataset))
        is_on = epoch < partner_epochs
        bound = [with_partners(each, load_other, is_on) for each in transforms]
        return [
            step if name is None else with_checks(step, name, dataset.num_classes)
            for step, name in zip(bound, names, strict=True)
        ]

    prepare = _make_preparation(load, steps, data.normalization, max_boxes, shapes)
    share = batch_size // num_replicas

    def plan(epoch):
        rows = planner.plan(epoch)
        by_replica = rows.reshape(-1, num_replicas, share * rows.shape[1])
        return by_replica[:, list(replicas)].reshape(-1, rows.shape[1])

    epoch_order = EpochOrder(start_epoch)
    if training:
        rows, num_orders = _rows_in_order(plan, epoch_order, share * len(replicas))
    else:
        rows = _with_epoch(plan(start_epoch), start_epoch)
    batches = rows.map(prepare, num_parallel_calls=num_parallel, deterministic=True)
    batches = batches.batch(share, drop_remainder=True)
    if not training and not pad_last_batch:
        batches = batches.map(_trim)
    num_batches = planner.num_batches * len(replicas)
    batches = batches.apply(tf.data.experimental.assert_cardinality(num_batches))
    batches = batches.prefetch(2).with_options(_options())
    batches.canvas_shapes = shapes
    if training:

        def image_ids(epoch, step):
            rows = planner.plan(epoch % num_orders)[step * batch_size :][:batch_size]
            return [int(dataset[index].image_id) for index in rows[:, RECORD]]

        def shapes_of_epoch(epoch):
            rows = planner.plan(epoch % num_orders)[::batch_size, HEIGHT : WIDTH + 1]
            return [(int(height), int(width)) for height, width in rows]

        batches.epoch_order = epoch_order
        batches.image_ids = image_ids
        batches.shapes_of_epoch = shapes_of_epoch
    return batches


def _make_planner(dataset, data, canvas_shapes, training, order):
    """Makes the plan of the epochs.

    Returns:
        (`Planner`, list of all canvas shapes, the first size that images are fitted to).
    """
    keep_ratio, max_shapes = data.keep_ratio, data.max_canvas_shapes
    scale_range = data.scale_range
    if scale_range:
        scale_range = check_scale_range(scale_range, keep_ratio)
    is_multi_scale = training and bool(data.scales)
    sizes = data.scales if is_multi_scale else [data.image_size]
    sizes = [check_image_size(size, keep_ratio) for size in sizes]
    if training and (scale_range or data.random_crop > 0):
        scale_range, crop_probability = scale_range or sizes * 2, data.random_crop
        planner, shapes = plan_random_sizes(
            dataset, scale_range, crop_probability, max_shapes, keep_ratio, order
        )
    else:
        groups, shapes = make_groups(
            dataset, sizes, is_multi_scale, canvas_shapes, max_shapes, keep_ratio
        )
        repeats = None
        if training and data.oversample > 0:
            repeats = repeat_factors(dataset, data.oversample)
        planner = Planner(groups, sizes, *order, repeats=repeats)
    if planner.num_batches == 0:
        counts = [len(group.records) for group in planner.sample_groups()]
        raise ValueError(
            "`drop_remainder=True` must leave at least one batch. "
            f"Received: batch_size={planner.batch_size}, images by canvas={counts}"
        )
    return planner, shapes, sizes[0]


def _make_loader(dataset, data, training, size, num_parallel, cache_limit):
    """Makes the function from a row of the plan to a cropped and resized example.

    A partner, an image that another row needs besides its own, is not cropped.
    """
    records = _RecordTensors(dataset)
    resize = resize_keep_ratio if data.keep_ratio else resize_exact

    def load(row, is_partner=False):
        example = records.example(row[RECORD])
        if training and data.random_crop > 0 and not is_partner:
            example = crop(*tf.unstack(tf.cast(row[CROP:], "int32")))(example)
        size = tf.cast(row[SHORT : LONG + 1], "int32")
        return resize(size[0], size[1])(example)

    if not data.cache_decoded:
        return load
    resized = resized_sizes(dataset.sizes, size, data.keep_ratio)
    load_cached = _cache_resized(
        lambda index: resize(*size)(records.example(index)),
        len(dataset),
        resized,
        num_parallel,
        cache_limit,
    )
    return lambda row, is_partner=False: load_cached(row[RECORD])


def _make_preparation(load, steps, normalization, max_boxes, shapes):
    """Makes the function from a row of the plan and its epoch to an image of a batch.

    `steps` makes the list of transforms of such a row.
    """
    # With one shape all of the graph behind can be static.
    static = shapes[0] if len(shapes) == 1 else (None, None)

    # AutoGraph would take seconds of every start, and there is nothing to convert: no
    # `if` or loop depends on a tensor.
    @tf.autograph.experimental.do_not_convert
    def prepare(row, epoch):
        example = load(row)
        rng = tf.cast(row[SEED : SEED + 2], "int32")
        example = compose(steps(row, epoch))(example, rng)
        example = normalize(normalization)(example)
        canvas = tf.cast(row[HEIGHT : WIDTH + 1], "int32")
        example = pad_to(canvas[0], canvas[1])(example)
        example = _pad_objects(example, max_boxes)
        padding_id = tf.constant(PADDING_IMAGE_ID, "int64")
        return {
            "images": tf.ensure_shape(example["image"], [*static, 3]),
            "boxes": example["boxes"],
            "labels": example["labels"],
            "image_size": tf.ensure_shape(example["image_size"], [2]),
            "scale": tf.ensure_shape(example["scale"], [2]),
            "image_id": tf.where(row[IS_REPEAT] == 1, padding_id, example["image_id"]),
        }

    return prepare


def _rows_in_order(plan, epoch_order, num_rows):
    """The rows of the epoch that is next, as a `tf.data.Dataset`.

    Args:
        plan: function from an epoch to its rows.
        epoch_order: `EpochOrder`.
        num_rows: int, the rows of one step.

    Returns:
        (dataset, number of epochs that differ).
    """
    # All orders are planned beforehand: no thread of the pipeline waits for the GIL.
    first = plan(0).astype("int32")
    count = max(1, min(MAX_ORDERS, MAX_ORDER_BYTES // first.nbytes))
    orders = np.empty((count, *first.shape), "int32")
    for epoch in range(count):
        orders[epoch] = plan(epoch)
    orders = tf.constant(orders)

    @tf.autograph.experimental.do_not_convert
    def rows_of_epoch(_):
        epoch, step = epoch_order.take()
        rows = orders[epoch % count][step * num_rows :]
        # The transforms draw anew where an order comes again.
        draw = tf.one_hot(SEED + 1, first.shape[1], dtype="int32")
        rows += draw * tf.cast(epoch // count, "int32")
        return _with_epoch(tf.cast(rows, "int64"), epoch)

    return tf.data.Dataset.from_tensors(0).flat_map(rows_of_epoch), count


def _with_epoch(rows, epoch):
    """The rows of an epoch, each with its number, as a `tf.data.Dataset`."""
    epochs = tf.fill([tf.shape(rows)[0]], tf.cast(epoch, "int64"))
    return tf.data.Dataset.from_tensor_slices((rows, epochs))


def _options():
    options = tf.data.Options()
    options.deterministic = True
    # There is nothing to tune, and closing an iterator can wait up to a minute for the
    # next period of the tuning thread (TF 2.21, under MirroredStrategy).
    options.autotune.enabled = False
    # One process reads all files: there is nothing to shard by file.
    options.experimental_distribute.auto_shard_policy = (
        tf.data.experimental.AutoShardPolicy.OFF
    )
    return options


def _with_fields(data, fields):
    """A `DataConfig` with some fields replaced; another name is refused."""
    known = [field.name for field in dataclasses.fields(DataConfig)]
    unknown = sorted(set(fields) - set(known))
    if unknown:
        raise TypeError(
            "`build_pipeline` takes its own arguments and the fields of `DataConfig`: "
            f"{', '.join(known)}. Received: {', '.join(unknown)}"
        )
    return dataclasses.replace(data, **fields)


def _check_numbers(data, **numbers):
    """Checks probabilities of `data`, and numbers that come as (value, lowest)."""
    for name, (value, lowest) in numbers.items():
        if value < lowest:
            raise ValueError(f"`{name}` must be >= {lowest}. Received: {name}={value}")
    for name in ("flip", "random_crop", "cut_out", "partners_off", "oversample"):
        value = getattr(data, name)
        if not 0 <= value <= 1:
            raise ValueError(f"`{name}` must be in [0, 1]. Received: {name}={value}")


def _checked_max_boxes(dataset, transforms, max_boxes):
    """`max_boxes`, or the most boxes that an image can get where it is None."""
    if len(dataset) == 0:
        raise ValueError("`dataset` must hold at least one image. Received: 0 images")
    most_boxes = max(1, *(len(record.boxes) for record in dataset))
    of_partner = most_boxes
    for each in transforms:
        if isinstance(each, Augmentation):
            most_boxes = each.most_boxes(most_boxes, of_partner)
    if max_boxes is not None and max_boxes < most_boxes:
        raise ValueError(
            f"`max_boxes` must be at least {most_boxes}, the most boxes of an image"
            f"{' after its augmentations' if most_boxes > of_partner else ''}. "
            f"Received: max_boxes={max_boxes}"
        )
    return most_boxes if max_boxes is None else max_boxes


def _check_sizes(data, canvas_shapes):
    """Refuses settings of the images' sizes that exclude each other."""
    is_fixed = data.cache_decoded or canvas_shapes is not None
    if data.scales and is_fixed:
        raise ValueError(
            "`scales` cannot be combined with `cache_decoded` or `canvas_shapes`. "
            f"Received: scales={data.scales}, cache_decoded={data.cache_decoded}, "
            f"canvas_shapes={canvas_shapes}"
        )
    is_random = bool(data.scale_range) or data.random_crop > 0
    if is_random and (is_fixed or data.scales):
        raise ValueError(
            "`scale_range` and `random_crop` cannot be combined with `cache_decoded`, "
            "`canvas_shapes` or `scales`. "
            f"Received: scale_range={data.scale_range}, random_crop={data.random_crop}, "
            f"cache_decoded={data.cache_decoded}, canvas_shapes={canvas_shapes}, "
            f"scales={data.scales}"
        )
    if is_random and data.oversample > 0:
        raise ValueError(
            "`oversample` cannot be combined with `scale_range` or `random_crop`. "
            f"Received: oversample={data.oversample}, scale_range={data.scale_range}, "
            f"random_crop={data.random_crop}"
        )


def _check_replicas(replicas, num_replicas, batch_size, pad_last_batch):
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
    if num_replicas > 1 and not pad_last_batch:
        raise ValueError(
            "Replicas need shares of one size: leave `pad_last_batch` True. "
            f"Received: pad_last_batch={pad_last_batch}, num_replicas={num_replicas}"
        )
