"""`vfnet train`: trains a detector and leaves a run directory."""

import dataclasses
import pathlib
import shlex
from typing import Literal

from vfnet_tf.cli.process import choose_onednn
from vfnet_tf.cli.training_options import TrainingOptions, read_data, resolve


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainOptions(TrainingOptions):
    """Train a detector on labelled images.

    Without --data it trains on generated images, to try everything out.
    """

    class_loss: Literal["varifocal", "focal", "quality_focal"] | None = None
    """in place of the config's"""
    recipe: Literal["auto", "paper"] = "auto"
    """auto fits the warm-up to the number of images; paper takes the config's schedule
    as it is"""
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


OPTIONS = TrainOptions


def run(options):
    """Trains as `options` say; returns 0, 75 after SIGTERM or 130 after Ctrl-C."""
    choose_onednn()
    from vfnet_tf.training import preemption, strategies, trainer
    from vfnet_tf.training.initial_weights import with_weights
    from vfnet_tf.training.recipe import fit_schedule

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
    if options.recipe == "auto" and options.data is not None:
        config, lines = fit_schedule(config, len(train_dataset))
        print("\n".join(lines) + "\n" * bool(lines), end="")
    run_dir = options.out or pathlib.Path("runs") / config.name
    config, initial_weights = with_weights(
        config, options.weights, run_dir, tries_coco=options.data is not None
    )
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
        return 130 if str(stop).startswith("SIGINT") else preemption.EXIT_STATUS
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
    print(_next_steps(options.data, run_dir))
    return 0


def _next_steps(data, run_dir):
    """The commands that a finished run is for."""
    data = "" if data is None else f" --data {shlex.quote(str(data))}"
    run_dir = shlex.quote(str(run_dir))
    return (
        "next\n"
        f"  vfnet evaluate{data} --checkpoint {run_dir} --report report.html\n"
        f"  vfnet predict IMAGES --checkpoint {run_dir} --out found\n"
        f"  vfnet export {run_dir} --serving models"
    )
