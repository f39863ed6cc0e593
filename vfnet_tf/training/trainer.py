"""One run from a config and two datasets: build, fit, evaluate, draw, keep."""

import dataclasses
import pathlib

import keras
import numpy as np
import tensorflow as tf

from vfnet_tf import builder, visualization
from vfnet_tf import config as configs
from vfnet_tf.data.pipeline import build_pipeline
from vfnet_tf.data.transforms import load_image
from vfnet_tf.evaluation.coco import CocoEvaluator, format_table, save_metrics
from vfnet_tf.training import loop, strategies
from vfnet_tf.training.callbacks import (
    CocoEvaluation,
    HistoryCsv,
    ResumableCheckpoint,
    TerminateOnNaN,
)
from vfnet_tf.training.optimizers import SGD
from vfnet_tf.training.schedules import WarmupStepSchedule, scale_learning_rate
from vfnet_tf.training.step_log import StepLog


class Trainer:
    """Trains a detector in a run directory, from the start or from where it stopped.

    Args:
        config: a `vfnet_tf.config.Config`; `class_names`, `category_ids` and
            `num_classes` are taken from `train_dataset`.
        train_dataset: `DetectionDataset` to learn from.
        val_dataset: `DetectionDataset` to evaluate on after each epoch, or None.
        run_dir: folder of everything that the run leaves; see `fit`.
        strategy: as of `strategies.make_strategy`; None for all local GPUs, or the CPU.
            With several workers all of them share `run_dir`, and the chief writes to it.
        initial_weights: path of a `.weights.h5` of the same detector to start from, or a
            function that is given the detector and loads what it likes. Not used if
            `run_dir` holds a state to go on from.
        evaluate_every: epochs between two evaluations.
        jit_compile: as in `keras.Model.compile`; XLA is off unless asked for, or with
            the JAX backend, which would go step by step through Python.

    Attributes:
        detector: the `keras.Model`, compiled.
        config: the resolved config, as saved in `run_dir/config.json`.
        learning_rate: the scaled learning rate.

    Raises:
        ValueError: for settings that do not go together, or a `run_dir` that holds a
            run of another config.
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
    ):
        self.run_dir = pathlib.Path(run_dir)
        self.train_dataset = train_dataset
        self.val_dataset = val_dataset
        self.evaluate_every = evaluate_every
        self.strategy = strategy or strategies.make_strategy("mirrored")
        training = config.training
        strategies.check_settings(
            self.strategy,
            batch_size=training.batch_size,
            jit_compile=jit_compile,
            dtype_policy=training.precision,
        )
        self.cluster = strategies.cluster_of(self.strategy)
        is_jax = keras.backend.backend() == "jax"
        if is_jax and len(self.cluster.addresses) > 1:
            raise ValueError(
                "With JAX a run trains in one process, on all of its devices; for several "
                "see docs/scaling.md. Received: "
                f"{len(self.cluster.addresses)} processes"
            )
        self._shares = strategies.shares_of(self.strategy)
        keras.utils.set_random_seed(training.seed)
        config = configs.override(
            config,
            model__num_classes=train_dataset.num_classes,
            class_names=train_dataset.class_names,
            category_ids=train_dataset.category_ids,
        )
        self.train_batches = self._pipeline(
            config, train_dataset, training=True, shares=self._shares
        )
        shares = len(self._shares["replicas"])
        self.steps_per_epoch = int(self.train_batches.cardinality()) // shares
        self.learning_rate = scale_learning_rate(
            training.base_learning_rate,
            training.base_batch_size,
            batch=training.batch_size,
        )
        if find_state(self.run_dir) is not None:
            initial_weights = None
        load = initial_weights if callable(initial_weights) else None
        with self.strategy.scope():
            self.detector = _build(
                config, training.precision, None if load else initial_weights
            )
            if load is not None:
                load(self.detector)
            self.detector.compile(
                optimizer=self._optimizer(training),
                jit_compile=jit_compile or is_jax,
            )
        self.config = without_weight_file(config, self.detector.backbone)

    def _optimizer(self, training):
        drops = [round(epoch * self.steps_per_epoch) for epoch in training.drop_epochs]
        schedule = WarmupStepSchedule(
            self.learning_rate,
            warmup_steps=training.warmup_steps,
            warmup_ratio=training.warmup_ratio,
            boundaries=drops,
        )
        decay = training.weight_decay
        if training.optimizer == "sgd":
            return SGD(
                schedule,
                momentum=training.momentum,
                weight_decay=decay,
                bias_lr_multiplier=training.bias_lr_multiplier,
                bias_decay_multiplier=training.bias_decay_multiplier,
            )
        if training.optimizer == "adamw":
            return keras.optimizers.AdamW(schedule, weight_decay=decay)
        raise ValueError(
            "`optimizer` must be 'sgd' or 'adamw'. "
            f"Received: optimizer={training.optimizer}"
        )

    def _pipeline(self, config, dataset, training, shares=None):
        data = config.data
        return build_pipeline(
            dataset,
            batch_size=config.training.batch_size,
            image_size=data.image_size,
            keep_ratio=data.keep_ratio,
            max_shapes=data.max_canvas_shapes,
            normalization=data.normalization,
            scales=list(data.scales) if training and data.scales else None,
            flip=data.flip,
            training=training,
            seed=config.training.seed,
            cache_decoded=data.cache_decoded,
            **(shares or {}),
        )

    def describe(self):
        """What will be trained, on what and how: text for the start of a run."""
        training = self.config.training
        data = self.config.data
        sides = "within" if data.keep_ratio else "stretched to"
        lines = [
            f"model      {self.config.name}: {type(self.detector).__name__} on "
            f"{self.config.model.backbone.name}, {self.config.model.class_loss} loss, "
            f"{self.detector.count_params() / 1e6:.1f} M parameters, "
            f"{training.precision}",
            f"strategy   {strategies.describe(self.strategy, training.batch_size)}",
            *(
                [f"cluster    {self.cluster}"]
                if len(self.cluster.addresses) > 1
                else []
            ),
            f"train      {len(self.train_dataset)} images, {self.steps_per_epoch} steps "
            f"per epoch, {training.epochs} epochs",
            f"validation {len(self.val_dataset)} images"
            if self.val_dataset
            else "validation none: no AP, no best weights",
            f"images     {sides} {data.image_size[0]}x{data.image_size[1]} pixels",
            f"classes    {len(self.config.class_names)}: "
            + ", ".join(self.config.class_names[:10])
            + (", ..." if len(self.config.class_names) > 10 else ""),
            f"learning   rate {self.learning_rate:g} ({training.base_learning_rate:g} "
            f"for {training.base_batch_size} images per step, scaled to "
            f"{training.batch_size}), the first {training.warmup_steps} steps warm up, "
            f"x0.1 after epochs {', '.join(map(str, training.drop_epochs)) or 'none'}",
            f"run        {self.run_dir}",
            "The loss may rise during the warm-up: the IoUs that the class loss is to "
            "learn grow with the boxes.",
        ]
        return "\n".join(lines)

    def fit(self, verbose="auto", callbacks=()):
        """Trains to the end, from the last saved epoch if there is one.

        `run_dir` then holds `config.json`, `last.weights.h5`, `best.weights.h5` (by
        validation AP), `history.csv` by epoch, `steps.csv` by 20 steps, `history.png`,
        `metrics.json` and `samples.png`.

        Args:
            verbose: as in `keras.Model.fit`.
            callbacks: further Keras callbacks, run last.

        Returns:
            The metrics of the best weights on the validation set, or None without one.
        """
        is_chief = self.cluster.is_chief
        if is_chief:
            self._save_config()
        checkpoint = ResumableCheckpoint(self.run_dir)
        epoch, _ = checkpoint.restore(self.detector)
        loop.check_same_everywhere(
            self.strategy, finished_epochs=epoch, steps_per_epoch=self.steps_per_epoch
        )
        if epoch and is_chief:
            print(f"resuming after epoch {epoch} of {self.config.training.epochs}")
        history = HistoryCsv(self.run_dir / "history.csv")
        chain = [TerminateOnNaN(), self.train_batches.epoch_order]
        if is_chief:
            chain.append(StepLog(self.run_dir / "steps.csv"))
        evaluation = None
        if self.val_dataset is not None:
            evaluation = CocoEvaluation(
                self._pipeline(
                    self.config, self.val_dataset, training=False, shares=self._shares
                ),
                CocoEvaluator(self.val_dataset),
                every=self.evaluate_every,
            )
            chain.append(evaluation)
        # Before the state: a run killed in between drops the line and writes it again,
        # the other way round it would lack one for good.
        if self.val_dataset is None:
            saving = ResumableCheckpoint(self.run_dir, monitor="loss", mode="min")
        else:
            saving = checkpoint
        if is_chief:
            chain += [history, saving]
        if epoch < self.config.training.epochs:
            self._fit(
                epochs=self.config.training.epochs,
                initial_epoch=epoch,
                callbacks=[*chain, *callbacks],
                verbose=verbose,
            )
        # The others wait here until the chief has written the best weights.
        loop.check_same_everywhere(self.strategy, epochs=self.config.training.epochs)
        if is_chief and (self.run_dir / "history.csv").exists():
            visualization.plot_history(
                self.run_dir / "history.csv", self.run_dir / "history.png"
            )
        if evaluation is None:
            return None
        if checkpoint.best_path.exists():
            best_epoch, _ = checkpoint.restore_best(self.detector)
            if is_chief:
                print(f"best weights: after epoch {best_epoch}")
        if self.config.training.precision != "float32":
            # What is evaluated, drawn and exported computes as every command that loads
            # the run will.
            weights = self.detector.get_weights()
            with self.strategy.scope():
                self.detector = _build(self.config, "float32")
                self.detector.set_weights(weights)
        evaluation.set_model(self.detector)
        with loop.explaining_lost_workers():
            metrics = evaluation.evaluate()
        if is_chief:
            save_metrics(self.run_dir / "metrics.json", metrics)
            print(format_table(metrics))
            self.draw_samples()
        return metrics

    def _fit(self, **options):
        """Keras's `fit`, or what stands for it where that does not work."""
        if isinstance(self.strategy, tf.distribute.MultiWorkerMirroredStrategy):
            loop.fit(self.detector, self.train_batches, **options)
        elif isinstance(self.strategy, tf.distribute.Strategy):
            self.detector.fit(self.train_batches, shuffle=False, **options)
        else:
            # Keras asks for the distribution in force when batches are sent to devices.
            with self.strategy.scope():
                self.detector.fit(self.train_batches, shuffle=False, **options)

    def draw_samples(self, count=6, score_threshold=0.3):
        """Draws ground truth beside detections on validation images: `samples.png`."""
        dataset = self.val_dataset.subset(min(count, len(self.val_dataset)))
        found = {}
        for batch in self._pipeline(self.config, dataset, training=False):
            batch = {name: np.asarray(value) for name, value in batch.items()}
            detections = self.detector.detect(
                batch["images"], batch["image_size"], batch["scale"]
            )
            values = {key: np.asarray(value) for key, value in detections.items()}
            for row, image_id in enumerate(batch["image_id"]):
                if image_id >= 0:
                    found[int(image_id)] = {k: v[row] for k, v in values.items()}
        pictures = []
        for record in dataset.records:
            detections = found[record.image_id]
            kept = detections["labels"] >= 0
            pictures.append(
                visualization.draw_comparison(
                    np.asarray(
                        load_image(record.path, record.orientation, record.needs_pil)
                    ),
                    {"boxes": record.boxes, "labels": record.labels},
                    {k: detections[k][kept] for k in ("boxes", "scores", "labels")},
                    self.config.class_names,
                    score_threshold=score_threshold,
                )
            )
        path = self.run_dir / "samples.png"
        visualization.save_image(path, visualization.draw_grid(pictures, columns=2))
        return path

    def _save_config(self):
        self.run_dir.mkdir(parents=True, exist_ok=True)
        path = self.run_dir / "config.json"
        if path.exists():
            # A field that is younger than the run has its default in the old one.
            old = configs.to_dict(configs.load_config(path))
            new = configs.to_dict(self.config)
            changed = sorted(find_differences(old, new))
            if changed:
                raise ValueError(
                    f"{self.run_dir} holds a run with other settings: "
                    f"{'; '.join(changed)}. Give another directory, or the same settings "
                    f"to go on with it. Received: run_dir={self.run_dir}"
                )
        configs.save_config(self.config, path)


def find_state(run_dir):
    """The file that a stopped run goes on from, a `Path`; None for a new run."""
    path = ResumableCheckpoint(run_dir).last_path
    return path if path.exists() else None


def _build(config, precision, weights=None):
    """A detector of that dtype policy; the global policy stays what it was."""
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        return builder.build_detector(config, weights=weights)
    finally:
        keras.config.set_dtype_policy(policy)


def without_weight_file(config, backbone):
    """The config with which a run can be rebuilt where the weight file is absent."""
    norms = getattr(backbone, "trainable_norms", "auto")
    backbone = dataclasses.replace(
        config.model.backbone, weights=None, trainable_norms=norms
    )
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


def local_devices():
    """Names of the devices that the backend sees, for the start of a run."""
    if keras.backend.backend() != "tensorflow":
        return ", ".join(keras.distribution.list_devices())
    return ", ".join(device.name for device in tf.config.list_logical_devices())
