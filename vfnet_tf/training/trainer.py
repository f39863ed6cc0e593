"""A training run from a config and two datasets to metrics and pictures."""

import contextlib
import dataclasses
import functools
import math
import pathlib
import tempfile
import warnings

import keras
import numpy as np
import tensorflow as tf

from vfnet_tf import builder, drawing
from vfnet_tf import config as configs
from vfnet_tf.backbones import kerashub
from vfnet_tf.data.images.decode import load_image
from vfnet_tf.data.own_transforms import check_transforms
from vfnet_tf.evaluation.coco import CocoEvaluator, format_table, save_metrics
from vfnet_tf.processor import check_weights_may_change, cpu_flags
from vfnet_tf.reports import curves
from vfnet_tf.training import loop, strategies
from vfnet_tf.training.callbacks import (
    HistoryCsv,
    ResumableCheckpoint,
    learning_rate_of_step,
)
from vfnet_tf.training.coco_evaluation import CocoEvaluation
from vfnet_tf.training.data_digest import data_digest, find_changes
from vfnet_tf.training.data_wait import DataWait
from vfnet_tf.training.early_stopping import StopWithoutImprovement
from vfnet_tf.training.ema import ema_weights, own_weights_at_end
from vfnet_tf.training.hardware import on_cpu, precision_faults
from vfnet_tf.training.nonfinite import NonFiniteAlarm
from vfnet_tf.training.optimizers import SGD, AdamW
from vfnet_tf.training.preemption import SaveOnSignal
from vfnet_tf.training.preview import (
    describe_run,
    draw_batch,
    pipeline_of,
    preview_run,
)
from vfnet_tf.training.progress_line import EVALUATION_SHARE, HideMissing, TimeEstimate
from vfnet_tf.training.run_lock import only_this_process
from vfnet_tf.training.run_state import steps_of
from vfnet_tf.training.saved_states import find_state
from vfnet_tf.training.schedule_checks import find_faults
from vfnet_tf.training.schedules import (
    CosineCycles,
    WarmupStepSchedule,
    scale_learning_rate,
)
from vfnet_tf.training.step_log import StepLog
from vfnet_tf.training.swa import StochasticWeightAveraging, average_checkpoints
from vfnet_tf.training.tensorboard import TensorBoardLog
from vfnet_tf.training.time_budget import StopInTime
from vfnet_tf.warm_start import load_run_weights


