"""`vfnet train`: trains a detector and leaves a run directory."""

import dataclasses
import gc
import pathlib
import shlex
import time
from typing import Literal

from vfnet_tf.cli.training_options import (
    TrainingOptions,
    chosen_fields,
    default_config,
    read_data,
    resolve,
    stoppable,
)
from vfnet_tf.config import list_configs, load_config, override, with_epochs
from vfnet_tf.progress import fit_verbosity

#: Share of the time that is left for the export of a run that goes on, where no graph
#: was traced to measure it.
EXPORT_SHARE = 0.07


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainOptions(TrainingOptions):
    """Train a detector on labelled images.

    Without --data it trains on generated images, to try everything out.
    """

    class_loss: Literal["varifocal", "focal", "quality_focal"] | None = None
    """in place of the config's"""
    recipe: Literal["auto", "paper"] | None = None
    """auto fits input and schedule to the data, the weights and the machine, and says
    each choice; paper takes the config's as they are. With --data auto is the default
    for the published configs and paper for others"""
    time: str | None = None
    """end within so long, such as 2h, 90m or 1h30m, with a schedule fitted to it"""
    evaluate_every: int | None = None
    """epochs between two evaluations; by default 1, and with --recipe auto about a
    twelfth of the epochs"""
    frozen_stages: int | None = None
    """stages of the backbone that do not learn, besides its stem; -1 for none"""
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
    changed_data: bool = False
    """go on with a run though its images or boxes have changed"""
    preview: pathlib.Path | None = None
    """write pages of training batches to this folder, augmented and with their boxes,
    and end"""
    dry_run: bool = False
    """say what would be trained on what and how much memory it takes, and end"""
    overfit: bool = False
    """evaluate on the training images, to see whether the detector can learn them"""
    export: bool = True
    """write a SavedModel of the best weights at the end"""


OPTIONS = TrainOptions


def run(options):
    """Trains as `options` say; returns 0, 75 after SIGTERM or 130 after Ctrl-C."""
    return stoppable(lambda: _train(options), lambda: _run_dir(options))


def _run_dir(options):
    return options.out or pathlib.Path("runs") / default_config(options).name


def _train(options):
    began = time.monotonic()
    from vfnet_tf.training import strategies, trainer
    from vfnet_tf.training.initial_weights import with_weights
    from vfnet_tf.training.preview import write_preview
    from vfnet_tf.training.time_budget import parse_duration

    deadline = None if options.time is None else began + parse_duration(options.time)
    _check_time(options)
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
    strategies.check_settings(
        strategy,
        # That of the config may be another one in the end, by the recipe.
        batch_size=options.batch_size,
        jit_compile=options.jit,
        dtype_policy=config.training.precision,
        accumulate_steps=config.training.accumulate_steps,
    )
    print(f"devices    {trainer.local_devices()}")
    datasets = read_data(options, strategy, options.overfit)
    run_dir = _run_dir(options)
    start = with_weights(
        config,
        options.weights,
        run_dir,
        is_generated=options.data is None,
        tries_coco=options.data is not None,
    )
    if options.frozen_stages is not None:
        start = _freeze(start, options.frozen_stages)
    if options.preview is not None:
        config, lines = _fitted(start, options, run_dir, datasets, strategy, None)
        print("\n".join(lines))
        paths = write_preview(config, datasets[0], options.preview)
        print(f"preview    {len(paths)} pages in {options.preview}")
        return 0

    said = set()

    def make_trainer(epochs=None):
        config, lines = _fitted(start, options, run_dir, datasets, strategy, epochs)
        print("".join(f"{line}\n" for line in lines if line not in said), end="")
        said.update(lines)
        return trainer.Trainer(
            config,
            *datasets,
            run_dir,
            strategy=strategy,
            initial_weights=start.weights,
            evaluate_every=_evaluation_interval(options, config.training.epochs),
            jit_compile=options.jit,
            save_every_steps=options.save_every,
            patience=options.patience,
            on_nonfinite=options.on_nonfinite,
            keep_epochs=options.keep_epochs,
            tensorboard=options.tensorboard,
            accepts_changes=options.changed_data,
            deadline=deadline,
        )

    training = make_trainer()
    if deadline is not None:
        export = EXPORT_SHARE * (deadline - time.monotonic())
        if trainer.find_state(run_dir) is None:
            epochs, timing = _epochs_until(deadline, training, options)
            del training
            gc.collect()
            training, export = make_trainer(epochs), timing.export
        training.deadline -= export if options.export else 0.0
    print(training.describe(), flush=True)
    if options.dry_run:
        print(training.preview())
        return 0
    metrics = training.fit(verbose=fit_verbosity())
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
    print(_next_steps(options, run_dir, is_evaluated=metrics is not None))
    return 0


