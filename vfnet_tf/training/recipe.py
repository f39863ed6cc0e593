"""A training that is fitted to the user's data, where the user did not choose."""

import dataclasses
import math

import numpy as np

from vfnet_tf.config import override, with_epochs

#: Fields of a config that the recipe sets, each with the option that sets it instead.
FIELDS = {
    "data__image_size": "--image-size",
    "data__cache_decoded": "--cache",
    "training__batch_size": "--batch-size",
    "training__epochs": "--epochs, --time",
    "training__optimizer": "--optimizer",
    "training__base_learning_rate": "--learning-rate",
    "training__clip_norm": "--clip-norm",
    "training__schedule": "--schedule",
    "training__warmup_steps": "--warmup-steps",
    "training__ema_momentum": "--ema",
}
#: Most that the warm-up may take of all updates.
WARMUP_SHARE = 0.1
#: Share of the updates over which the weights are averaged.
AVERAGED_SHARE = 0.05
#: Side in pixels that a small object shall have in the network's input. P3 has stride 8.
OBJECT_SIDES = {"cpu": 20, "gpu": 32}
#: Short sides of the input in pixels, (least, most).
SHORT_SIDES = {"cpu": (320, 640), "gpu": (480, 800)}
#: Bytes of the activations of a training step for each further pixel of the input, by
#: backbone, as `preview.estimate_step_memory` counts them.
PIXEL_BYTES = {
    "resnet18": 2_600,
    "resnet34": 3_000,
    "resnet50": 5_000,
    "keras:ResNet50": 4_800,
    "resnet101": 6_600,
    "resnext101_32x4d": 8_600,
}
#: Those of the largest model, for all others.
MOST_PIXEL_BYTES = 29_200
#: Share of a device's memory that the activations may take.
MEMORY_SHARE = 0.5
#: Updates for each square root of the number of images, by what the weights are.
UPDATES = {"detector": 45, "backbone": 60, "none": 120}
#: The learning rate beside the config's, by what the weights are.
RATES = {"detector": 0.5, "backbone": 1.0, "none": 1.0}
#: Objects of a class from which on its sizes say something.
TELLING_OBJECTS = 10
#: Objects that a training shall see, repetitions counted.
SEEN_OBJECTS = 5_000
#: Most bytes of decoded images that are kept in memory.
CACHED_BYTES = 1e9
#: Largest norm of a gradient. After a short warm-up the class loss of a new classifier
#: leaps to three times its value without it, and rare classes are not learned.
CLIP_NORM = 10.0
#: Images up to which a detector on a trained backbone learns faster with AdamW.
ADAMW_IMAGES = 2_000
#: Rate of AdamW for 16 images a step.
ADAMW_RATE = 0.002


@dataclasses.dataclass(frozen=True)
class Facts:
    """What the recipe looks at: the data, the weights, the machine.

    Attributes:
        sizes: float64 `[images, 2]`, (height, width).
        sides: by class, the narrower sides of its objects as shares of the shorter side
            of their image.
        weights, hardware: see `fit_recipe`.
    """

    sizes: np.ndarray
    sides: list
    weights: str
    hardware: object

    @property
    def images(self):
        """Number of images."""
        return len(self.sizes)

    @property
    def objects(self):
        """Number of objects."""
        return sum(map(len, self.sides))

    @property
    def device(self):
        """`"cpu"` or `"gpu"`."""
        return "gpu" if self.hardware.is_gpu else "cpu"


def fit_recipe(config, dataset, hardware, *, weights, given=()):
    """Fits input and schedule to a training set, to the weights and to the machine.

    Args:
        config: `Config`.
        dataset: `DetectionDataset` to train on.
        hardware: `Hardware`.
        weights: what the training starts from: `"detector"`, `"backbone"` or `"none"`.
        given: keys of `FIELDS` that the user has chosen, which stay, and of what a config
            does not hold or the weights decide: `"frozen_stages"`, `"evaluate_every"`.

    Returns:
        (`Config`; list of lines, one for each choice: the value, its reason, and the
        option that sets it). The same arguments give the same choices.
    """
    facts = Facts(
        sizes=np.asarray(dataset.sizes, "float64"),
        sides=_relative_sides(dataset),
        weights=weights,
        hardware=hardware,
    )
    if "training__base_learning_rate" in given:
        # A rate is chosen for an optimizer: that of the config.
        given = {*given, "training__optimizer"}
    lines = []
    for name, choose in _CHOICES:
        changes, reason = choose(config, facts)
        key = next(iter(changes))
        if key in given:
            continue
        config = override(
            config, **{key: value for key, value in changes.items() if key not in given}
        )
        lines.append(f"{name:10s} {reason} ({FIELDS[key]})")
    if "frozen_stages" not in given:
        frozen = _frozen(config.model.backbone, weights)
        lines.append(f"{'frozen':10s} {frozen} (--frozen-stages)")
    if "evaluate_every" not in given:
        every = evaluation_interval(config.training.epochs)
        epochs = "epoch" if every == 1 else f"{every} epochs"
        lines.append(
            f"{'evaluation':10s} every {epochs}, about twelve in a training "
            "(--evaluate-every)"
        )
    return config, lines


