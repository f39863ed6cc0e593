"""Options of the commands that train, and the config and data of them."""

import dataclasses
import math
from typing import Literal

from vfnet_tf import config as configs
from vfnet_tf.cli.augment_settings import augment_changes
from vfnet_tf.training.saved_states import how_to_go_on


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """What every command that trains takes: model, data, schedule, initial weights."""

    backbone: str | None = None
    """resnet18, resnet34, resnet50, resnet101; keras:MODEL of keras.applications; or
    kerashub:PRESET, a preset of KerasHub or its directory (extra kerashub), see
    docs/interop.md; by default the config's"""
    strategy: Literal["one_device", "mirrored", "multi_worker", "data_parallel"] = (
        "mirrored"
    )
    """one_device; mirrored over all local GPUs (or the CPU); multi_worker over the hosts
    in TF_CONFIG; or data_parallel over the devices of JAX (KERAS_BACKEND=jax), in one
    process or several. See docs/scaling.md"""
    config: str | None = None
    """name or file of a config; by default vfnet_r50_fpn_1x_coco, and without --data
    vfnet_r50_synthetic"""
    data: str | None = None
    """folder or file in COCO, Pascal VOC, YOLO, CSV or TFRecord format, or tfds:NAME:
    docs/data.md; coco:, voc:, yolo:, csv: or tfrecord: before it says which, where that
    is not found out. TFRecords may be remote, gs://bucket/folder"""
    epochs: int | None = None
    """passes over the training images"""
    batch_size: int | None = None
    """images per step over all replicas; the learning rate is scaled with it"""
    image_size: tuple[int, int] | None = None
    """short and long side in pixels that images are resized to fit into, in place of the
    config's scales"""
    augment: tuple[str, ...] = ()
    """what is drawn for each training image: none, flip, light or strong, and names of
    augmentations to add, such as light VerticalFlip QuarterTurn; see
    docs/augmentation.md. By default the config's, and flip is the paper's"""
    augment_set: tuple[str, ...] = ()
    """single settings of it, of augmentations that it has or that are added:
    Mosaic.probability=0.3 LargeScaleJitter.scale=0.5,2; and flip, random_crop, cut_out
    and partners_off of the data: flip=0"""
    oversample: float | None = None
    """repeat images with a class that less than this share of the images have, such as
    0.1, by the repeat factor of LVIS"""
    weights: str | None = None
    """coco (the published weights of the config), imagenet, none, the name of a published
    model, or a path: the run directory of a detector (or a .weights.h5 in one) to start
    from; a .pth or .safetensors of a detector of the official code, or of a
    backbone by torchvision's or timm's names; or, for a keras: or kerashub: backbone, an
    .npz by layer names or Keras's .h5 of that model. By default a kerashub: preset's own;
    vfnet train takes the published COCO weights of the config where they can be had;
    ImageNet weights where they can be had (extra hub; Keras's own for keras:), else
    none. Without --data none, as generated images need no network"""
    learning_rate: float | None = None
    """for 16 images per step; scaled linearly with the batch size"""
    scale_learning_rate: bool = True
    """scale the rate with the images per update; otherwise it is taken as it is"""
    accumulate_steps: int | None = None
    """batches whose gradients are averaged for one update, with --strategy one_device;
    the rate is scaled with their images"""
    clip_norm: float | None = None
    """largest norm of the gradient, of all variables and summed over replicas"""
    schedule: Literal["step", "cosine"] | None = None
    """step drops the rate as the config says; cosine brings it down to the end"""
    warmup_steps: int | None = None
    """updates over which the rate rises at the start"""
    ema: float | None = None
    """momentum of a moving average of the weights, such as 0.999; it is what is evaluated
    and kept as the best; 0 for no average"""
    optimizer: Literal["sgd", "adamw"] | None = None
    """sgd, the official one, or adamw, which gets further in a few hundred steps but
    wants a smaller learning rate (0.002 for 16 images)"""
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"] | None = None
    """bfloat16 is faster on GPUs and on CPUs with AVX512-BF16 or AMX, slow on others"""
    seed: int | None = None
    """of initial weights, order and flips"""
    evaluate_every: int = 1
    """epochs between two evaluations"""
    save_every: int = 500
    """steps within an epoch after which the state is saved, besides at its end"""
    cache: Literal["memory", "none"] | None = None
    """where decoded images are kept after the first epoch, which saves time and takes
    their bytes of memory; in place of the config's"""
    keep_epochs: int = 0
    """keep the weights of so many last epochs, e.g. for `vfnet swa`"""
    deterministic: bool = False
    """TensorFlow's deterministic operations, one thread and one operation at a time: the
    same bits each time on a CPU, at a fraction of the speed"""
    limit: int | None = None
    """use the first so many training images only"""
    skip_bad_images: bool = False
    """go on without unreadable images, and list them, instead of stopping"""
    jit: bool = False
    """compile the training step with XLA, once for each padded shape, on one device; JAX
    always does. See docs/scaling.md"""


