"""A model that trains in milliseconds, and callbacks that watch or stop it."""

import h5py
import keras
import numpy as np
from keras import ops

from tests.contracts import assert_same_bits, to_numpy
from vfnet_tf.training.optimizers import SGD
from vfnet_tf.training.schedules import WarmupStepSchedule

X = np.random.default_rng(0).normal(size=(12, 2)).astype("float32")
Y = X @ np.array([[2.0], [-1.0]], "float32")
STEPS = 3  # of 4 points, one epoch


class TinyDetector(keras.Model):
    """Learns a line; detects one box, (0, 0, 8, 8) over the image's scale."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(1, kernel_initializer="ones")
        self.num_traces = 0

    def build(self, input_shape):
        self.dense.build(input_shape)

    def call(self, inputs):
        return self.dense(inputs)

    def detect(self, images, image_size=None, scale=None):
        self.num_traces += 1
        xyxy_scale = ops.concatenate([ops.flip(scale, axis=1)] * 2, axis=1)
        corners = ops.convert_to_tensor([0.0, 0.0, 8.0, 8.0])
        # The mean pixel is the score: what the image holds must arrive here.
        scores = ops.mean(images, axis=(1, 2, 3))[:, None]
        labels = ops.zeros_like(scores, "int32")
        return {
            "boxes": (corners / xyxy_scale)[:, None],
            "scores": scores,
            "labels": labels,
            "num_detections": ops.ones_like(labels[:, 0]),
        }


def make_model(optimizer=None):
    model = TinyDetector()
    if optimizer is None:
        optimizer = SGD(WarmupStepSchedule(0.1, 4, 0.5, boundaries=[7]))
    model.compile(optimizer=optimizer, loss="mse", jit_compile=False)
    model.build((None, 2))
    return model


def fit(model, *callbacks, epochs=4, start=0, x=X, y=Y):
    return model.fit(
        x,
        y,
        batch_size=4,
        shuffle=False,
        epochs=epochs,
        initial_epoch=start,
        verbose=0,
        callbacks=list(callbacks),
    )


def batch_of(image_ids, scale=(1.0, 1.0)):
    count = len(image_ids)
    values = np.asarray(image_ids, "float32").reshape(-1, 1, 1, 1) / 10
    return {
        "images": np.broadcast_to(values, (count, 8, 8, 3)).astype("float32"),
        "image_size": np.full((count, 2), 8.0, "float32"),
        "scale": np.tile(np.asarray(scale, "float32"), (count, 1)),
        "image_id": np.asarray(image_ids, "int64"),
        "boxes": np.zeros((count, 1, 4), "float32"),
        "labels": np.full((count, 1), -1, "int32"),
    }


class RecordingEvaluator:
    """Remembers what it was given; its AP grows by 0.1 an evaluation."""

    def __init__(self, aps=None):
        self.num_evaluations, self.seen, self.aps = 0, {}, aps

    def reset(self):
        self.seen = {}

    def update(self, image_ids, detections):
        assert all(isinstance(value, np.ndarray) for value in detections.values())
        for row, image_id in enumerate(image_ids.tolist()):
            self.seen[image_id] = {k: v[row].tolist() for k, v in detections.items()}

    def evaluate(self):
        self.num_evaluations += 1
        ap = 0.1 * self.num_evaluations
        if self.aps is not None:
            ap = self.aps[self.num_evaluations - 1]
        return {"AP": ap, "AP50": ap / 2, "per_class": {}}


class Crash(keras.callbacks.Callback):
    """Stands for a kill: leaves `fit` by an exception at a step."""

    def __init__(self, epoch, batch):
        super().__init__()
        self.epoch, self.batch, self.now = epoch, batch, None

    def on_epoch_begin(self, epoch, logs=None):
        self.now = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.now, batch) == (self.epoch, self.batch):
            raise KeyboardInterrupt


class Steps(keras.callbacks.Callback):
    """The weights after each step, and its loss (the mean over the epoch so far)."""

    def __init__(self):
        super().__init__()
        self.weights, self.losses = [], []

    def on_train_batch_end(self, batch, logs=None):
        self.weights.append(self.model.get_weights())
        self.losses.append(float(logs["loss"]))


class Ends(keras.callbacks.Callback):
    """The weights and logs at the end of each epoch; stops as a kill would at `kill`."""

    def __init__(self, kill=None):
        super().__init__()
        self.weights, self.logs, self.kill = [], [], kill

    def on_epoch_end(self, epoch, logs=None):
        self.weights.append(self.model.get_weights())
        self.logs.append(dict(logs))
        if epoch == self.kill:
            raise KeyboardInterrupt


def state_of(model):
    return to_numpy([*model.weights, *model.optimizer.variables])


def assert_same_state(found, expected):
    assert_same_bits(state_of(found), state_of(expected))


def arrays_of(path):
    """Every array in an HDF5 file of training, by path, and its state as JSON."""
    found = {}

    def visit(name, item):
        if isinstance(item, h5py.Dataset):
            found[name] = item[()]

    with h5py.File(path, "r") as file:
        file.visititems(visit)
        return found, file.attrs.get("vfnet_tf_training_state")
