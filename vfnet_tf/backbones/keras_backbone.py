import keras

from vfnet_tf.layers import FrozenBatchNorm

#: Layers of `keras.applications` models that end C3, C4 and C5, by model name.
APPLICATION_LAYERS = {
    "ResNet50": ("conv3_block4_out", "conv4_block6_out", "conv5_block3_out"),
    "ResNet101": ("conv3_block4_out", "conv4_block23_out", "conv5_block3_out"),
    "DenseNet121": ("pool3_conv", "pool4_conv", "relu"),
    "DenseNet169": ("pool3_conv", "pool4_conv", "relu"),
    "MobileNetV2": ("block_6_expand_relu", "block_13_expand_relu", "out_relu"),
}

_LEVELS = ("C3", "C4", "C5")


@keras.saving.register_keras_serializable("vfnet_tf")
class KerasBackbone(keras.Model):
    """Any functional Keras model as a backbone: `keras.applications`, KerasHub, your own.

    The model is cloned with its weights; the original stays as it was.

    Args:
        model: a functional Keras model. Its own preprocessing is not applied: give the
            pipeline the normalisation that the model's weights expect.
        layer_names: names of the layers that end C3, C4 and C5 (strides 8, 16, 32).
            None takes `model.pyramid_outputs["P3"]`, `"P4"`, `"P5"` (the convention of
            KerasHub's backbones).
        frozen_until: name of the last layer without gradients: it and the layers before
            it are frozen. None freezes nothing.
        trainable_norms: prefix of the names of the batch norms that use the batch's
            statistics in training; `""` means all, None none. The others keep their
            stored statistics, while gamma and beta are trained.

    Input: float `[B, H, W, 3]` as `model` expects it. Output: dict `"C3"`, `"C4"`, `"C5"`.

    Raises:
        ValueError: if the model has neither such layers nor `pyramid_outputs`.
    """

    def __init__(
        self,
        model,
        layer_names=None,
        frozen_until=None,
        trainable_norms=None,
        name=None,
        **kwargs,
    ):
        pyramid = keras.Model(model.inputs, _pyramid(model, layer_names))

        def clone(layer):
            if not isinstance(layer, keras.layers.BatchNormalization):
                return layer.__class__.from_config(layer.get_config())
            if trainable_norms is None or not layer.name.startswith(trainable_norms):
                return FrozenBatchNorm(layer.epsilon, name=layer.name)
            # torch's momentum 0.1; Keras's own 0.99 lags behind a short training.
            return layer.__class__.from_config({**layer.get_config(), "momentum": 0.9})

        cloned = keras.models.clone_model(pyramid, clone_function=clone)
        cloned.set_weights(pyramid.get_weights())
        super().__init__(
            inputs=cloned.inputs[0],
            outputs=cloned.output,
            name=name or model.name,
            **kwargs,
        )
        self._model_config = keras.saving.serialize_keras_object(model)
        self.layer_names = None if layer_names is None else tuple(layer_names)
        self.frozen_until = frozen_until
        self.trainable_norms = trainable_norms
        names = [layer.name for layer in self.layers]
        if frozen_until is not None and frozen_until not in names:
            raise ValueError(
                "`frozen_until` must be a layer of the model before C5. "
                f"Received: frozen_until={frozen_until}"
            )
        if frozen_until is not None:
            for layer in self.layers[: names.index(frozen_until) + 1]:
                layer.trainable = False

    @property
    def pyramid_outputs(self):
        """The same maps by KerasHub's names."""
        return {level.replace("C", "P"): self.output[level] for level in _LEVELS}

    def get_config(self):
        return {
            "name": self.name,
            "trainable": self.trainable,
            "model": self._model_config,
            "layer_names": self.layer_names,
            "frozen_until": self.frozen_until,
            "trainable_norms": self.trainable_norms,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        model = keras.saving.deserialize_keras_object(
            config["model"], custom_objects=custom_objects
        )
        return cls(**{**config, "model": model})


def _pyramid(model, layer_names):
    if layer_names is not None:
        if len(layer_names) != len(_LEVELS):
            raise ValueError(
                "`layer_names` must be three, for C3, C4 and C5. "
                f"Received: layer_names={layer_names}"
            )
        return {
            level: model.get_layer(name).output
            for level, name in zip(_LEVELS, layer_names, strict=True)
        }
    pyramid = getattr(model, "pyramid_outputs", None)
    if pyramid is None or any(level not in pyramid for level in ("P3", "P4", "P5")):
        raise ValueError(
            "The model must have `pyramid_outputs` with P3, P4 and P5, or `layer_names` "
            f"must name the layers that end C3, C4 and C5. Received: model={model.name}"
        )
    return {level: pyramid[level.replace("C", "P")] for level in _LEVELS}