class Trainer:
    """Trains a detector in a run directory; a stopped run goes on.

    Args:
        config: a `vfnet_tf.config.Config`; `class_names`, `category_ids` and
            `num_classes` are taken from `train_dataset`.
        train_dataset: `DetectionDataset` to learn from.
        val_dataset: `DetectionDataset` to evaluate on after each epoch, or None.
        run_dir: folder of all files of the run; see `fit`.
        strategy: see `strategies.make_strategy`; None for all local GPUs, or the CPU.
            Several workers share `run_dir`, and the chief writes to it.
        initial_weights: path of a `.weights.h5` of the same detector, perhaps with other
            classes (see `load_run_weights`), or a function that loads weights into the
            detector. Not used if `run_dir` holds a saved state.
        evaluate_every: epochs between two evaluations.
        jit_compile: as in `keras.Model.compile`; the JAX backend always compiles.
        save_every_steps: steps between two saved states within an epoch; None saves only
            at the end of an epoch.
        patience: epochs without a better validation AP before the training stops, or
            None.
        on_nonfinite: action after a loss that is not finite, `"stop"` or `"skip"`, see
            `NonFiniteAlarm`; recorded in `run_dir/nonfinite.json`.
        keep_epochs: number of last epochs whose weights are kept as
            `epoch-001.weights.h5`, ...
        tensorboard: bool, write scalars and pictures to `run_dir/tensorboard` (extra
            `tensorboard`).
        accepts_changes: bool, whether a run goes on though its data have changed.
        deadline: float, of `time.monotonic()`: the training ends after the last epoch
            that leaves time for the last evaluations; None for no such end.
        transforms: list of functions in place of the augmentations of `config`, see
            `build_pipeline`. `config.json` cannot keep them: give the same ones again
            to go on with a stopped run.
        max_boxes: int, the most boxes that an image can get, where `transforms` add some.

    Attributes:
        detector: the `keras.Model`, compiled.
        config: the resolved config, as saved in `run_dir/config.json`.
        learning_rate: the scaled learning rate.
        effective_batch_size: images per update of the weights.

    Raises:
        ValueError: settings do not go together, or `run_dir` holds a run of another
            config.
    """

    def __init__(
        self,
        config,
        train_dataset,
        val_dataset,
        run_dir,
        strategy=None,
        initial_weights=None,
        evaluate_every=1,
        jit_compile=False,
        save_every_steps=500,
        patience=None,
        tensorboard=False,
        on_nonfinite="stop",
        keep_epochs=0,
        accepts_changes=False,
        deadline=None,
        transforms=None,
        max_boxes=None,
    ):
        self.run_dir = pathlib.Path(run_dir)
        self.train_dataset = train_dataset
        self.val_dataset = val_dataset
        self.evaluate_every = evaluate_every
        self.save_every_steps = save_every_steps
        self.patience = patience
        self.tensorboard = tensorboard
        self.on_nonfinite = on_nonfinite
        self.keep_epochs = keep_epochs
        self.accepts_changes = accepts_changes
        self.deadline = deadline
        self.transforms = None if transforms is None else check_transforms(transforms)
        self.strategy = strategy or strategies.make_strategy("mirrored")
        check_weights_may_change("Training")
        training = config.training
        strategies.check_settings(
            self.strategy,
            batch_size=training.batch_size,
            jit_compile=jit_compile,
            dtype_policy=training.precision,
            accumulate_steps=training.accumulate_steps,
        )
        _check_averaging(training)
        self.cluster = strategies.cluster_of(self.strategy)
        is_jax = keras.backend.backend() == "jax"
        self._shares = strategies.shares_of(self.strategy)
        if training.swa and len(self.cluster.addresses) > 1:
            raise ValueError(
                "Weights are averaged over epochs in one process. Received: swa=True with "
                f"{len(self.cluster.addresses)} processes"
            )
        keras.utils.set_random_seed(training.seed)
        config = configs.override(
            config,
            model__num_classes=train_dataset.num_classes,
            class_names=train_dataset.class_names,
            category_ids=train_dataset.category_ids,
        )
        self.train_batches = pipeline_of(
            config,
            train_dataset,
            training=True,
            shares=self._shares,
            transforms=self.transforms,
            max_boxes=max_boxes,
        )
        shares = len(self._shares["replicas"])
        self.steps_per_epoch = int(self.train_batches.cardinality()) // shares
        self.effective_batch_size = training.batch_size * training.accumulate_steps
        self.learning_rate = training.base_learning_rate
        if training.scale_learning_rate:
            self.learning_rate = scale_learning_rate(
                training.base_learning_rate,
                training.base_batch_size,
                batch=self.effective_batch_size,
            )
        is_resumed = find_state(self.run_dir) is not None
        loop.check_same_everywhere(self.strategy, saved_states=int(is_resumed))
        if is_resumed:
            initial_weights = None
        load = initial_weights if callable(initial_weights) else None
        with self.strategy.scope():
            self.detector = _build(config, training.precision)
            self.detector.check_inputs = False  # readers and pipeline have seen to it
            if load is not None:
                load(self.detector)
            elif initial_weights is not None:
                left_out = load_run_weights(
                    self.detector, initial_weights, config.class_names
                )
                if left_out:
                    print(left_out)
            self.detector.compile(
                optimizer=self._optimizer(training),
                jit_compile=jit_compile or is_jax,
            )
        self.config = without_weight_file(config, self.detector.backbone)
        if self.cluster.is_chief and not is_resumed:
            faults = find_faults(config, train_dataset, self.steps_per_epoch)
            if on_cpu():
                faults += precision_faults(training.precision, cpu_flags())
            for fault in faults:
                warnings.warn(fault, stacklevel=2)

    def _schedule(self, training):
        updates_per_epoch = self.steps_per_epoch / training.accumulate_steps
        if training.schedule == "cosine_cycles":
            return CosineCycles(self.learning_rate, max(updates_per_epoch, 1))
        if training.schedule == "step":
            return WarmupStepSchedule(
                self.learning_rate,
                warmup_steps=training.warmup_steps,
                warmup_ratio=training.warmup_ratio,
                boundaries=[
                    round(epoch * updates_per_epoch) for epoch in training.drop_epochs
                ],
            )
        if training.schedule == "cosine":
            updates = max(training.epochs * updates_per_epoch, 2)
            warmup = min(max(training.warmup_steps, 1), int(updates) - 1)
            return keras.optimizers.schedules.CosineDecay(
                self.learning_rate * training.warmup_ratio,
                decay_steps=updates - warmup,
                alpha=0.01,
                warmup_target=self.learning_rate,
                warmup_steps=warmup,
            )
        raise ValueError(
            "`schedule` must be 'step', 'cosine' or 'cosine_cycles'. "
            f"Received: schedule={training.schedule}"
        )

    def _optimizer(self, training):
        schedule = self._schedule(training)
        settings = {
            "weight_decay": training.weight_decay,
            "summed_clipnorm": training.clip_norm,
        }
        if training.accumulate_steps > 1:
            settings["gradient_accumulation_steps"] = training.accumulate_steps
        if training.ema_momentum is not None:
            settings.update(use_ema=True, ema_momentum=training.ema_momentum)
        if training.optimizer == "sgd":
            return SGD(
                schedule,
                momentum=training.momentum,
                bias_lr_multiplier=training.bias_lr_multiplier,
                bias_decay_multiplier=training.bias_decay_multiplier,
                **settings,
            )
        if training.optimizer == "adamw":
            return AdamW(schedule, **settings)
        raise ValueError(
            "`optimizer` must be 'sgd' or 'adamw'. "
            f"Received: optimizer={training.optimizer}"
        )

    def describe(self):
        """Text on model, data and schedule, for the start of a run."""
        return describe_run(self)

    def preview(self):
        """Text on data, batches and memory of a run that is not started."""
        return preview_run(self)

    def fit(self, verbose="auto", callbacks=()):
        """Trains to the end, from the last saved state if there is one.

        SIGTERM or Ctrl-C saves the state, before the next step or batch of an evaluation,
        and raises `PreemptedError`, in all processes if any gets it.

        `run_dir` then holds `config.json`, `last.weights.h5` (and the state before it,
        `last-1.weights.h5`), `best.weights.h5` (by validation AP), `history.csv` by epoch,
        `steps.csv` by 20 steps, `train_batches.png` (what the network sees), `samples.png`
        (after each evaluation), `history.png` and `metrics.json`.

        Args:
            verbose: as in `keras.Model.fit`.
            callbacks: further Keras callbacks, run last.

        Returns:
            The metrics of the best weights on the validation set, or None without one.

        Raises:
            ValueError: `run_dir` holds a run with another config or other data, or
                another process trains there.
            PreemptedError: a signal ended the training; says how to go on.
        """
        is_chief = self.cluster.is_chief
        lock = only_this_process(self.run_dir) if is_chief else contextlib.nullcontext()
        with lock:
            return self._run(verbose, callbacks)

    def _run(self, verbose, callbacks):
        training = self.config.training
        # In every process, so that all stop if the directory holds another run.
        self._check_config()
        checkpoint, averaging = self._checkpoint()
        with loop.explaining_lost_workers():
            epoch, step = checkpoint.restore(self.detector)
        if self._check_data(checkpoint) and step:
            checkpoint.begin_epoch_again()
            step = 0
        loop.check_same_everywhere(
            self.strategy,
            finished_epochs=epoch,
            finished_steps=step,
            steps_per_epoch=self.steps_per_epoch,
        )
        if self.cluster.is_chief:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            if not self._config_path.exists():
                configs.save_config(self.config, self._config_path)
            self._draw_batches()
        if self.cluster.is_chief and (epoch or step):
            within = f" and {step} of {self.steps_per_epoch} steps" if step else ""
            print(f"resuming after epoch {epoch} of {training.epochs}{within}")
        save_on_signal = SaveOnSignal(
            checkpoint, num_processes=len(self.cluster.addresses)
        )
        evaluation = self._evaluation(checkpoint, save_on_signal)
        alarm = NonFiniteAlarm(
            self.run_dir / "nonfinite.json",
            self.on_nonfinite,
            self.train_batches.image_ids,
            writes=self.cluster.is_chief,
        )
        stopper = StopWithoutImprovement(checkpoint, self.patience or training.epochs)
        plan = {
            "epochs": training.epochs,
            "steps_per_epoch": self.steps_per_epoch,
            "prints": self.cluster.is_chief,
            **self._evaluation_plan(evaluation),
        }
        ends = [
            # Before the evaluation, which is then made after the last epoch.
            *([] if self.deadline is None else [StopInTime(self.deadline, **plan)]),
            *averaging,
            *([] if evaluation is None else [evaluation]),
            *self._logs(),
            # After the history: a run killed in between drops the line and writes it
            # again. In the other order the line would be lost.
            checkpoint,
            # After the state is saved, since a signal ends the training here.
            save_on_signal,
            stopper,
        ]
        chain = [
            alarm,
            self.train_batches.epoch_order,
            StepLog(self.run_dir / "steps.csv", writes=self.cluster.is_chief),
            *ends,
            # After the history, which holds no times of a machine.
            DataWait(prints=self.cluster.is_chief),
            TimeEstimate(**plan, advises=self.deadline is None),
            *callbacks,
            HideMissing(),
        ]
        if stopper.is_over(epoch):
            epoch, step = training.epochs, 0
        with save_on_signal:
            if step == self.steps_per_epoch:
                self._end_epoch(epoch, [*ends, *callbacks])
                epoch += 1
            elif step:
                self.train_batches.epoch_order.resume(epoch, step)
                alarm.begin_at(step)
                shares = len(self._shares["replicas"])
                rest = self.train_batches.take((self.steps_per_epoch - step) * shares)
                with own_weights_at_end(self.detector):
                    self._fit(rest, epoch, epoch + 1, chain, verbose)
                epoch += 1
            if not self.detector.stop_training:
                self._fit(self.train_batches, epoch, training.epochs, chain, verbose)
            # The others wait here until the chief has written the best weights.
            loop.check_same_everywhere(self.strategy, epochs=training.epochs)
            return self._finish(checkpoint, evaluation)

    def _draw_batches(self):
        """Draws what the network will see, once: `train_batches.png`."""
        path = self.run_dir / "train_batches.png"
        if not path.exists():
            drawn = draw_batch(
                next(iter(self.train_batches)),
                self.config.data.normalization,
                self.config.class_names,
            )
            drawing.save_image(path, drawn)

    def _checkpoint(self):
        """The checkpoint of the run, and the callbacks that average its weights."""
        training = self.config.training
        average, averaging = None, []
        if training.swa:
            averaging = [
                StochasticWeightAveraging(
                    self.run_dir / "swa.weights.h5", self.train_batches
                )
            ]
            average = averaging[0].averaged
        elif training.ema_momentum is not None:
            average = ema_weights
        monitor, mode = "val_AP", "max"
        if self.val_dataset is None:
            monitor, mode = "loss", "min"
        if training.swa:
            # The newest mean is the result, as published.
            monitor, mode = "averaged_epochs", "max"
        checkpoint = ResumableCheckpoint(
            self.run_dir,
            monitor,
            mode,
            self.save_every_steps,
            weights=average,
            writes=self.cluster.is_chief,
            keep_epochs=self.keep_epochs,
            facts={
                "training": data_digest(self.train_dataset),
                "validation": data_digest(self.val_dataset),
            },
        )
        return checkpoint, averaging

    def _check_data(self, checkpoint):
        """Refuses data that changed since a state was saved; whether the steps did."""
        before, now = checkpoint.restored_facts, checkpoint.facts
        if not before:
            return False
        changes = [
            f"in the {name} data {change}"
            for name in now
            for change in find_changes(before.get(name, {}), now[name])
        ]
        if changes and not self.accepts_changes:
            raise ValueError(
                f"The data are not those that the run began with: {'; '.join(changes)}. "
                "Give another directory (--out), or go on all the same (--changed-data; "
                f"accepts_changes=True). Received: run_dir={self.run_dir}"
            )
        for change in changes:
            print(f"changed    {change}")
        images = [facts.get("training", {}).get("images") for facts in (before, now)]
        return images[0] != images[1]

    def _evaluation(self, checkpoint, save_on_signal):
        """The evaluation of the validation set, or None."""
        if self.val_dataset is None:
            return None
        evaluation = CocoEvaluation(
            pipeline_of(
                self.config, self.val_dataset, training=False, shares=self._shares
            ),
            CocoEvaluator(self.val_dataset),
            every=self.evaluate_every,
            last_epoch=self.config.training.epochs,
            stop=save_on_signal,
            weights=checkpoint.weights,
            kept_images=[record.image_id for record in self._sample_records()],
        )
        if self.cluster.is_chief:
            evaluation.then = lambda: self._draw_samples(evaluation.kept)
        return evaluation

    def run_steps(self, steps, callbacks):
        """Trains some steps without a trace in the run directory, to measure them."""
        batches = self.train_batches.take(steps * len(self._shares["replicas"]))
        self._fit(batches, 0, 1, [self.train_batches.epoch_order, *callbacks], 0)

    def detect_batches(self, count, evaluator):
        """Detects on some validation batches; returns the number of all of them."""
        if self.val_dataset is None:
            return 0
        batches = pipeline_of(
            self.config, self.val_dataset, training=False, shares=self._shares
        )
        detection = CocoEvaluation(batches.take(count), evaluator)
        detection.set_model(self.detector)
        detection.evaluate()
        return int(batches.cardinality()) // len(self._shares["replicas"])

    def save_and_forget(self):
        """Saves the state as after an epoch, and removes it, to measure that."""
        places = (self.run_dir, *self.run_dir.absolute().parents)
        drive = next(path for path in places if path.is_dir())
        with tempfile.TemporaryDirectory(prefix=".measured", dir=drive) as folder:
            checkpoint = ResumableCheckpoint(folder)
            checkpoint.set_model(self.detector)
            checkpoint.on_epoch_end(0, {checkpoint.monitor: 0.0})

    @property
    def closing_evaluations(self):
        """The number of evaluations that follow the last epoch's."""
        training = self.config.training
        if self.val_dataset is None:
            return 0
        others = 0
        if not training.swa:
            others = (training.ema_momentum is not None) + (self.keep_epochs > 1)
        # Weights of half precision are evaluated in float32, which takes longer.
        return others + (1 if training.precision == "float32" else 2)

    def _evaluation_plan(self, evaluation):
        """What is evaluated when, for callbacks that look ahead."""
        if evaluation is None:
            return {}
        images = len(self.val_dataset) / len(self.train_dataset)
        return {
            "is_due": evaluation.is_due,
            "evaluation_share": images * EVALUATION_SHARE,
            "closing": self.closing_evaluations,
        }

    def _logs(self):
        """The callbacks that write logs; none for a worker that is not the chief."""
        if not self.cluster.is_chief:
            return []
        logs = [HistoryCsv(self.run_dir / "history.csv")]
        return [*logs, self._tensorboard_log()] if self.tensorboard else logs

    def _finish(self, checkpoint, evaluation):
        """Loads the best weights, evaluates and draws; returns the metrics or None."""
        is_chief = self.cluster.is_chief
        if is_chief and (self.run_dir / "history.csv").exists():
            curves.plot_history(
                self.run_dir / "history.csv", self.run_dir / "history.png"
            )
        if evaluation is None:
            if self.config.training.swa:
                checkpoint.restore_best(self.detector)
            return None
        if not self.config.training.swa:
            self._try_others(checkpoint, evaluation)
        if checkpoint.best_path.exists():
            best_epoch, _ = checkpoint.restore_best(self.detector)
            if is_chief:
                print(f"best weights: after epoch {best_epoch}")
        if self.config.training.precision != "float32":
            # Commands that load the run compute in float32 too.
            weights = self.detector.get_weights()
            with self.strategy.scope():
                self.detector = _build(self.config, "float32")
                self.detector.set_weights(weights)
        evaluation.set_model(self.detector)
        with self._keras_scope(), loop.explaining_lost_workers():
            metrics = evaluation.evaluate()
        if is_chief:
            save_metrics(self.run_dir / "metrics.json", metrics)
            print(format_table(metrics))
            self._draw_samples(evaluation.kept)
        return metrics

    def _try_others(self, checkpoint, evaluation):
        """Keeps the last weights, or the mean of the kept epochs, if they are better.

        The epochs were evaluated with the moving average, if there is one.
        """
        kept = sorted(self.run_dir.glob("epoch-*.weights.h5"))
        kept = kept[-self.keep_epochs :] if self.keep_epochs > 1 else []
        others = {}
        if self.config.training.ema_momentum is not None:
            # Keras leaves the average in the model at the end.
            others["the last weights without average"] = functools.partial(
                checkpoint.load_last, self.detector
            )
        if len(kept) > 1:
            others[f"the mean of {len(kept)} epochs' weights"] = functools.partial(
                average_checkpoints, self.detector, kept, self.train_batches
            )
        evaluation.set_model(self.detector)
        for name, load in others.items():
            load()
            with self._keras_scope(), loop.explaining_lost_workers():
                found = evaluation.evaluate()["AP"]
            if self.cluster.is_chief:
                best = math.nan if checkpoint.best is None else checkpoint.best
                print(f"{name}: val AP {found:.3f}; best so far {best:.3f}")
            checkpoint.offer(self.detector, found, self.config.training.epochs)
        loop.check_same_everywhere(self.strategy, tried=len(others))

    def _tensorboard_log(self):
        return TensorBoardLog(
            self.run_dir / "tensorboard",
            picture=self.run_dir / "samples.png" if self.val_dataset else None,
            learning_rate=lambda: learning_rate_of_step(
                self.detector.optimizer, steps_of(self.detector.optimizer) - 1
            ),
        )

    def _fit(self, batches, initial_epoch, epochs, callbacks, verbose):
        """Keras's `fit`, or `loop.fit` with several workers of TensorFlow."""
        if initial_epoch >= epochs:
            return
        options = {
            "epochs": epochs,
            "initial_epoch": initial_epoch,
            "callbacks": callbacks,
            "verbose": verbose,
        }
        if isinstance(self.strategy, tf.distribute.MultiWorkerMirroredStrategy):
            loop.fit(self.detector, batches, **options)
            return
        if not self.cluster.is_chief:
            options["verbose"] = 0
        with self._keras_scope(), loop.explaining_lost_workers():
            self.detector.fit(batches, shuffle=False, **options)

    def _end_epoch(self, epoch, callbacks):
        """Ends an epoch whose steps an earlier start has made, as `fit` would."""
        self.train_batches.epoch_order.next_epoch = epoch + 1
        self.detector.stop_training = False
        callbacks = keras.callbacks.CallbackList(
            callbacks, model=self.detector, epochs=epoch + 1, steps=0
        )
        with self._keras_scope(), loop.explaining_lost_workers():
            callbacks.on_train_begin()
            callbacks.on_epoch_begin(epoch)
            logs = {
                name: float(value)
                for name, value in self.detector.get_metrics_result().items()
            }
            callbacks.on_epoch_end(epoch, logs)
            callbacks.on_train_end(logs)

    def _keras_scope(self):
        """A scope that spreads batches over the devices of JAX."""
        if isinstance(self.strategy, tf.distribute.Strategy):
            return contextlib.nullcontext()
        return self.strategy.scope()

    def _draw_samples(self, found, score_threshold=0.3):
        """Draws ground truth beside detections on validation images: `samples.png`."""
        pictures = []
        for record in self._sample_records():
            detections = found[record.image_id]
            kept = detections["labels"] >= 0
            pictures.append(
                drawing.draw_comparison(
                    np.asarray(
                        load_image(record.path, record.orientation, record.needs_pil)
                    ),
                    {"boxes": record.boxes, "labels": record.labels},
                    {k: detections[k][kept] for k in ("boxes", "scores", "labels")},
                    self.config.class_names,
                    score_threshold=score_threshold,
                )
            )
        grid = drawing.draw_grid(pictures, columns=2)
        drawing.save_image(self.run_dir / "samples.png", grid)

    def _sample_records(self, count=6):
        return self.val_dataset.records[:count]

    @property
    def _config_path(self):
        return self.run_dir / "config.json"

    def _check_config(self):
        if not self._config_path.exists():
            return
        # Fields that an older version did not have get their defaults.
        old = configs.to_dict(configs.load_config(self._config_path))
        new = configs.to_dict(self.config)
        changed = sorted(find_differences(old, new))
        if changed:
            raise ValueError(
                f"{self.run_dir} holds a run with other settings: "
                f"{'; '.join(changed)}. Give another directory, or the same settings "
                f"to go on with it. Received: run_dir={self.run_dir}"
            )


