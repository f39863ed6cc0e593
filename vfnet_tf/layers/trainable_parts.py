"""The `trainable` flags of a layer's parts in its config; Keras keeps the whole's only."""

import functools
import inspect

import keras

_KEY = "trainable_parts"


class TrainableParts:
    """Mixin of layers that are made of layers: keeps `trainable` of each part.

    The flags of the parts survive `from_config(get_config())`, `.keras` files, copies and
    `keras.models.clone_model`. `trainable=False` in the constructor reaches all parts.

    The mixin stands before the Keras class. A class that freezes parts in its
    constructor calls `_keep_initial_flags` at its end. A functional model, whose config
    is another than Keras's, overrides `_own_config` and `_from_own_config`.
    """

    #: `trainable_parts` after the constructor: flags that the config need not repeat.
    #: None: the config always has the flags.
    _initial_flags = {}

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            cls.__init__ = _freezing_parts(cls.__init__)

    def get_config(self):
        config = self._own_config()
        parts = trainable_parts(self)
        is_default = self.trainable and parts == self._initial_flags
        return config if is_default else {**config, _KEY: parts}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = copy_config(config)
        parts = config.pop(_KEY, None)
        layer = cls._from_own_config(config, custom_objects)
        if parts is not None:
            set_trainable_parts(layer, parts)
        return layer

    @classmethod
    def _from_own_config(cls, config, custom_objects):
        """A layer from a config without the flags; the config may be changed."""
        return super().from_config(config)

    def _own_config(self):
        """The config without the flags of the parts."""
        return super().get_config()

    def _keep_initial_flags(self):
        self._initial_flags = trainable_parts(self)


def trainable_parts(layer):
    """The flags of those parts of a layer that differ from the flag of their owner.

    Args:
        layer: Keras layer.

    Returns:
        dict path -> bool. A layer's path has the names of its owners and its own, as
        `"class_tower/conv0/norm"`; a variable's path ends with `":kernel"`. Variables of
        layers with LoRA factors are left out, since a file has them merged.
    """
    return {
        path: part.trainable
        for path, owner, part in _walk_parts(layer)
        if part.trainable != owner.trainable
    }


def set_trainable_parts(layer, parts):
    """Gives a layer's parts the flags that `trainable_parts` returned.

    A variable's flag is set if the layer is built.

    Raises:
        ValueError: if a built layer has no such parts.
    """
    _set_all(layer, layer.trainable)
    unknown = set(parts)
    for path, _, part in _walk_parts(layer):
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
    # Keras on TensorFlow ignores an attribute that is set to the value it has.
    layer.trainable = not value
    layer.trainable = value


def _walk_parts(layer, prefix=""):
    """Yields (path, owner, part) of all parts, an owner before its parts."""
    if not getattr(layer, "lora_enabled", False):
        for variable in layer._trainable_variables:
            yield f"{prefix.removesuffix('/')}:{variable.name}", layer, variable
    seen = {}
    for part in layer._flatten_layers(include_self=False, recursive=False):
        if isinstance(part, keras.layers.InputLayer):
            continue  # has no variables, and another name in each copy
        number = seen[part.name] = seen.get(part.name, 0) + 1
        path = prefix + (part.name if number == 1 else f"{part.name}#{number}")
        yield path, layer, part
        yield from _walk_parts(part, path + "/")


def _freezing_parts(init):
    """Makes a constructor freeze the parts of a frozen layer, too."""

    @functools.wraps(init)
    def wrapper(self, *args, **kwargs):
        init(self, *args, **kwargs)
        if not self.trainable:
            _set_all(self, False)

    # Keras reads the names of the arguments from the signature.
    wrapper.__signature__ = inspect.signature(init)
    return wrapper


def copy_config(config):
    """A deep copy of a config's dicts and lists: Keras empties what it deserialises."""
    if isinstance(config, dict):
        return {key: copy_config(value) for key, value in config.items()}
    if isinstance(config, list):
        return [copy_config(value) for value in config]
    return config
