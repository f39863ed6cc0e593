"""`vfnet swa RUN_DIR`: averages the weights of many epochs."""

import dataclasses
import json
import pathlib
from typing import Literal

import tyro

from vfnet_tf.cli.training_options import check_numbers, read_data, stoppable
from vfnet_tf.progress import Progress, fit_verbosity


@dataclasses.dataclass(frozen=True, kw_only=True)
class SwaOptions:
    """Average the weights of a run (stochastic weight averaging, SWA).

    With --epochs it trains on: from the best weights of the run, with a fresh optimizer
    and a learning rate that falls from its full value to 1 % in each epoch, and averages
    the ends of the epochs; the published recipe takes 12, that of VFNet-X 18. A stopped
    phase goes on when the same command is run again. Without --epochs it averages
    weights that the run has kept.

    What comes out is a run directory with config.json, best.weights.h5 (the averaged
    weights) and metrics.json, which evaluate, predict and export take. Statistics of
    batch norms that train are taken over again from 100 batches of training images.
    """

    run_dir: tyro.conf.Positional[pathlib.Path]
    """directory of the run"""
    epochs: int | None = None
    """train on for so many epochs and average their ends"""
    checkpoints: tuple[pathlib.Path, ...] = ()
    """.weights.h5 files of the run's detector to average, each counted the same; by
    default all epoch-*.weights.h5 in the run directory"""
    data: str | None = None
    """folder or file in COCO, Pascal VOC, YOLO, CSV or TFRecord format, or tfds:NAME, as
    vfnet train takes it; without it the generated images"""
    out: pathlib.Path | None = None
    """directory of the averaged weights, RUN_DIR/swa by default"""
    learning_rate: float | None = None
    """with --epochs: for 16 images per step, in place of the run's"""
    strategy: Literal["one_device", "mirrored"] = "mirrored"
    """one_device, or mirrored over all local GPUs (or the CPU)"""
    evaluate_every: int = 1
    """with --epochs: epochs between two evaluations"""
    limit: int | None = None
    """use the first so many training images only"""
    skip_bad_images: bool = False
    """go on without unreadable images, and list them, instead of stopping"""
    jit: bool = False
    """with --epochs: compile the training step with XLA, see vfnet train"""


OPTIONS = SwaOptions


def run(options):
    """Averages kept weights, or trains on for it; returns the exit status."""
    from vfnet_tf.inference.load import output_folder

    run_dir = output_folder(options.run_dir) or pathlib.Path(options.run_dir)
    out = options.out or run_dir / "swa"
    return stoppable(lambda: _run(options, out), lambda: out)


def _run(options, out):
    from vfnet_tf.inference.load import find_checkpoint

    if options.epochs is not None and (options.checkpoints or options.epochs < 1):
        raise ValueError(
            "Give either --epochs, at least 1, or --checkpoints. Received: --epochs "
            f"{options.epochs}, --checkpoints {list(map(str, options.checkpoints))}"
        )
    check_numbers(options)
    config, weights = find_checkpoint(options.run_dir)
    if options.epochs is None:
        metrics = _average(options, config, out)
    else:
        metrics = _train_on(options, config, weights, out)
    if metrics is not None:
        _print_ap(pathlib.Path(options.run_dir) / "metrics.json", metrics)
    print(f"averaged   {out}")
    return 0


def phase(config, epochs, learning_rate=None):
    """The config of the SWA phase after a run; only the schedule differs.

    It starts from the best weights with a new optimizer; each epoch is one cosine from the
    rate to a hundredth of it: docs/parity.md, S36.

    Args:
        config: `Config` of the run.
        epochs: int, of the phase.
        learning_rate: float for 16 images per step; None takes the run's.

    Returns:
        `Config`.
    """
    from vfnet_tf.config import override

    changes = {
        "training__epochs": epochs,
        "training__schedule": "cosine_cycles",
        "training__swa": True,
        "training__ema_momentum": None,
        "training__warmup_steps": 0,
        "training__drop_epochs": (),
    }
    if learning_rate is not None:
        changes["training__base_learning_rate"] = learning_rate
    return override(config, **changes)


