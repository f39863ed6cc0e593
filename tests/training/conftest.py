"""What the tests of several replicas share."""

import keras
import pytest

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf


@pytest.fixture
def two_devices():
    """The names of two logical CPUs."""
    if keras.backend.backend() != "tensorflow":
        pytest.skip("tf.distribute needs the TensorFlow backend")
    return [device.name for device in tf.config.list_logical_devices("CPU")]
