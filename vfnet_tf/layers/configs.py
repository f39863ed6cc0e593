"""Configs of layers from the arguments of their constructors."""

import inspect

import keras

#: What reads an argument as Keras does, and writes it into a config.
_READERS = {
    "activation": keras.activations,
    "kernel_initializer": keras.initializers,
    "bias_initializer": keras.initializers,
    "offset_initializer": keras.initializers,
    "kernel_regularizer": keras.regularizers,
    "bias_regularizer": keras.regularizers,
    "kernel_constraint": keras.constraints,
    "bias_constraint": keras.constraints,
}


class ArgumentConfig:
    """Mixin of layers each of whose arguments is an attribute: `get_config` has them all.

    The arguments of base classes of this package come first, then those of the class.
    """

    def get_config(self):
        return {**super().get_config(), **config_of(self)}


def set_arguments(layer, **arguments):
    """Gives a layer its activation, initialisers, regularisers and constraints."""
    for name, value in arguments.items():
        setattr(layer, name, _READERS[name].get(value))


def config_of(layer):
    """The arguments of a layer's constructors, but for `*args` and `**kwargs`."""
    config = {}
    for cls in reversed(type(layer).__mro__):
        if "__init__" not in vars(cls) or not cls.__module__.startswith("vfnet_tf."):
            continue
        for argument in list(inspect.signature(cls.__init__).parameters.values())[1:]:
            if argument.kind is argument.POSITIONAL_OR_KEYWORD or (
                argument.kind is argument.KEYWORD_ONLY
            ):
                value = getattr(layer, argument.name)
                reader = _READERS.get(argument.name)
                config[argument.name] = reader.serialize(value) if reader else value
    return config
