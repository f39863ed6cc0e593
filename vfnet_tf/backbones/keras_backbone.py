import keras

from vfnet_tf.backbones.stages import stage_ends, strides_of
from vfnet_tf.layers import FoldedConv2D, FrozenBatchNorm
from vfnet_tf.layers.trainable_parts import TrainableParts, copy_config

_LEVELS = {"C3": 8, "C4": 16, "C5": 32}  # strides


@keras.saving.register_keras_serializable("vfnet_tf")
class KerasBackbone(TrainableParts, keras.Model):
    """Any functional Keras model as a backbone: `keras.applications`, KerasHub, your own.

    The model is cloned with its weights; the original stays as it was.

    Args:
        model: a functional Keras model. Its own preprocessing is not applied: give the
            pipeline the normalisation that the model's weights expect. (Layers of the
            model that scale pixels are applied, of course.)
        layer_names: names of the layers that end C3, C4 and C5 (strides 8, 16, 32).
            None finds them, see `stage_ends`.
        frozen_until: name of the last layer without gradients: it and the layers before
            it are frozen. None freezes nothing.
        trainable_norms: prefix of the names of the batch norms that use the batch's
            statistics in training; `""` means all, None none. The others keep their
            stored statistics, while gamma and beta are trained; those within another
            layer keep gamma and beta too.

    Input: float `[B, H, W, 3]` as `model` expects it. Output: dict `"C3"`, `"C4"`, `"C5"`.

    Attributes:
        layers_without_weights: tuple of the layers that a file of initial weights left
            out, set by `build_backbone`.

    Raises:
        ValueError: if the model has no such layers.
    """

    layers_without_weights = ()

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
        cloned = _with_frozen_norms(pyramid, trainable_norms)
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
        # Layers of the given model, including norms that are folded here.
        names = [operation.name for operation in pyramid.operations]
        if frozen_until is not None and frozen_until not in names:
            raise ValueError(
                "`frozen_until` must be a layer of the model before C5. "
                f"Received: frozen_until={frozen_until}"
            )
        if frozen_until is not None:
            frozen = set(names[: names.index(frozen_until) + 1])
            for layer in self.layers:
                layer.trainable = layer.name not in frozen and layer.trainable
        self._keep_initial_flags()

    @property
    def pyramid_outputs(self):
        """The same maps by KerasHub's names."""
        return {level.replace("C", "P"): self.output[level] for level in _LEVELS}

    def _own_config(self):
        return {
            "name": self.name,
            "trainable": self.trainable,
            "model": copy_config(self._model_config),
            "layer_names": self.layer_names,
            "frozen_until": self.frozen_until,
            "trainable_norms": self.trainable_norms,
        }

    @classmethod
    def _from_own_config(cls, config, custom_objects):
        model = keras.saving.deserialize_keras_object(
            config["model"], custom_objects=custom_objects
        )
        return cls(**{**config, "model": model})


def _pyramid(model, layer_names):
    """The maps that end C3, C4 and C5, a dict by level."""
    if layer_names is None:
        ends = stage_ends(model)
        if any(stride not in ends for stride in _LEVELS.values()):
            raise ValueError(
                "The model must have maps of the strides 8, 16 and 32: as "
                "`pyramid_outputs`, or such that all later layers are computed from "
                "them; or `layer_names` must name them. Received: "
                f"model={model.name} with maps of the strides {sorted(ends)}"
            )
        maps = [ends[stride] for stride in _LEVELS.values()]
    elif len(layer_names) != len(_LEVELS):
        raise ValueError(
            "`layer_names` must be three, for C3, C4 and C5. "
            f"Received: layer_names={layer_names}"
        )
    else:
        maps = [model.get_layer(name).output for name in layer_names]
        strides = strides_of(model, maps)
        if strides != list(_LEVELS.values()):
            raise ValueError(
                "The layers of `layer_names` must give maps of the strides "
                f"{list(_LEVELS.values())}. Received: layer_names={layer_names} of the "
                f"strides {strides}"
            )
    return dict(zip(_LEVELS, maps, strict=True))


def _with_frozen_norms(model, trainable_norms):
    """A clone whose batch norms keep their statistics, folded if a `Conv2D` is before."""

    def is_frozen_norm(layer):
        return isinstance(layer, keras.layers.BatchNormalization) and (
            trainable_norms is None or not layer.name.startswith(trainable_norms)
        )

    folded = {}
    for layer in model.layers:
        if is_frozen_norm(layer):
            before = layer.input._keras_history.operation
            if type(before) is keras.layers.Conv2D and _is_only_consumer(layer, before):
                folded[before.name] = layer

    def clone(layer):
        config = layer.get_config()
        if layer.name in folded:
            return FoldedConv2D(**_arguments(layer), epsilon=folded[layer.name].epsilon)
        if is_frozen_norm(layer):
            policy = layer.dtype_policy
            return FrozenBatchNorm(layer.epsilon, name=layer.name, dtype=policy)
        if isinstance(layer, keras.layers.BatchNormalization):
            # PyTorch's momentum 0.1; Keras's 0.99 lags behind in a short training.
            config["momentum"] = 0.9
        return layer.__class__.from_config(config)

    absorbed = {norm.name for norm in folded.values()}

    def call(layer, *args, **kwargs):
        return args[0] if layer.name in absorbed else layer(*args, **kwargs)

    cloned = keras.models.clone_model(model, clone_function=clone, call_function=call)
    for own in cloned.layers:
        if not own.weights:
            continue
        layer = model.get_layer(own.name)
        weights = layer.get_weights()
        if own.name in folded:
            weights = _folded_weights(layer, folded[own.name])
        elif isinstance(own, FrozenBatchNorm):
            weights = _all_four(layer)
        own.set_weights(weights)
        for inner in own._flatten_layers():
            if isinstance(inner, keras.layers.Normalization):
                inner.finalize_state()  # it computes with a copy of its weights
            elif inner is not own and is_frozen_norm(inner):
                inner.trainable = False
    return cloned


def _arguments(conv):
    """The arguments of a `Conv2D` for `FoldedConv2D`."""
    config = keras.layers.Conv2D.from_config(conv.get_config()).get_config()
    config.pop("activation")
    config.pop("dtype")
    return {**config, "dtype": conv.dtype_policy}


def _is_only_consumer(layer, before):
    nodes = before._outbound_nodes
    is_linear = before.activation in (None, keras.activations.linear)
    return len(nodes) == 1 and nodes[0].operation is layer and is_linear


def _folded_weights(conv, norm):
    """Kernel, gamma, beta, mean and variance of a convolution and the norm after it."""
    kernel, *bias = conv.get_weights()
    gamma, beta, mean, variance = _all_four(norm)
    return [kernel, gamma, beta, mean - bias[0] if bias else mean, variance]


def _all_four(norm):
    """Gamma, beta, mean and variance of a batch norm; 1 and 0 where it has none."""
    mean, variance = norm.moving_mean.numpy(), norm.moving_variance.numpy()
    gamma = norm.gamma.numpy() if norm.scale else variance * 0 + 1
    beta = norm.beta.numpy() if norm.center else mean * 0
    return [gamma, beta, mean, variance]
