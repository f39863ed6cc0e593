"""One step of SGD on one and on two logical CPUs: `mirrored_step.py FILE KIND`.

KIND is one of `tests.conftest.SMALL`; what happened is written to the file.

A process of its own, so that no other test's strategy or graph is around. The two devices
are made where `tests.conftest` is imported.
"""

import sys

import keras
import numpy as np
import tensorflow as tf

from tests.conftest import build_small
from tests.contracts import to_numpy
from tests.uneven_batch import global_batch


def one_step(strategy, kind):
    """Logs of a step, and how far it moved every variable (the gradient at rate 1)."""
    with strategy.scope():
        detector = build_small(kind)
        # A graph of two replicas has test_loop.py: it takes ten seconds to trace.
        detector.compile(keras.optimizers.SGD(1.0), run_eagerly=True)
    before = to_numpy(detector.trainable_variables)
    batches = tf.data.Dataset.from_tensors(global_batch())
    history = detector.fit(batches, verbose=0).history
    results = {f"logs/{name}": values[0] for name, values in history.items()}
    for number, variable in enumerate(detector.trainable_variables):
        gradient = before[number] - to_numpy(variable)
        results[f"gradient/{number}/{variable.name}"] = gradient
    return results


def main(path, kind):
    one = one_step(tf.distribute.OneDeviceStrategy("CPU:0"), kind)
    two = one_step(tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]), kind)
    results = {f"one/{name}": value for name, value in one.items()}
    results.update({f"two/{name}": value for name, value in two.items()})
    np.savez(path, **results)


if __name__ == "__main__":
    main(*sys.argv[1:])
