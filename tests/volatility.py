"""Runs vol's library on an image, in this process: a context, a plugin's rows as dictionaries."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import volatility3.plugins
import volatility3.symbols
from volatility3 import framework
from volatility3.framework import automagic, constants, contexts, interfaces, plugins
from volatility3.framework.configuration import requirements

ROOT = Path(__file__).resolve().parent.parent
REPOSITORY_SYMBOLS = ROOT / "symbols"

#: What a Python is given with -c to be vol; under -c vol would take its own name for an option.
VOL = "import sys; sys.argv[0] = 'vol'; from volatility3.cli import main; main()"

_classes: dict[str, Any] = {}


@contextlib.contextmanager
def _symbols(folders: tuple[Path, ...]) -> Iterator[None]:
    """Search these folders, and no others but vol's own, for symbol files."""
    before = list(volatility3.symbols.__path__)
    volatility3.symbols.__path__[:] = [*(str(folder) for folder in folders), *before]
    constants.OFFLINE = True
    try:
        yield
    finally:
        volatility3.symbols.__path__[:] = before


def construct(
    image: Path,
    plugin: str | type,
    *,
    cache: Path,
    symbols: tuple[Path, ...] = (REPOSITORY_SYMBOLS,),
    **options: Any,
) -> Any:
    """Make a plugin, by name or class, over an image; options are its own, `min_severity` for `min-severity`."""
    if not _classes:
        framework.import_files(volatility3.plugins, True)
        _classes.update(framework.list_plugins())
    cache.mkdir(exist_ok=True, parents=True)
    constants.CACHE_PATH = str(cache)
    with _symbols(symbols):
        context = contexts.Context()
        chosen = _classes[plugin] if isinstance(plugin, str) else plugin
        magics = automagic.choose_automagic(automagic.available(context), chosen)
        context.config["automagic.LayerStacker.single_location"] = requirements.URIRequirement.location_from_file(
            str(image)
        )
        for name, value in options.items():
            path = interfaces.configuration.path_join("plugins", chosen.__name__, name.replace("_", "-"))
            context.config[path] = value
        return plugins.construct_plugin(context, magics, chosen, "plugins", None, None)


def rows(image: Path, plugin: str = "windows.apcaudit.ApcAudit", **arguments: Any) -> list[dict[str, Any]]:
    """Run a plugin over an image; absent values are None."""
    grid = construct(image, plugin, **arguments).run()
    names = [column.name for column in grid.columns]
    found: list[dict[str, Any]] = []

    def visit(node: interfaces.renderers.TreeNode, _: Any) -> None:
        values = [None if isinstance(each, interfaces.renderers.BaseAbsentValue) else each for each in node.values]
        found.append(dict(zip(names, values, strict=True)))

    grid.populate(visit, None)
    return found
