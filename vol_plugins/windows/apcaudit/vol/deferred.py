"""Loads the package's modules on first use.

Vol imports every file below its plugin folders on every run, whatever plugin the user runs, but skips files that are
already in sys.modules. So the package registers its modules there unloaded, and does not slow down other plugins.
importlib's LazyLoader would take ten times as long, because it creates a specification and a loader for every module
at once.
"""

from __future__ import annotations

import os
import sys
from importlib.util import spec_from_file_location
from types import ModuleType
from typing import Any

_PACKAGE_FILE = "__init__.py"


class _Deferred(ModuleType):
    """A module that loads its file when an attribute is first accessed."""

    def __getattr__(self, name: str) -> Any:
        if name != "_deferred_path" and "_deferred_path" in self.__dict__:
            _load(self)
            return getattr(self, name)
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")


def defer(package: str, folder: str) -> None:
    """Register every module below a package's folder in sys.modules, to be loaded on first use.

    Args:
        package: full name of the package.
        folder: its folder. Modules that are already in sys.modules are not replaced.
    """
    for path, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name != "__pycache__"]
        inner = package if path == folder else ".".join((package, *os.path.relpath(path, folder).split(os.sep)))
        if path != folder and _PACKAGE_FILE in files:
            _register(inner, os.path.join(path, _PACKAGE_FILE))
        for file in files:
            if file.endswith(".py") and file != _PACKAGE_FILE:
                _register(f"{inner}.{file[:-3]}", os.path.join(path, file))


def _register(name: str, path: str) -> None:
    if name in sys.modules:
        return
    module = _Deferred(name)
    module.__dict__["_deferred_path"] = path
    sys.modules[name] = module
    parent, _, child = name.rpartition(".")
    # Not setattr: attribute access would load a parent that is itself deferred.
    sys.modules[parent].__dict__[child] = module


def _load(module: _Deferred) -> None:
    """Load a deferred module and give it the attributes that the import system would set."""
    name, path = module.__name__, module.__dict__.pop("_deferred_path")
    folders = [os.path.dirname(path)] if os.path.basename(path) == _PACKAGE_FILE else None
    spec = spec_from_file_location(name, path, submodule_search_locations=folders)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be loaded", name=name, path=path)
    module.__class__ = ModuleType  # type: ignore[assignment]
    attributes = module.__dict__
    attributes["__spec__"], attributes["__loader__"], attributes["__file__"] = spec, spec.loader, path
    attributes["__package__"], attributes["__cached__"] = spec.parent, spec.cached
    if folders is not None:
        attributes["__path__"] = folders
    spec.loader.exec_module(module)