def evaluation_interval(epochs):
    """Epochs between two evaluations: about ten to twenty in a training."""
    return max(round(epochs / 12), 1)


def keep_choices(config, earlier, given=()):
    """The config with what an earlier start of the same run chose.

    Args:
        config: `Config`.
        earlier: `Config` of the run.
        given: keys of `FIELDS` that the user has chosen now.

    Returns:
        `Config`.
    """
    changes = {}
    for key in (*FIELDS, *_FOLLOWING):
        if key not in given:
            part, field = key.split("__")
            changes[key] = getattr(getattr(earlier, part), field)
    return override(config, **changes)


def _choose_size(config, facts):
    least, most = SHORT_SIDES[facts.device]
    wanted = OBJECT_SIDES[facts.device]
    shorts, longs = facts.sizes.min(axis=1), facts.sizes.max(axis=1)
    natural = float(np.median(shorts))
    largest = min(max(natural, least), most) if facts.device == "cpu" else most
    small = _small_side(facts) if facts.objects else None
    short = least if small is None else wanted / small
    short = int(-(-min(max(short, least), largest) // 32) * 32)
    ratio = min(float(np.quantile(longs / shorts, 0.9)), 2.0)
    size = (short, round(short * ratio))
    reason = f"{size[0]}x{size[1]}: "
    if small is None:
        reason += "no object says what is needed"
    else:
        reason += (
            f"nine tenths of each class's objects have {small * short:.0f} pixels there"
        )
    reason += f", images of {natural:.0f}x{natural * ratio:.0f} pixels"
    if facts.device == "cpu":
        reason += (
            f", on a CPU within {least} and {most} pixels, not enlarged beyond that"
        )
    changes = {
        "data__image_size": size,
        "data__keep_ratio": True,
        "data__scales": (),
        "data__scale_range": (),
    }
    return changes, reason


def _relative_sides(dataset):
    """The narrower sides of the objects beside their image's shorter one, by class."""
    shorts = [min(size) for size in dataset.sizes]
    sides = [
        np.min(record.boxes[:, 2:] - record.boxes[:, :2], axis=1, initial=np.inf)
        / short
        for record, short in zip(dataset, shorts, strict=True)
    ]
    labels = np.concatenate([record.labels for record in dataset])
    sides = np.concatenate(sides)
    return [sides[labels == label] for label in range(dataset.num_classes)]


def _small_side(facts):
    """The side that nine tenths of the objects of each class exceed, or None.

    It is a share of the shorter side of the image. Classes that are too rare to tell
    count together.
    """
    common = [sides for sides in facts.sides if len(sides) >= TELLING_OBJECTS]
    common = common or [np.concatenate(facts.sides)]
    return min(float(np.quantile(sides, 0.1)) for sides in common if len(sides))


def _choose_cache(config, facts):
    if config.data.random_crop > 0:
        reason = "images are decoded in each epoch: the config crops them at random"
        return {"data__cache_decoded": False}, reason
    short, long = config.data.image_size
    size = facts.images * short * long * 3
    is_small = size <= CACHED_BYTES
    where = "kept in memory" if is_small else "decoded in each epoch"
    reason = f"images are {where}: decoded, they take {size / 1e9:.2g} GB"
    return {"data__cache_decoded": is_small}, reason


def _choose_batch(config, facts):
    replicas = facts.hardware.replicas
    if facts.device == "cpu":
        wanted, reason = 4, "small, since a CPU makes few steps"
    else:
        wanted = 4 if facts.images < 100 else 8 if facts.images < 400 else 16
        reason = f"for {facts.images} images"
    short, long = config.data.image_size
    pixel = PIXEL_BYTES.get(config.model.backbone.name, MOST_PIXEL_BYTES)
    share = max(wanted // replicas, 1)
    while share > 1 and share * short * long * pixel > (
        MEMORY_SHARE * facts.hardware.memory
    ):
        share //= 2
        reason = f"what {facts.hardware.memory / 2**30:.0f} GiB of memory hold"
    while share * replicas > max(facts.images, replicas):
        share //= 2
        reason = f"there are {facts.images} images"
    batch = max(share, 1) * replicas
    return {"training__batch_size": batch}, f"{batch} images a step: {reason}"


def _choose_epochs(config, facts):
    training = config.training
    effective = training.batch_size * training.accumulate_steps
    updates = UPDATES[facts.weights] * math.sqrt(facts.images)
    per_epoch = max(facts.images / effective, 1)
    epochs = updates / per_epoch
    objects = facts.objects
    if objects * epochs < SEEN_OBJECTS:
        # Few objects teach little in an epoch, to the double at most.
        epochs = min(SEEN_OBJECTS / max(objects, 1), 2 * epochs)
    least = 24 if facts.weights == "none" else 12
    epochs = max(round(epochs), least)
    steps = math.ceil(facts.images / training.batch_size) * epochs
    drops = with_epochs(config, epochs).training.drop_epochs
    changes = {"training__epochs": epochs, "training__drop_epochs": drops}
    reason = (
        f"{epochs} epochs, about {steps} steps: for {facts.images} images with {objects} "
        f"objects and {_WEIGHTS[facts.weights]}"
    )
    return changes, reason


def _choose_optimizer(config, facts):
    if facts.weights == "none":
        reason = "adamw, which gets further from random weights in so few steps"
        return {"training__optimizer": "adamw"}, reason
    if facts.weights == "backbone" and facts.images <= ADAMW_IMAGES:
        reason = f"adamw, which gets further in few steps, for {facts.images} images"
        return {"training__optimizer": "adamw"}, reason
    return {"training__optimizer": "sgd"}, "sgd, the published one"


def _choose_rate(config, facts):
    training = config.training
    factor = RATES[facts.weights]
    if training.optimizer == "adamw":
        rate, batch, name = ADAMW_RATE, 16, "that of adamw"
    else:
        rate, batch = training.base_learning_rate, training.base_batch_size
        name = "the published one"
    rate *= factor
    part = "" if factor == 1 else f"{factor:g} of "
    reason = f"{rate:g} for {batch} images a step, {part}{name}"
    if factor != 1:
        reason += f": {_WEIGHTS[facts.weights]}"
    changes = {
        "training__base_learning_rate": rate,
        "training__base_batch_size": batch,
    }
    return changes, reason


def _choose_clip(config, facts):
    norm = config.training.clip_norm
    if norm is None:
        norm, reason = CLIP_NORM, "since the warm-up is short"
    else:
        reason = "the config's"
    return {
        "training__clip_norm": norm
    }, f"gradients of norm {norm:g} at most, {reason}"


def _choose_schedule(config, facts):
    reason = "half a cosine to the end of the training"
    return {"training__schedule": "cosine"}, reason


def _choose_warmup(config, facts):
    updates = _updates(config, facts)
    most = max(int(updates * WARMUP_SHARE), 1)
    steps = min(config.training.warmup_steps, most)
    where = "a tenth of them" if steps == most else "the published one"
    reason = f"{steps} of {updates} updates: {where}"
    return {"training__warmup_steps": steps}, reason


def _choose_average(config, facts):
    updates = _updates(config, facts)
    momentum = 1 - 1 / max(AVERAGED_SHARE * updates, 2)
    momentum = min(round(momentum, 4), 0.9998)
    reason = (
        f"weights are averaged over about {1 / (1 - momentum):.0f} updates, momentum "
        f"{momentum:g}; the average is evaluated and kept"
    )
    return {"training__ema_momentum": momentum}, reason


def _frozen(backbone, weights):
    if weights == "none":
        return "nothing: the weights are random, all of them train"
    stages = backbone.frozen_stages
    parts = "the stem" if stages == 0 else f"the stem and {stages} stages"
    parts = parts.replace("1 stages", "one stage") if stages >= 0 else "no stage"
    is_frozen = backbone.norm == "frozen_batch_norm"
    norms = "all batch norms that have weights" if is_frozen else "no batch norm"
    return f"{parts} of the backbone and {norms}: {_WEIGHTS[weights]}"


def _updates(config, facts):
    training = config.training
    steps = math.ceil(facts.images / training.batch_size) * training.epochs
    return max(steps // training.accumulate_steps, 1)


_WEIGHTS = {
    "detector": "the weights of a trained detector",
    "backbone": "the weights of a trained backbone",
    "none": "random weights",
}
# Fields that follow from another choice.
_FOLLOWING = (
    "data__keep_ratio",
    "data__scales",
    "data__scale_range",
    "training__drop_epochs",
    "training__base_batch_size",
)
# In this order, each sees what those before it have chosen.
_CHOICES = (
    ("size", _choose_size),
    ("cache", _choose_cache),
    ("batch", _choose_batch),
    ("length", _choose_epochs),
    ("optimizer", _choose_optimizer),
    ("rate", _choose_rate),
    ("clipping", _choose_clip),
    ("schedule", _choose_schedule),
    ("warm-up", _choose_warmup),
    ("average", _choose_average),
)
