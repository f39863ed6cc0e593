"""Which parts of a layer train, in its config: Keras keeps the flag of the whole only."""

import functools
import inspect

import keras

_KEY = "trainable_parts"


class TrainableParts:
    """Mixin of layers that are made of layers: `trainable` of each part is kept.

    The flags of the parts survive `from_config(get_config())`, `.keras` files, copies and
    `keras.models.clone_model`. `trainable=False` in the constructor reaches all parts.

    The mixin stands before the Keras class. A functional model, whose config is
    another than Keras's, overrides `_own_config` and `_revive`.
    """

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            cls.__init__ = _freezing_parts(cls.__init__)

    def get_config(self):
        config = self._own_config()
        parts = trainable_parts(self)
        is_default = self.trainable and parts == self._parts_of_constructor()
        return config if is_default else {**config, _KEY: parts}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = copy_config(config)
        parts = config.pop(_KEY, None)
        layer = cls._revive(config, custom_objects)
        if parts is not None:
            set_trainable_parts(layer, parts)
        return layer

    @classmethod
    def _revive(cls, config, custom_objects):
        """A layer from a config without the flags; the config may be changed."""
        return super().from_config(config)

    def _own_config(self):
        """The config without the flags of the parts."""
        return super().get_config()

    def _parts_of_constructor(self):
        """What `trainable_parts` is of a layer that was just constructed."""
        return {}


def trainable_parts(layer):
    """Which parts of a layer have another flag than what they are part of.

    Args:
        layer: Keras layer.

    Returns:
        dict path -> bool. The path of a layer is its name, behind those that it is part
        of, as `"class_tower/conv0/norm"`; that of a variable ends with `":kernel"`.
        Variables of layers with LoRA factors are left out, as a file has them merged.
    """
    parts = {}
    for path, owner, part in _walk(layer):
        if part.trainable != owner.trainable:
            parts[path] = part.trainable
    return parts


def set_trainable_parts(layer, parts):
    """Gives a layer's parts the flags that `trainable_parts` returned.

    A variable's flag is set if the layer is built.

    Raises:
        ValueError: if the layer has no such parts.
    """
    _set_all(layer, layer.trainable)
    unknown = set(parts)
    for path, _, part in _walk(layer):
        if path in parts:
            part.trainable = parts[path]
            unknown.discard(path)
    if layer.built and unknown:
        raise ValueError(
            f"`trainable_parts` must name parts of {layer.name!r}. "
            f"Received: {sorted(unknown)}"
        )


def _set_all(layer, value):
    """Sets the flag of a layer and of all its parts."""
    # TensorFlow's layers ignore an attribute that is set to what it is.
    layer.trainable = not value
    layer.trainable = value


def _walk(layer, prefix=""):
    """(path, owner, part) of all parts, an owner before its parts."""
    if not getattr(layer, "lora_enabled", False):
        for variable in layer._trainable_variables:
            yield f"{prefix.removesuffix('/')}:{variable.name}", layer, variable
    seen = {}
    for part in layer._flatten_layers(include_self=False, recursive=False):
        if isinstance(part, keras.layers.InputLayer):
            continue  # named anew in each copy, and nothing in it trains
        number = seen[part.name] = seen.get(part.name, 0) + 1
        path = prefix + (part.name if number == 1 else f"{part.name}#{number}")
        yield path, layer, part
        yield from _walk(part, path + "/")


def _freezing_parts(init):
    """A constructor after which the parts of a frozen layer are frozen, too."""

    @functools.wraps(init)
    def wrapper(self, *args, **kwargs):
        init(self, *args, **kwargs)
        if not self.trainable:
            _set_all(self, False)

    # Keras reads the arguments' names here.
    wrapper.__signature__ = inspect.signature(init)
    return wrapper


def copy_config(config):
    """A config whose dicts and lists are its own: Keras empties what it deserialises."""
    if isinstance(config, dict):
        return {key: copy_config(value) for key, value in config.items()}
    if isinstance(config, list):
        return [copy_config(value) for value in config]
    return config
