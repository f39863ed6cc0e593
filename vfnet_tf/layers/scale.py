import keras
from keras import ops

from vfnet_tf.layers.configs import ArgumentConfig


@keras.saving.register_keras_serializable("vfnet_tf")
class Scale(ArgumentConfig, keras.layers.Layer):
    """One learned scalar, one `Scale` per pyramid level (FCOS, Sec. 3.2).

    Args:
        initial_value: float, the scalar before training.

    Shapes: any in, the same out. Dtype: the layer's compute dtype.
    """

    def __init__(self, initial_value=1.0, **kwargs):
        super().__init__(**kwargs)
        self.initial_value = initial_value

    def build(self, input_shape):
        initializer = keras.initializers.Constant(self.initial_value)
        # Without autocast: a head, which may compute in half precision, reads it itself
        # for what it does in float32.
        self.scale = self.add_weight((), initializer, name="scale", autocast=False)

    def call(self, inputs):
        return inputs * ops.cast(self.scale, self.compute_dtype)

    def compute_output_shape(self, input_shape):
        return input_shape