def _check_time(options):
    if options.time is None:
        return
    if options.epochs is not None:
        raise ValueError(
            "--time chooses the epochs. Received: "
            f"--time {options.time} with --epochs {options.epochs}"
        )
    if options.strategy not in ("one_device", "mirrored"):
        raise ValueError(
            "--time is for a training in one process, one_device or mirrored. Received: "
            f"strategy={options.strategy}"
        )


def _freeze(start, stages):
    """The start with so many frozen stages."""
    if start.kind == "none" and stages >= 0:
        raise ValueError(
            "Random weights must learn: leave --frozen-stages out, or give --weights. "
            f"Received: --frozen-stages {stages}"
        )
    config = override(start.config, model__backbone__frozen_stages=stages)
    return start._replace(config=config)


def _fitted(start, options, run_dir, datasets, strategy, epochs):
    """The config as the recipe makes it, lines to say."""
    from vfnet_tf.training import hardware, recipe, trainer

    config, given = start.config, {*chosen_fields(options, start.config.data)}
    train_dataset, val_dataset = datasets
    if options.frozen_stages is not None:
        given.add("frozen_stages")
    if options.evaluate_every is not None or val_dataset is None:
        given.add("evaluate_every")
    has_config = (run_dir / "config.json").is_file()
    is_resumed = has_config and trainer.find_state(run_dir) is not None
    if is_resumed and options.time is not None:
        # An earlier start has fitted the epochs to its time.
        epochs = load_config(run_dir).training.epochs
    if not _is_fitted(options):
        lines = []
        if options.data is not None and options.recipe is None:
            lines = ["recipe     that of the config; --recipe auto fits it to the data"]
        if epochs is not None:
            config = with_epochs(config, epochs)
        return config, lines
    if is_resumed:
        config = recipe.keep_choices(config, load_config(run_dir), given)
        lines = [f"recipe     that of the run in {run_dir}"]
        return config, lines
    if epochs is not None:
        config = with_epochs(config, epochs)
        given.add("training__epochs")
    return recipe.fit_recipe(
        config,
        train_dataset,
        hardware.hardware_of(strategy),
        weights=start.kind,
        given=given,
    )


def _is_fitted(options):
    """Whether the recipe fits the config to the data."""
    is_published = options.config is None or (
        "_coco" in options.config and options.config in list_configs()
    )
    kind = options.recipe or ("auto" if is_published else "paper")
    return options.data is not None and kind == "auto"


def _evaluation_interval(options, epochs):
    """Epochs between two evaluations of a training of so many epochs."""
    from vfnet_tf.training import recipe

    if options.evaluate_every is not None:
        return options.evaluate_every
    return recipe.evaluation_interval(epochs) if _is_fitted(options) else 1


def _epochs_until(deadline, training, options):
    """The epochs that end before the deadline, and the `Timing` they come from."""
    from vfnet_tf.training import time_budget

    timing = time_budget.measure(training)
    epochs = time_budget.epochs_within(
        deadline - time.monotonic(),
        timing,
        training.steps_per_epoch,
        most=time_budget.MOST_REPEATED * training.config.training.epochs,
        interval=lambda epochs: _evaluation_interval(options, epochs),
        closing=training.closing_evaluations,
    )
    print(
        f"time       {epochs} epochs: a step takes {timing.step:.2g} s, an evaluation "
        f"{timing.evaluation:.2g} s (--time)"
    )
    return epochs, timing


def _next_steps(options, run_dir, is_evaluated):
    """The commands that a finished run is for."""
    run = shlex.quote(str(run_dir))
    lines = ["next"]
    if is_evaluated:
        words = ["vfnet evaluate"]
        if options.data is not None:
            words.append(f"--data {shlex.quote(options.data)}")
        if options.overfit:
            words.append("--split train")
        if options.skip_bad_images:
            words.append("--skip-bad-images")
        lines.append(f"  {' '.join(words)} --checkpoint {run} --report report.html")
    # Only TensorFlow writes a SavedModel.
    backend = "KERAS_BACKEND=tensorflow " * (options.strategy == "data_parallel")
    lines += [
        f"  vfnet predict IMAGES --checkpoint {run} --out found",
        f"  {backend}vfnet export {run} --serving models",
    ]
    return "\n".join(lines)