def _train_on(options, config, weights, out):
    from vfnet_tf.training import strategies, trainer

    strategy = strategies.make_strategy(options.strategy)
    strategies.check_settings(strategy, jit_compile=options.jit)
    print(f"devices    {trainer.local_devices()}\nweights    {weights}")
    train, val = read_data(options, strategy)
    _check_classes(config, train)
    training = trainer.Trainer(
        phase(config, options.epochs, options.learning_rate),
        train,
        val,
        out,
        strategy=strategy,
        initial_weights=weights,
        evaluate_every=options.evaluate_every,
        jit_compile=options.jit,
    )
    print(training.describe(), flush=True)
    return training.fit(verbose=fit_verbosity())


def _average(options, config, out):
    from vfnet_tf.builder import build_detector
    from vfnet_tf.config import save_config
    from vfnet_tf.evaluation.coco import CocoEvaluator, format_table, save_metrics
    from vfnet_tf.inference.dataset import detect_dataset
    from vfnet_tf.training import strategies
    from vfnet_tf.training.run_state import save_without_optimizer
    from vfnet_tf.training.swa import average_checkpoints
    from vfnet_tf.training.trainer import find_state

    paths = options.checkpoints or sorted(
        pathlib.Path(options.run_dir).glob("epoch-*.weights.h5")
    )
    if not paths:
        raise ValueError(
            "There must be weights to average: give --checkpoints FILES, or --epochs 12 "
            "to train on and average the ends of the epochs. Received: "
            f"{options.run_dir} without epoch-*.weights.h5"
        )
    if find_state(out) is not None:
        raise ValueError(
            f"{out} holds a run of its own, whose weights would be replaced. Give another "
            f"directory (--out). Received: out={out}"
        )
    train, val = read_data(options, strategies.make_strategy(options.strategy))
    _check_classes(config, train)
    for path in paths:
        print(f"weights    {path}")
    detector = build_detector(config)
    average_checkpoints(detector, paths, batches=_NormBatches(train, config))
    state = {"averaged_files": [str(path) for path in paths]}
    save_without_optimizer(detector, out / "best.weights.h5", state)
    save_config(config, out / "config.json")
    if val is None:
        return None
    evaluator = CocoEvaluator(val)
    detect_dataset(
        detector,
        val,
        config,
        evaluator,
        batch_size=config.training.batch_size,
        max_canvas_shapes=config.data.max_canvas_shapes,
    )
    metrics = evaluator.evaluate()
    save_metrics(out / "metrics.json", metrics)
    print(format_table(metrics))
    return metrics


class _NormBatches:
    """Batches of training images with progress; nothing is read before the first."""

    def __init__(self, dataset, config):
        self.dataset, self.config = dataset, config

    def __iter__(self):
        from vfnet_tf.inference.dataset import read_batches
        from vfnet_tf.training.swa import NORM_BATCHES

        size = self.config.training.batch_size
        shapes = self.config.data.max_canvas_shapes
        batches = read_batches(self.dataset, self.config, size, shapes)
        print("statistics of batch norms, from training images:", flush=True)
        progress = Progress(min(len(self.dataset), NORM_BATCHES * size))
        for batch in batches.take(NORM_BATCHES):
            progress.add(len(batch["image_id"]))
            yield batch
        progress.close()


def _check_classes(config, dataset):
    if config.class_names and tuple(dataset.class_names) != tuple(config.class_names):
        raise ValueError(
            f"The data must have the classes of the run, {config.class_names}. "
            f"Received: {dataset.class_names}"
        )


def _print_ap(path, metrics):
    """Prints the AP and, if the file of the run's metrics exists, the AP before."""
    text = f"AP         {metrics['AP']:.3f} averaged"
    before = None
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))["AP"]
    print(text if before is None else f"{text}, {before:.3f} before")
