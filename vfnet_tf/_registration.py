"""Makes Keras know every class that a saved model may name, whichever is imported first.

Keras finds the classes of a `.keras` file among those that were imported. The package is
imported without Keras in a tenth of a second, so that commands are quick; its classes
are imported when Keras is, or at once if it has been.
"""

import contextlib
import importlib
import sys
import types

from vfnet_tf._imports import ImportWatch

#: They bring all that `keras.saving.load_model` must know by name.
_MODULES = (
    "vfnet_tf.presets",
    "vfnet_tf.training.optimizers",
    "vfnet_tf.training.schedules",
)


class WatchingPackage(types.ModuleType):
    """A package, told by Python whenever a module in it has been imported."""

    def __setattr__(self, name, value):
        super().__setattr__(name, value)
        if isinstance(value, types.ModuleType):
            _register()


@contextlib.contextmanager
def _before_registering():
    yield
    _register()


def watch():
    """Registers the classes now if Keras has been imported, or as soon as it is."""
    sys.modules[__package__].__class__ = WatchingPackage
    ImportWatch("keras", _before_registering).start()
    _register()


_is_done = False


def _register():
    """Imports the classes, unless Keras is not there or one of them is half imported."""
    global _is_done
    if _is_done or "keras" not in sys.modules:
        return
    own = [name for name in list(sys.modules) if name.startswith(f"{__package__}.")]
    half = [name for name in own if _is_half_imported(sys.modules[name])]
    for name in half:  # whoever holds it is told when it is complete
        sys.modules[name.rpartition(".")[0]].__class__ = WatchingPackage
    if half:
        return
    _is_done = True
    for name in _MODULES:
        importlib.import_module(name)


def _is_half_imported(module):
    return getattr(module.__spec__, "_initializing", False)
