"""What is wrong with a schedule for a dataset, before the first step of a training."""

import numpy as np

from vfnet_tf.data.canvases import resized_sizes

#: Sides in pixels of the network's input below which an object falls between the points
#: of P3, which has stride 8.
SMALL_SIDE = 8.0
#: Share of such objects from which on a warning is due.
MOST_SMALL = 1 / 3
#: Learning rate of an image in an update, by optimizer.
USUAL_RATES = {"sgd": 0.01 / 16, "adamw": 0.002 / 16}
#: A learning rate this many times above or below the linear rule is far from it.
FAR = 10.0


def find_faults(config, dataset, steps_per_epoch):
    """What of a config cannot work, or is unlikely to, on a training set.

    Args:
        config: `Config`.
        dataset: `DetectionDataset` to train on.
        steps_per_epoch: int, batches of an epoch.

    Returns:
        list of str, each with the numbers and the settings that mend it.
    """
    training = config.training
    updates = training.epochs * steps_per_epoch / training.accumulate_steps
    faults = []
    if training.schedule != "cosine_cycles" and training.warmup_steps >= updates:
        faults.append(
            f"the warm-up takes {training.warmup_steps} steps and the training has "
            f"{updates:.0f}: the learning rate never reaches its value. Train for more "
            f"epochs (--epochs), or give --warmup-steps {max(updates // 10, 1):.0f}"
        )
    late = [drop for drop in training.drop_epochs if drop >= training.epochs]
    if training.schedule == "step" and late:
        faults.append(
            f"the learning rate drops after epoch {', '.join(map(str, late))} and the "
            f"training ends after {training.epochs}: set drop_epochs in the config below "
            "it, or take --schedule cosine"
        )
    batch = training.batch_size * training.accumulate_steps
    if batch > len(dataset):
        faults.append(
            f"an update takes {_images(batch)}, the data have {len(dataset)}: images come "
            "twice in a batch. Make --batch-size smaller"
        )
    linear = USUAL_RATES[training.optimizer] * batch
    rate = training.base_learning_rate
    if training.scale_learning_rate:
        rate *= batch / training.base_batch_size
    if not linear / FAR <= rate <= linear * FAR:
        faults.append(
            f"the learning rate {rate:g} for {_images(batch)} an update is far from "
            f"{linear:g}, which the linear rule gives for {training.optimizer}: leave "
            "--scale-learning-rate on, and --learning-rate (for "
            f"{training.base_batch_size} images) out"
        )
    small = _share_of_small(config.data, dataset)
    if small > MOST_SMALL:
        faults.append(
            f"{small:.0%} of the objects are narrower or lower than {SMALL_SIDE:g} pixels "
            f"at {config.data.image_size[0]}x{config.data.image_size[1]}, and fall between "
            "the points of the finest level: make --image-size larger, or cut the images"
        )
    counts = np.bincount(
        np.concatenate([record.labels for record in dataset]),
        minlength=dataset.num_classes,
    )
    empty = [
        name
        for name, count in zip(dataset.class_names, counts, strict=True)
        if not count
    ]
    if empty:
        number = "1 class has" if len(empty) == 1 else f"{len(empty)} classes have"
        faults.append(
            f"{number} no object to learn from ({', '.join(empty[:5])}"
            f"{', ...' if len(empty) > 5 else ''}): take them out of the annotations"
        )
    return faults


def _images(count):
    return "1 image" if count == 1 else f"{count} images"


def _share_of_small(data, dataset):
    """Share of the objects with a side below `SMALL_SIDE` in the network's input."""
    sizes = np.asarray(dataset.sizes, "float64")
    factors = resized_sizes(dataset.sizes, data.image_size, data.keep_ratio) / sizes
    boxes = [record.boxes for record in dataset]
    sides = np.concatenate([(box[:, 2:] - box[:, :2])[:, ::-1] for box in boxes])
    if not len(sides):
        return 0.0
    factors = np.repeat(factors, [len(box) for box in boxes], axis=0)
    return float(np.mean((sides * factors).min(axis=1) < SMALL_SIDE))
