"""What is done around the first import of a library, whoever imports it."""

import importlib.abc
import importlib.util
import sys


class ImportWatch(importlib.abc.MetaPathFinder):
    """Finds a library as ever, and runs its import inside a context manager, once.

    Args:
        name: str, the library.
        around: function without arguments that returns the context manager.
    """

    def __init__(self, name, around):
        self.name, self.around = name, around

    def find_spec(self, name, path=None, target=None):
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_inside(module):
                with self.around():
                    execute(module)

            spec.loader.exec_module = execute_inside
        return spec

    def start(self):
        """Watches, unless the library is there or is watched already."""
        others = [one for one in sys.meta_path if isinstance(one, ImportWatch)]
        if self.name not in sys.modules and self.name not in [o.name for o in others]:
            sys.meta_path.insert(0, self)