#: (rule of a number, whether one keeps it, options that have the rule). Comparisons are
#: false for a number that is nan.
_RULES = (
    (
        "a whole number from 1",
        lambda value: value >= 1,
        (
            "epochs",
            "batch_size",
            "accumulate_steps",
            "evaluate_every",
            "save_every",
            "limit",
            "patience",
            "cpu_replicas",
        ),
    ),
    (
        "a whole number from 0",
        lambda value: value >= 0,
        ("warmup_steps", "keep_epochs"),
    ),
    ("a whole number from -1", lambda value: value >= -1, ("frozen_stages",)),
    ("from 0 to 2**32 - 1", lambda value: 0 <= value < 2**32, ("seed",)),
    (
        "above 0",
        lambda value: 0 < value < math.inf,
        ("learning_rate", "clip_norm"),
    ),
    ("from 0 to 1", lambda value: 0 <= value <= 1, ("oversample",)),
    ("at least 0 and below 1", lambda value: 0 <= value < 1, ("ema",)),
    (
        "two whole numbers from 1",
        lambda value: min(value) >= 1,
        ("image_size",),
    ),
)


def check_numbers(options):
    """Refuses numbers out of range by the name of their option, before data are read.

    Args:
        options: those of a command that trains; those it lacks are not looked at.

    Raises:
        ValueError: a number out of range.
    """
    for rule, keeps, names in _RULES:
        for name in names:
            value = getattr(options, name, None)
            if value is not None and not keeps(value):
                raise _refusal(name, rule, value)


def _refusal(name, rule, value):
    option = f"--{name.replace('_', '-')}"
    text = " ".join(map(str, value)) if isinstance(value, tuple) else value
    return ValueError(f"{option} must be {rule}. Received: {option} {text}")


def stoppable(run, run_dir):
    """Runs a training; if a signal stops it, a line says how to go on.

    Args:
        run: function without arguments that returns the exit status.
        run_dir: function without arguments that returns the folder of the run.

    Returns:
        The exit status: 75 after SIGTERM, 130 after Ctrl-C.
    """
    try:
        return run()
    except KeyboardInterrupt:
        stop, status = f"Ctrl-C: stopped. {how_to_go_on(run_dir())}", 130
    except Exception as error:
        from vfnet_tf.training.preemption import EXIT_STATUS, PreemptedError

        if not isinstance(error, PreemptedError):
            raise
        stop = str(error)
        status = 130 if stop.startswith("SIGINT") else EXIT_STATUS
    print(f"\n{stop}", flush=True)
    return status


def default_config(options):
    """The config that the options name, before they change it."""
    default = "vfnet_r50_fpn_1x_coco" if options.data else "vfnet_r50_synthetic"
    return configs.load_config(options.config or configs.shipped_config(default))


