"""`vfnet train`: trains a detector and leaves a run directory."""

import dataclasses
import pathlib
from typing import Literal

from vfnet_tf import config as configs
from vfnet_tf.cli.process import choose_onednn
from vfnet_tf.training.initial_weights import with_weights


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
    """folder or file in COCO, Pascal VOC, YOLO or CSV format, or tfds:NAME: docs/data.md;
    coco:, voc:, yolo: or csv: before it says which, where that is not found out"""
    epochs: int | None = None
    """passes over the training images"""
    batch_size: int | None = None
    """images per step over all replicas; the learning rate is scaled with it"""
    image_size: tuple[int, int] | None = None
    """short and long side in pixels that images are resized to fit into, in place of the
    config's scales"""
    weights: str | None = None
    """imagenet, none, or a path: the run directory of a detector (or a .weights.h5 in one)
    to start from; a .pth or .safetensors of a detector of the official code, or of a
    backbone by torchvision's or timm's names; or, for a keras: or kerashub: backbone, an
    .npz by layer names or Keras's .h5 of that model. By default a kerashub: preset's own,
    ImageNet weights where they can be had (extra hub; Keras's own for keras:), else
    none"""
    learning_rate: float | None = None
    """for 16 images per step; scaled linearly with the batch size"""
    scale_learning_rate: bool = True
    """scale the rate with the images per update; otherwise it is taken as it is"""
    accumulate_steps: int | None = None
    """batches whose gradients are averaged for one update, with --strategy one_device;
    the rate is scaled with their images"""
    clip_norm: float | None = None
    """largest norm of the gradient, of all variables and summed over replicas"""
    ema: float | None = None
    """momentum of a moving average of the weights, such as 0.999; it is what is evaluated
    and kept as the best"""
    optimizer: Literal["sgd", "adamw"] | None = None
    """sgd, the official one, or adamw, which gets further in a few hundred steps but
    wants a smaller learning rate (0.002 for 16 images)"""
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"] | None = None
    """bfloat16 is much faster on GPUs and on CPUs with AMX"""
    seed: int | None = None
    """of initial weights, order and flips"""
    evaluate_every: int = 1
    """epochs between two evaluations"""
    save_every: int = 500
    """steps within an epoch after which the state is saved, besides at its end"""
    keep_epochs: int = 0
    """keep the weights of so many last epochs, e.g. for `vfnet swa`"""
    deterministic: bool = False
    """TensorFlow's deterministic operations, one thread and one operation at a time: the
    same bits each time on a CPU, at a fraction of the speed"""
    limit: int | None = None
    """use the first so many training images only"""
    skip_bad_images: bool = False
    """go on without unreadable images, and list them, instead of stopping"""
    jit_compile: bool = False
    """compile the step with XLA"""
    debug: bool = False
    """show the stack trace of an error"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainOptions(TrainingOptions):
    """Train a detector on labelled images.

    Without --data it trains on generated images, to try everything out.
    """

    class_loss: Literal["varifocal", "focal", "quality_focal"] | None = None
    """in place of the config's"""
    assigner: Literal["atss", "fcos"] | None = None
    """which points learn which boxes, for VFNet, FCOS and ATSS; in place of the
    config's"""
    out: pathlib.Path | None = None
    """run directory, runs/CONFIG by default; a stopped run goes on from there"""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """what a loss that is not finite does: stop and say on which images, or leave out
    the step; both are written to OUT/nonfinite.json"""
    patience: int | None = None
    """stop after so many epochs without a better validation AP"""
    tensorboard: bool = False
    """write scalars and pictures to OUT/tensorboard (extra tensorboard)"""
    cpu_replicas: int | None = None
    """divide the CPU into so many devices and mirror over them, to try out replicas"""
    dry_run: bool = False
    """say what would be trained on what and how much memory it takes, and end"""
    overfit: bool = False
    """evaluate on the training images, to see whether the detector can learn them"""
    export: bool = True
    """write a SavedModel of the best weights at the end"""


