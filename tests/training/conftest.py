"""Two logical CPU devices, so that one machine can hold two replicas."""

import keras
import pytest

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

    # Possible only before TensorFlow's first operation: hence at collection.
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration()] * 2,
    )


@pytest.fixture
def two_devices():
    """The names of two logical CPUs."""
    if keras.backend.backend() != "tensorflow":
        pytest.skip("tf.distribute needs the TensorFlow backend")
    return [device.name for device in tf.config.list_logical_devices("CPU")]
