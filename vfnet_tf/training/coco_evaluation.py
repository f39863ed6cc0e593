"""COCO metrics of the validation images after an epoch."""

import contextlib
import math

import keras
import numpy as np
from keras import ops

from vfnet_tf.detectors import execution

# The arguments of `detect`.
_DETECT_INPUTS = ("images", "image_size", "scale")


class CocoEvaluation(keras.callbacks.Callback):
    """Detects on a validation set at the end of an epoch; puts the AP into `logs`.

    `logs` then hold `val_AP`, `val_AP50`, ... for every callback after this one. An
    epoch without an evaluation has NaN there, so that the keys are always the same.
    Each replica detects on its share of a batch. Each of several processes then gets the
    detections of all and computes the same metrics.

    Args:
        batches: iterable of batch dicts with `images [B, H, W, 3]`, `image_size
            [B, 2]`, `scale [B, 2]` and `image_id [B]`; with several replicas
            a `tf.data.Dataset`, with several processes the shares of this one,
            see `strategies.shares_of`.
        evaluator: object with `reset()`, `update(image_ids, detections)` and
            `evaluate() -> {metric: float}`, such as a `CocoEvaluator`.
        every: int > 0, epochs between two evaluations; the last epoch always has one, and
            one after which a callback before this one has stopped the training.
        metrics: names of the evaluator's metrics that go to `logs`.
        last_epoch: epochs of the whole run, if `fit` runs only a part of it.
        stop: `SaveOnSignal`, which is asked between two batches, or None.
        kept_images: ids of images whose detections are kept, to draw them.
        then: function without arguments that is called after the evaluation of an epoch,
            or None.
        weights: function from the model to a context manager inside which the model has
            the weights to evaluate, such as `ema_weights`. None takes its own weights.

    Attributes:
        last_metrics: dict of the last `evaluator.evaluate()`; None before the first.
        kept: dict from the ids of `kept_images` to dicts of the arrays of `detect`, from
            the last evaluation.

    Raises:
        ValueError: `every` is not positive.
    """

    def __init__(
        self,
        batches,
        evaluator,
        every=1,
        metrics=("AP", "AP50", "AP75", "APs", "APm", "APl"),
        last_epoch=None,
        stop=None,
        weights=None,
        kept_images=(),
        then=None,
    ):
        super().__init__()
        if every < 1:
            raise ValueError(f"`every` must be >= 1. Received: every={every}")
        self.batches = batches
        self.evaluator = evaluator
        self.every = every
        self.metrics = tuple(metrics)
        self.last_epoch = last_epoch
        self.stop = stop
        self.weights = weights or contextlib.nullcontext
        self.kept_images = frozenset(kept_images)
        self.then = then
        self.last_metrics = None
        self.kept = {}
        self._detect = self._traces = None

    def set_model(self, model):
        if model is not self._model:
            self._detect = self._traces = None
        super().set_model(model)

    def on_epoch_end(self, epoch, logs=None):
        found = {}
        if self.is_due(epoch) or self.model.stop_training:
            saving = (
                contextlib.nullcontext() if self.stop is None else self.stop.saving()
            )
            # It saves the model's own weights.
            with saving, self.weights(self.model):
                found = self.evaluate()
            if self.then is not None:
                self.then()
        for name in self.metrics:
            logs[f"val_{name}"] = float(found.get(name, math.nan))

    def is_due(self, epoch):
        """Whether an evaluation follows the epoch, from 0."""
        last_epoch = self.last_epoch or (self.params or {}).get("epochs")
        return epoch + 1 == last_epoch or (epoch + 1) % self.every == 0

    def evaluate(self):
        """Detects on all batches now.

        Returns:
            The evaluator's dict of metrics.
        """
        self.evaluator.reset()
        for image_ids, detections in self._detections():
            if self.stop is not None:
                self.stop.check()
            self.evaluator.update(image_ids, detections)
            for row, image_id in enumerate(image_ids.tolist()):
                if image_id in self.kept_images:
                    self.kept[image_id] = {k: v[row] for k, v in detections.items()}
        if self._traces is not None:
            self._traces.settle("detect")
        self.last_metrics = self.evaluator.evaluate()
        return self.last_metrics

    def _detections(self):
        """Yields (image_ids, detections) as numpy arrays."""

        def detect(batch):
            return self.model.detect(**{name: batch[name] for name in _DETECT_INPUTS})

        if keras.backend.backend() != "tensorflow":
            distribution = keras.distribution.distribution()
            for batch in self.batches:
                # The pipeline's tensors are TensorFlow's.
                batch = {name: np.asarray(value) for name, value in batch.items()}
                image_ids = batch["image_id"]
                if distribution is None:
                    yield image_ids, _to_numpy(detect(batch))
                    continue

                from vfnet_tf.training import loop

                inputs = {name: batch[name] for name in _DETECT_INPUTS}
                found = detect(loop.spread(distribution, inputs))
                yield loop.gather(distribution, (image_ids, found))
            return

        import tensorflow as tf

        from vfnet_tf.training import loop, strategies

        strategy = self.model.distribute_strategy
        replicas = strategy.num_replicas_in_sync if strategy else 1
        is_cluster = len(strategies.cluster_of(strategy).addresses) > 1
        if self._traces is None:
            self._traces = execution.Traces(self.model)
        if self._traces.is_stale("detect"):
            # One graph for each shape of a batch, kept over the epochs.
            if replicas == 1:
                self._detect = tf.function(detect, autograph=False)
            elif is_cluster:

                def detect_share(batch, stop_requested):
                    # One row for each replica, to be gathered like the others.
                    requested = tf.fill([1], stop_requested)
                    return batch["image_id"], detect(batch), requested

                self._detect = tf.function(
                    lambda *args: loop.gather(
                        strategy, strategy.run(detect_share, args=args)
                    ),
                    autograph=False,
                )
            else:
                self._detect = tf.function(
                    lambda b: strategy.run(detect, args=(b,)), autograph=False
                )
        if replicas == 1:
            for batch in self.batches:
                batch = _inputs_of(batch)
                yield _to_numpy(batch["image_id"]), _to_numpy(self._detect(batch))
            return
        inputs = self.batches.map(tf.autograph.experimental.do_not_convert(_inputs_of))
        if is_cluster:
            for batch in strategy.distribute_datasets_from_function(lambda _: inputs):
                stop_requested = tf.constant(
                    0.0 if self.stop is None else self.stop.stop_requested
                )
                image_ids, detections, requested = _to_numpy(
                    self._detect(batch, stop_requested)
                )
                if self.stop is not None:
                    self.stop.receive(requested.sum())
                yield image_ids, detections
            return
        for batch in strategy.experimental_distribute_dataset(inputs):
            detections = self._detect(batch)
            ids = strategy.experimental_local_results(batch["image_id"])
            local = {
                name: strategy.experimental_local_results(value)
                for name, value in detections.items()
            }
            for replica, image_ids in enumerate(ids):
                share = {name: values[replica] for name, values in local.items()}
                yield _to_numpy(image_ids), _to_numpy(share)


def _inputs_of(batch):
    """Leaves out the boxes, whose shapes would cause retracing."""
    return {name: batch[name] for name in (*_DETECT_INPUTS, "image_id")}


def _to_numpy(values):
    return keras.tree.map_structure(ops.convert_to_numpy, values)