def run(options):
    """Trains as `options` say; returns the exit status, 75 if stopped by SIGTERM."""
    choose_onednn()
    from vfnet_tf.training import preemption, strategies, trainer

    if options.deterministic:
        trainer.make_deterministic()
    config = resolve(
        options,
        model__class_loss=options.class_loss,
        model__assigner=options.assigner,
    )
    cluster = strategies.configured_cluster(options.strategy)
    if cluster is not None:
        # Before it is there: the backend waits until all of them have started.
        print(f"cluster    {cluster}", flush=True)
    devices = options.cpu_replicas and strategies.split_cpu(options.cpu_replicas)
    strategy = strategies.make_strategy(options.strategy, devices)
    print(f"devices    {trainer.local_devices()}")
    train_dataset, val_dataset = read_data(options, strategy, options.overfit)
    run_dir = options.out or pathlib.Path("runs") / config.name
    config, initial_weights = with_weights(config, options, run_dir)
    training = trainer.Trainer(
        config,
        train_dataset,
        val_dataset,
        run_dir,
        strategy=strategy,
        initial_weights=initial_weights,
        evaluate_every=options.evaluate_every,
        jit_compile=options.jit_compile,
        save_every_steps=options.save_every,
        patience=options.patience,
        on_nonfinite=options.on_nonfinite,
        keep_epochs=options.keep_epochs,
        tensorboard=options.tensorboard,
    )
    print(training.describe(), flush=True)
    if options.dry_run:
        print(training.preview())
        return 0
    try:
        metrics = training.fit()
    except preemption.PreemptedError as stop:
        print(f"\n{stop}", flush=True)
        return preemption.EXIT_STATUS
    if not training.cluster.is_chief:
        return 0
    if options.export and options.strategy == "data_parallel":
        print(
            f"SavedModel none: KERAS_BACKEND=tensorflow vfnet export {run_dir} makes it"
        )
    elif options.export:
        from vfnet_tf.export.saved_model.exporter import export_saved_model

        path = run_dir / "saved_model"
        export_saved_model(
            training.detector, path, config=training.config, overwrite=True
        )
        print(f"SavedModel {path}")
    if metrics is not None:
        print(f"AP {metrics['AP']:.3f}  AP50 {metrics['AP50']:.3f}  {run_dir}")
    return 0


def resolve(options, **further):
    """The config with the options that were given.

    Args:
        options: `TrainingOptions`.
        **further: fields of `Config` as `override` takes them; None leaves one as it is.
    """
    from vfnet_tf import builder
    from vfnet_tf.backbones import kerashub

    default = "vfnet_r50_fpn_1x_coco" if options.data else "vfnet_r50_synthetic"
    config = configs.load_config(options.config or default)
    changes = {
        "training__epochs": options.epochs,
        "training__batch_size": options.batch_size,
        "training__base_learning_rate": options.learning_rate,
        "training__scale_learning_rate": None if options.scale_learning_rate else False,
        "training__accumulate_steps": options.accumulate_steps,
        "training__clip_norm": options.clip_norm,
        "training__ema_momentum": options.ema,
        "training__optimizer": options.optimizer,
        "training__precision": options.precision,
        "training__seed": options.seed,
        "data__image_size": options.image_size,
        **further,
    }
    if options.image_size is not None:
        changes.update(data__scales=(), data__scale_range=())
    if options.epochs is not None and options.epochs != config.training.epochs:
        # The drops keep their place in the schedule.
        ratio = options.epochs / config.training.epochs
        changes["training__drop_epochs"] = tuple(
            round(epoch * ratio, 2) for epoch in config.training.drop_epochs
        )
    if options.backbone not in (None, config.model.backbone.name):
        normalization = builder.normalization_for(options.backbone)
        changes["model__backbone__name"] = options.backbone
        changes["data__normalization"] = normalization
        if options.backbone.startswith("kerashub:"):
            print(f"pixels     {kerashub.describe_normalization(normalization)}")
    given = {name: value for name, value in changes.items() if value is not None}
    return configs.override(config, **given)


def read_data(options, strategy, overfit=False):
    """The training and the validation set, described on the way.

    Args:
        options: `TrainingOptions`.
        strategy: what will train; each replica needs an image.
        overfit: whether to validate on the training images.

    Returns:
        Two `DetectionDataset`; None in place of the second if there is none.
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
            "The data must have a training split, such as annotations/"
            f"instances_train*.json. Received: {splits.description}"
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


def main(arguments=None):
    """Entry point of `scripts/train.py` and `vfnet train`."""
    import tyro

    return run(tyro.cli(TrainOptions, args=arguments))


if __name__ == "__main__":
    raise SystemExit(main())
