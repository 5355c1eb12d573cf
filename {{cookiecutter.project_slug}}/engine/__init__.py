"""One file per feature; the same in every project, naming no dataset and no network."""

import importlib
import sys
import types
from typing import Any


class _ScipySignal(types.ModuleType):
    """scipy.signal, loaded when somebody uses it.

    torchmetrics, which Lightning imports, looks whether scipy.signal has a `hamming`, for the sake of one old package,
    and would make each start a fifth longer by loading all of it. This stands here to be there before torchmetrics.
    """

    @staticmethod
    def hamming(*args: Any, **named: Any) -> Any:
        """The window, as torchmetrics would have put it there."""
        return importlib.import_module("scipy.signal.windows").hamming(*args, **named)

    def __getattr__(self, name: str) -> Any:
        if name == "__path__":  # a module below it is wanted
            return [f"{folder}/signal" for folder in importlib.import_module("scipy").__path__]
        if name.startswith("__"):  # who looks through all modules wants nothing of it
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


sys.modules.setdefault("scipy.signal", _ScipySignal("scipy.signal"))
