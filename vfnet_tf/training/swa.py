"""Stochastic weight averaging: one model from the weights at the ends of many epochs."""

import contextlib
import itertools
import os
from pathlib import Path

import keras

from vfnet_tf.training.run_state import read_state, save_without_optimizer

#: Batches from which the statistics of trainable batch norms are recomputed.
NORM_BATCHES = 100


class StochasticWeightAveraging(keras.callbacks.Callback):
    """Keeps the running mean of the weights at the ends of the epochs.

        mean = w_1;  mean = mean + (w_n - mean) / n

    in float32, of the trainable variables. Put it before the callbacks that evaluate
    and save, and pass them `averaged`:

        swa = StochasticWeightAveraging(run_dir / "swa.weights.h5", batches)
        model.fit(..., callbacks=[
            swa,
            CocoEvaluation(..., weights=swa.averaged),
            ResumableCheckpoint(..., weights=swa.averaged),
        ])

    Each epoch writes the averaged weights to the file. The file before it is kept until
    the run ends (`swa-previous.weights.h5`), so a run killed at any moment finds the mean
    of its finished epochs. Training goes on from the weights that are not averaged.

    Statistics of trainable batch norms do not fit averaged weights, so they are
    recomputed after each epoch from `norm_batches` batches. Published models have only
    frozen ones.

    Source: Izmailov et al., "Averaging Weights Leads to Wider Optima and Better
    Generalization", 2018, Algorithm 1. The official phase averages the ends of its epochs
    likewise: docs/parity.md, S36.

    Args:
        path: of the `.weights.h5`; missing folders are made.
        batches: iterable of training batches, for batch norms that train; it is
            iterated anew after each epoch.
        norm_batches: int > 0.

    Attributes:
        count: epochs in the mean. In `logs` and so in the history: `averaged_epochs`.

    Raises:
        ValueError: `path` has another ending or `norm_batches` is below 1; in `fit`,
            batch norms train and there are no `batches`, or no file has the mean of the
            epoch to resume from.
    """

    def __init__(self, path, batches=None, norm_batches=NORM_BATCHES):
        super().__init__()
        self.path = Path(path)
        if not self.path.name.endswith(".weights.h5"):
            raise ValueError(f"`path` must end in .weights.h5. Received: path={path}")
        if norm_batches < 1:
            raise ValueError(
                f"`norm_batches` must be >= 1. Received: norm_batches={norm_batches}"
            )
        self.batches = batches
        self.norm_batches = norm_batches
        self.count = 0
        self._mean = None

    @property
    def previous_path(self):
        stem = self.path.name.removesuffix(".weights.h5")
        return self.path.with_name(f"{stem}-previous.weights.h5")

    def on_train_begin(self, logs=None):
        if self.batches is None:
            _refuse_trainable_norms(self.model)

    def on_epoch_begin(self, epoch, logs=None):
        if self._mean is None and epoch > 0:
            self._restore(epoch)

    def on_epoch_end(self, epoch, logs=None):
        values = _values_of(self.model)
        if self._mean is None:
            self._mean = values
            self.count = 1
        else:
            self.count += 1
            _add_to_mean(self._mean, values, self.count, self.model)
        with self.averaged(self.model):
            batches = () if self.batches is None else self.batches
            if recompute_batch_norms(self.model, batches, self.norm_batches):
                self._mean = _values_of(self.model)
            self._save(epoch + 1)
        logs["averaged_epochs"] = self.count

    def on_train_end(self, logs=None):
        self.previous_path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def averaged(self, model):
        """Inside, the model has the averaged weights; afterwards its own, bit by bit.

        Raises:
            ValueError: no epoch has ended yet.
        """
        if self._mean is None:
            raise ValueError(
                f"There must be an epoch to average. Received: count={self.count}"
            )
        own = _values_of(model)
        model.set_weights(self._mean)
        try:
            yield
        finally:
            model.set_weights(own)

    def _save(self, epoch):
        if self.path.exists() and read_state(self.path)["epoch"] < epoch:
            os.replace(self.path, self.previous_path)
        state = {"epoch": epoch, "averaged_epochs": self.count}
        save_without_optimizer(self.model, self.path, state)

    def _restore(self, epoch):
        for path in (self.path, self.previous_path):
            state = read_state(path) if path.exists() else {"epoch": None}
            if state["epoch"] == epoch:
                break
        else:
            raise ValueError(
                f"To go on after epoch {epoch}, {self.path} or {self.previous_path} must "
                f"hold the mean at its end. Received: epoch={epoch}"
            )
        own = _values_of(self.model)
        self.model.load_weights(path, objects_to_skip=[self.model.optimizer])
        self._mean, self.count = _values_of(self.model), state["averaged_epochs"]
        self.model.set_weights(own)