def _check_averaging(training):
    if training.accumulate_steps < 1:
        raise ValueError(
            "`accumulate_steps` must be >= 1. "
            f"Received: accumulate_steps={training.accumulate_steps}"
        )
    if training.swa and training.ema_momentum is not None:
        raise ValueError(
            "One average at a time: `swa` or `ema_momentum`. Received: swa=True with "
            f"ema_momentum={training.ema_momentum}"
        )


def _build(config, precision):
    """A detector in that dtype policy; the global policy stays."""
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        return builder.build_detector(config)
    finally:
        keras.config.set_dtype_policy(policy)


def without_weight_file(config, backbone):
    """The config of a run without the files of its backbone's weights and preset."""
    changes = {"trainable_norms": getattr(backbone, "trainable_norms", "auto")}
    if config.model.backbone.name.startswith("kerashub:"):
        changes["architecture"] = kerashub.architecture_of(backbone)
    backbone = dataclasses.replace(config.model.backbone, weights=None, **changes)
    model = dataclasses.replace(config.model, backbone=backbone)
    return dataclasses.replace(config, model=model)


def find_differences(old, new, prefix=""):
    """Yields `key: old -> new` for every leaf that differs between nested dicts."""
    for key in {*old, *new}:
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            yield from find_differences(before, after, f"{prefix}{key}.")
        elif before != after:
            yield f"{prefix}{key}: {before} -> {after}"


def make_deterministic():
    """Makes TensorFlow deterministic. Call it before the first operation.

    One thread runs an operation, since oneDNN divides a convolution by the threads that
    are free, which changes the rounding. Operations run one after the other, since TF 2.21
    starts a sum of three or more gradients with the one whose memory is free first.
    """
    tf.config.experimental.enable_op_determinism()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)


def local_devices():
    """Names of the backend's devices as text."""
    if keras.backend.backend() != "tensorflow":
        return ", ".join(keras.distribution.list_devices())
    return ", ".join(device.name for device in tf.config.list_logical_devices())
