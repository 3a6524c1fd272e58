"""Modules that are loaded when they are first used.

Vol imports every file below its plugin folders on every run, also for another plugin. It passes over what is in
sys.modules already, so the package puts its modules there unloaded, and costs no other plugin their loading.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import LazyLoader, module_from_spec, spec_from_file_location


def defer(package: str, folder: str) -> None:
    """Put every module below a package's folder into sys.modules, to be loaded on first use.

    Args:
        package: full name of the package.
        folder: where it lies; modules that are loaded already are left alone.
    """
    for path, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name != "__pycache__"]
        inner = ".".join((package, *os.path.relpath(path, folder).split(os.sep))) if path != folder else package
        for file in sorted(files):
            if file == "__init__.py":
                _register(inner, os.path.join(path, file), [path])
            elif file.endswith(".py"):
                _register(f"{inner}.{file[:-3]}", os.path.join(path, file), None)


def _register(name: str, path: str, search: list[str] | None) -> None:
    if name in sys.modules:
        return
    loader = LazyLoader(SourceFileLoader(name, path))
    spec = spec_from_file_location(name, path, loader=loader, submodule_search_locations=search)
    if spec is None:
        return
    module = module_from_spec(spec)
    sys.modules[name] = module
    loader.exec_module(module)
    parent, _, child = name.rpartition(".")
    setattr(sys.modules[parent], child, module)