def average_checkpoints(model, paths, batches=None, norm_batches=NORM_BATCHES):
    """Sets a model's weights to the mean of those in several files.

    Args:
        model: built; its weights are replaced.
        paths: of `.weights.h5` files of this model, one at least. Variables that are not
            trainable are taken from the last.
        batches: iterable of training batches, for batch norms that train.
        norm_batches: int > 0.

    Raises:
        ValueError: there is no file, one does not fit, or batch norms train and there are
            no `batches`.
    """
    paths = [Path(path) for path in paths]
    if not paths:
        raise ValueError(f"There must be a file to average. Received: paths={paths}")
    if batches is None:
        _refuse_trainable_norms(model)
    mean = None
    optimizer = getattr(model, "optimizer", None)
    skipped = [] if optimizer is None else [optimizer]
    for count, path in enumerate(paths, start=1):
        try:
            model.load_weights(path, objects_to_skip=skipped)
        except (ValueError, OSError, KeyError) as error:
            raise ValueError(
                f"Each file must hold weights of this model. Received: {path}, which "
                f"does not fit: {error}"
            ) from error
        values = _values_of(model)
        if mean is None:
            mean = values
        else:
            _add_to_mean(mean, values, count, model)
    model.set_weights(mean)
    recompute_batch_norms(model, () if batches is None else batches, norm_batches)


def trainable_batch_norms(model):
    """The batch norms of a model that use the batch's statistics in training."""
    return [
        layer
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
    ]


def recompute_batch_norms(model, batches, count=NORM_BATCHES):
    """Recomputes the statistics of trainable batch norms with the present weights.

    Each moving statistic becomes its mean over `count` batches, run in training mode.
    Without such layers nothing is run.

    Args:
        model: a `keras.Model`.
        batches: iterable of inputs of the model, or of tuples `(inputs, ...)`.
        count: int > 0, batches at most.

    Returns:
        int, the number of batches that were run.
    """
    norms = trainable_batch_norms(model)
    if not norms:
        return 0
    momenta = [norm.momentum for norm in norms]
    seen = 0
    try:
        for batch in itertools.islice(batches, count):
            for norm in norms:
                # The n-th of n batches counts 1/n: a mean, not a moving one.
                norm.momentum = seen / (seen + 1)
            model(keras.utils.unpack_x_y_sample_weight(batch)[0], training=True)
            seen += 1
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    return seen


def _refuse_trainable_norms(model):
    norms = trainable_batch_norms(model)
    if norms:
        raise ValueError(
            "Batch norms that train need `batches`: the statistics of averaged weights "
            f"are to be taken over again. Received: batches=None for {len(norms)} such "
            f"layers, {norms[0].name} the first"
        )


def _values_of(model):
    return [keras.ops.convert_to_numpy(value).copy() for value in model.weights]


def _add_to_mean(mean, values, count, model):
    """Updates `mean` in place; variables that are not trainable take the new values."""
    trainable = {id(variable) for variable in model.trainable_weights}
    for index, variable in enumerate(model.weights):
        if id(variable) in trainable:
            change = values[index].astype("float32") - mean[index]
            mean[index] = mean[index] + change / count
        else:
            mean[index] = values[index]