def chosen_fields(options, data):
    """Fields of `Config` that the options set, as a dict for `override`.

    Args:
        options: `TrainingOptions`.
        data: `DataConfig` that they change.
    """
    changes = {
        "training__epochs": options.epochs,
        "training__batch_size": options.batch_size,
        "training__base_learning_rate": options.learning_rate,
        "training__scale_learning_rate": None if options.scale_learning_rate else False,
        "training__accumulate_steps": options.accumulate_steps,
        "training__clip_norm": options.clip_norm,
        "training__schedule": options.schedule,
        "training__warmup_steps": options.warmup_steps,
        "training__ema_momentum": options.ema,
        "training__optimizer": options.optimizer,
        "training__precision": options.precision,
        "training__seed": options.seed,
        "data__image_size": options.image_size,
        "data__cache_decoded": None
        if options.cache is None
        else options.cache == "memory",
        "data__oversample": options.oversample,
    }
    augment = augment_changes(data, options.augment, options.augment_set)
    changes.update({f"data__{name}": value for name, value in augment.items()})
    if options.image_size is not None:
        changes.update(data__scales=(), data__scale_range=())
    changes = {name: value for name, value in changes.items() if value is not None}
    if options.ema == 0:
        changes["training__ema_momentum"] = None
    return changes


def resolve(options, **further):
    """The config, changed by the options that were given.

    Args:
        options: `TrainingOptions`.
        **further: fields of `Config`, see `override`; None changes nothing.
    """
    from vfnet_tf import builder
    from vfnet_tf.backbones import kerashub

    check_numbers(options)
    config = default_config(options)
    changes = chosen_fields(options, config.data)
    changes.update(
        {name: value for name, value in further.items() if value is not None}
    )
    if options.epochs is not None:
        config = configs.with_epochs(config, options.epochs)
    if options.backbone not in (None, config.model.backbone.name):
        normalization = builder.normalization_for(options.backbone)
        changes["model__backbone__name"] = options.backbone
        changes["data__normalization"] = normalization
        if options.backbone.startswith("kerashub:"):
            print(f"pixels     {kerashub.describe_normalization(normalization)}")
    config = configs.override(config, **changes)
    size = options.image_size
    if size is not None and config.data.keep_ratio and size[0] > size[1]:
        raise _refusal("image_size", "the short side, then the long one", size)
    return config


def read_data(options, strategy, overfit=False):
    """Reads the training and the validation set, and prints a summary of each.

    Args:
        options: `TrainingOptions`.
        strategy: of the training; each replica needs an image.
        overfit: bool, whether to validate on the training images.

    Returns:
        Two `DetectionDataset`; the second is None if there is no validation split.
    """
    from vfnet_tf.data import synthetic
    from vfnet_tf.data.formats.coco import read_coco
    from vfnet_tf.data.formats.readers import find_splits
    from vfnet_tf.progress import Progress
    from vfnet_tf.training.strategies import num_replicas

    if options.data is None:
        directory = synthetic.make_synthetic_dataset()
        print(
            f"data       none given (--data): training on generated images in {directory}"
        )
        splits = find_splits(directory)
    else:
        splits = find_splits(options.data, Progress)
        print(f"format     {splits.description}")
    if "train" not in splits:
        raise ValueError(
            "The data must have a training split: call its file, folder or key train. "
            f"Received: {splits.description}"
        )
    reading = {"skip_bad_images": options.skip_bad_images}
    train = read_coco(*splits["train"], **reading)
    if options.limit is not None:
        train = train.subset(min(options.limit, len(train)))
    if len(train) < num_replicas(strategy):
        raise ValueError(
            "There must be at least one training image per replica. Received: "
            f"{len(train)} images"
        )
    print(f"train      {train.summary()}")
    if overfit:
        return train, train
    if "val" not in splits:
        return train, None
    val = read_coco(
        *splits["val"], class_names=train.class_names, training=False, **reading
    )
    print(f"validation {val.summary()}")
    return train, val
