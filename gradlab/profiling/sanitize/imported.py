"""Something to be done once a module is there, without importing it for that."""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


@contextmanager
def when_imported(name: str, then: Callable[[], None]) -> Iterator[None]:
    """Within it `then` is called at the end of a module's import, or at once where that is over."""
    if name in sys.modules:
        then()
        yield
        return
    finder = _Finder(name, then)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        finder.then = None


class _Finder(MetaPathFinder):
    """Finds one module as the others would, with a loader that does something more."""

    def __init__(self, name: str, then: Callable[[], None]) -> None:
        self._name, self._looking = name, False
        self.then: Callable[[], None] | None = then

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        """The module's spec, of the module that is waited for alone."""
        if fullname != self._name or self._looking:
            return None
        self._looking = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._looking = False
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self)
        return spec


class _Loader(Loader):
    def __init__(self, usual: Loader, finder: _Finder) -> None:
        self._usual, self._finder = usual, finder

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._usual.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = self._usual
        module.__loader__ = self._usual
        self._usual.exec_module(module)
        if self._finder.then is not None:
            self._finder.then()
