"""Measurements within a process of vol's library: the plugin's rows as they come, and the YARA engine alone.

Run as `python -m benchmarks.inside rows|engine IMAGE --cache FOLDER`; prints a JSON object of numbers.
"""

from __future__ import annotations

import argparse
import json
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import volatility3.plugins
import volatility3.symbols
from volatility3 import framework
from volatility3.framework import automagic, constants, contexts, interfaces, plugins
from volatility3.framework.configuration import requirements

from benchmarks.vol import PLUGINS, SYMBOLS


def construct(image: Path, plugin: str, cache: Path) -> Any:
    """Make a plugin over an image, ready to run, as vol's command line does."""
    volatility3.plugins.__path__ = [str(PLUGINS), *constants.PLUGINS_PATH]
    volatility3.symbols.__path__ = [str(SYMBOLS), *constants.SYMBOL_BASEPATHS]
    constants.CACHE_PATH = str(cache)
    constants.OFFLINE = True
    framework.import_files(volatility3.plugins, True)
    chosen = framework.list_plugins()[plugin]
    context = contexts.Context()
    # Vol's own types say that these two want what they are never given.
    choose: Any = automagic.choose_automagic
    make: Any = plugins.construct_plugin
    magics = choose(automagic.available(context), chosen)
    location = requirements.URIRequirement.location_from_file(str(image))
    context.config["automagic.LayerStacker.single_location"] = location
    return make(context, magics, chosen, "plugins", None, None)


def rows(image: Path, cache: Path) -> dict[str, float]:
    """Time the audit from the start of run(): its first row, its last, and how many rows there were."""
    plugin = construct(image, "windows.apcaudit.ApcAudit", cache)
    arrived: list[float] = []

    def visit(_node: interfaces.renderers.TreeNode, accumulator: Any) -> Any:
        if not arrived:
            arrived.append(time.perf_counter())
        return accumulator

    processor = time.process_time()
    start = time.perf_counter()
    grid = plugin.run()
    grid.populate(visit, None)
    end = time.perf_counter()
    return {
        "total": end - start,
        "processor": time.process_time() - processor,
        "first": (arrived or [end])[0] - start,
        "rows": grid.row_count,
    }


def engine(image: Path, cache: Path, rules: Path) -> dict[str, float]:
    """Time YARA alone on the bytes of every loaded module, read beforehand."""
    yara: Any = import_module("yara")
    plugin = construct(image, "windows.modules.Modules", cache)
    name = plugin.config["kernel"]
    layer = plugin.context.layers[plugin.context.modules[name].layer_name]
    listed = plugin.list_modules(plugin.context, name)
    units = [layer.read(module.DllBase, module.SizeOfImage, pad=True) for module in listed]
    start = time.perf_counter()
    compiled = yara.compile(filepath=str(rules))
    hits = sum(len(compiled.match(data=unit)) for unit in units)
    return {"seconds": time.perf_counter() - start, "bytes": sum(map(len, units)), "hits": hits}


def main() -> None:
    """Measure, and print the numbers."""
    parser = argparse.ArgumentParser(description="Measure within one process of vol's library.")
    parser.add_argument("what", choices=("rows", "engine"))
    parser.add_argument("image", type=Path)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--rules", type=Path, help="YARA rules, for `engine`")
    options = parser.parse_args()
    if options.what == "rows":
        numbers = rows(options.image, options.cache)
    else:
        numbers = engine(options.image, options.cache, options.rules)
    print(json.dumps(numbers))


if __name__ == "__main__":
    main()
