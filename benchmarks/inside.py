"""Measurements within a process of vol's library: the plugin's rows as they come, its YARA scan, the engine alone.

Run as `python -m benchmarks.inside rows|yara|engine IMAGE --cache FOLDER`; prints a JSON object of numbers.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import volatility3.plugins
import volatility3.symbols
from volatility3 import framework
from volatility3.framework import automagic, constants, contexts, interfaces, plugins
from volatility3.framework.configuration import requirements

from benchmarks.vol import PLUGINS, SYMBOLS


def find_plugins(cache: Path) -> None:
    """Import every plugin, as vol's command line does."""
    volatility3.plugins.__path__ = [str(PLUGINS), *constants.PLUGINS_PATH]
    volatility3.symbols.__path__ = [str(SYMBOLS), *constants.SYMBOL_BASEPATHS]
    constants.CACHE_PATH = str(cache)
    constants.OFFLINE = True
    framework.import_files(volatility3.plugins, True)


def construct(image: Path, plugin: str, cache: Path, options: Mapping[str, Any] | None = None) -> Any:
    """Make a plugin over an image with options of its own, ready to run, as vol's command line does."""
    find_plugins(cache)
    chosen = framework.list_plugins()[plugin]
    context = contexts.Context()
    # Vol's own types say that these two want what they are never given.
    choose: Any = automagic.choose_automagic
    make: Any = plugins.construct_plugin
    magics = choose(automagic.available(context), chosen)
    location = requirements.URIRequirement.location_from_file(str(image))
    context.config["automagic.LayerStacker.single_location"] = location
    for name, value in (options or {}).items():
        context.config[interfaces.configuration.path_join("plugins", chosen.__name__, name)] = value
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


def yara(image: Path, cache: Path, rules: Path) -> dict[str, float]:
    """Time the audit of an image with every driver scanned, and count how often its rules are compiled, and how long.

    `seconds` is from the start of the audit, when the rules have been compiled, `hits` a rule in a driver.
    """
    find_plugins(cache)
    engines = import_module("volatility3.plugins.windows.apcaudit.signatures.rules")
    requirement = import_module("volatility3.plugins.windows.apcaudit.vol")
    kind = type(engines.find_engine())
    compile_rules = kind.compile
    compilations: list[float] = []

    def timed(*arguments: Any) -> Any:
        start = time.perf_counter()
        compiled = compile_rules(*arguments)
        compilations.append(time.perf_counter() - start)
        return compiled

    kind.compile = timed
    options = {"yara-file": rules.resolve().as_uri(), "yara-all": True, "no-default-rules": True}
    plugin = construct(image, "windows.apcaudit.ApcAudit", cache, options)
    start = time.perf_counter()
    name = plugin.config["kernel"]
    audit, threads = plugin.stream(plugin.context, name, rules=requirement.rule_options(plugin.config))
    for _ in threads:
        pass
    seconds = time.perf_counter() - start
    # No thread starts in these drivers: what hit them is told by a note a driver.
    told = [note.partition(" in ")[0] for note in audit.notes if "where no listed thread starts" in note]
    hits = sum(len(names.split(",")) for names in told)
    return {"compilations": len(compilations), "compile": sum(compilations), "seconds": seconds, "hits": hits}


def engine(image: Path, cache: Path, rules: Path) -> dict[str, float]:
    """Time YARA alone on the bytes of every loaded module, read beforehand; `seconds` is `compile` and `scan`."""
    compile_rules, count_hits = _engine_alone()
    plugin = construct(image, "windows.modules.Modules", cache)
    name = plugin.config["kernel"]
    layer = plugin.context.layers[plugin.context.modules[name].layer_name]
    listed = plugin.list_modules(plugin.context, name)
    units = [layer.read(module.DllBase, module.SizeOfImage, pad=True) for module in listed]
    processor = time.process_time()
    start = time.perf_counter()
    compiled = compile_rules(rules.read_text(encoding="utf-8"))
    between = time.perf_counter()
    hits = sum(count_hits(compiled, unit) for unit in units)
    end = time.perf_counter()
    return {
        "seconds": end - start,
        "processor": time.process_time() - processor,
        "compile": between - start,
        "scan": end - between,
        "bytes": sum(map(len, units)),
        "hits": hits,
    }


def _engine_alone() -> tuple[Callable[[str], Any], Callable[[Any, bytes], int]]:
    """Return how the engine that the plugin takes compiles rules, and how it counts those that hit bytes."""
    try:
        yara_x: Any = import_module("yara_x")
    except ImportError:
        yara_python: Any = import_module("yara")
        return lambda text: yara_python.compile(source=text), lambda rules, data: len(rules.match(data=data))
    return yara_x.compile, lambda rules, data: len(rules.scan(data).matching_rules)


def main() -> None:
    """Measure, and print the numbers."""
    parser = argparse.ArgumentParser(description="Measure within one process of vol's library.")
    parser.add_argument("what", choices=("rows", "yara", "engine"))
    parser.add_argument("image", type=Path)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--rules", type=Path, help="YARA rules, for `yara` and `engine`")
    options = parser.parse_args()
    if options.what == "rows":
        numbers = rows(options.image, options.cache)
    else:
        measured = yara if options.what == "yara" else engine
        numbers = measured(options.image, options.cache, options.rules)
    print(json.dumps(numbers))


if __name__ == "__main__":
    main()
