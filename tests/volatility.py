"""Runs vol's library on an image, in this process: a context, a plugin's rows as dictionaries."""

from __future__ import annotations

import contextlib
import functools
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import volatility3.plugins
import volatility3.symbols
from volatility3 import framework, schemas
from volatility3.framework import automagic, constants, contexts, interfaces, layers, plugins
from volatility3.framework.automagic.construct_layers import ConstructionMagic
from volatility3.framework.automagic.symbol_cache import SqliteCache
from volatility3.framework.configuration import requirements
from volatility3.framework.symbols.intermed import IntermediateSymbolTable

from apcaudit.synthetic.kernels import Kernel
from tests import forked

ROOT = Path(__file__).resolve().parent.parent
REPOSITORY_SYMBOLS = ROOT / "symbols"

#: What a Python is given with -c to be vol; under -c vol would take its own name for an option.
VOL = "import sys; sys.argv[0] = 'vol'; from volatility3.cli import main; main()"

OURS = "windows/*/A9C0DE*"
"""The symbol files of our kernels below a folder: their GUIDs are invented."""

_classes: dict[str, Any] = {}
_build_opener = functools.cache(urllib.request.build_opener)

_folder = tempfile.TemporaryDirectory(prefix="apcaudit-tests-")
CACHE = Path(_folder.name)
"""Where this process's vol keeps its index of symbol files: making it anew takes longer than an audit."""


@contextlib.contextmanager
def searching(folders: tuple[Path, ...]) -> Iterator[None]:
    """Search these folders, and no others but vol's own, for symbol files; nor an installed copy of the project.

    The copy has the symbol files of all our kernels, whose addresses are alike: a minidump could be of any of them.
    Vol looks for files to import before each layer that it makes, which takes longer than making it: here it has them.
    Nor does it make the openers of URLs anew for each file, or the hash by which it knows symbol files that it has held
    against its schema: without jsonschema, which is no dependency of ours, it holds none against it. And it looks
    through all folders for each of its own tables once.
    """
    if not _classes:
        framework.import_files(volatility3.plugins, True)
        framework.import_files(automagic)
        framework.import_files(layers)
        _classes.update(framework.list_plugins())
    imported: dict[str, Any] = {"import_files": lambda *_: []}
    before = list(volatility3.symbols.__path__)
    of_vol = [folder for folder in before if not next(Path(folder).glob(OURS), None)]
    volatility3.symbols.__path__[:] = [*(str(folder) for folder in folders), *of_vol]
    constants.OFFLINE = True
    try:
        with (
            mock.patch.multiple(framework, **imported),
            mock.patch.multiple(automagic, **imported),
            mock.patch.object(urllib.request, "build_opener", _build_opener),
            mock.patch.object(schemas, "valid", return_value=True),
            mock.patch.object(IntermediateSymbolTable, "file_symbol_url", _find_some),
        ):
            yield
    finally:
        volatility3.symbols.__path__[:] = before


def alone(symbols: Path, folder: Path) -> Path:
    """Make a folder of symbol files for vol that has only this one: vol reads every one that it meets for its index."""
    place = folder / "symbols" / "windows" / symbols.parent.name
    place.mkdir(parents=True)
    (place / symbols.name).symlink_to(symbols)
    return folder / "symbols"


def put_index(cache: Path) -> None:
    """Put an index of vol's own symbol files and the repository's into a cache that has none."""
    path = cache / constants.IDENTIFIERS_FILENAME
    if not path.exists():
        path.write_bytes(_index())


@functools.cache
def _index() -> bytes:
    with tempfile.TemporaryDirectory() as folder, searching((REPOSITORY_SYMBOLS,)):
        path = Path(folder, constants.IDENTIFIERS_FILENAME)
        SqliteCache(str(path)).update()  # type: ignore[abstract]
        return path.read_bytes()


@contextlib.contextmanager
def _nothing_sought() -> Iterator[None]:
    """Spare vol, which is told where all is, the search for its tables and the hashes of those known to be valid."""
    with (
        mock.patch.object(schemas, "validate", return_value=True),
        mock.patch.object(IntermediateSymbolTable, "file_symbol_url", _tables_of_vol),
    ):
        yield


_find_tables = IntermediateSymbolTable.file_symbol_url

OF_VOL = ("crash", "crash64", "crash_common", "pe")
"""Tables that come with vol, in its folder `windows`: those of crash dumps' headers and of PE images."""


def _find_some(folder: str, name: str | None = None) -> Iterable[str]:
    """Find tables: those that come with vol where they were the last time."""
    return _tables_of_vol(folder, name) if folder == "windows" and name in OF_VOL else _find_tables(folder, name)


@functools.cache
def _tables_of_vol(folder: str, name: str | None) -> tuple[str, ...]:
    """Find one of the tables that come with vol, as those of crash dumps' headers do."""
    return tuple(_find_tables(folder, name))


def construct(
    image: Path,
    plugin: str | type,
    *,
    cache: Path,
    symbols: tuple[Path, ...] = (REPOSITORY_SYMBOLS,),
    kernel: Kernel | None = None,
    page_tables: int | None = None,
    beside: Any = None,
    dump_layer: type | None = None,
    **options: Any,
) -> Any:
    """Make a plugin, by name or class, over an image; options are its own, `min_severity` for `min-severity`.

    Where `kernel` is given, vol is told where it lies: finding it takes vol five times as long as an audit. The image
    is a crash dump of it then, or raw memory where the physical address of its page tables is given too. `beside` is a
    plugin that was made so over another image of that kernel: its symbols are used, which may be large. `dump_layer` is
    the layer of a crash dump that is not vol's.
    """
    cache.mkdir(exist_ok=True, parents=True)
    if kernel is None:
        put_index(cache)
    constants.CACHE_PATH = str(cache)
    with searching(symbols):
        context = contexts.Context() if beside is None else beside.context
        path = "plugins" if beside is None else f"{beside.config_path}_"
        chosen = _classes[plugin] if isinstance(plugin, str) else plugin
        location = requirements.URIRequirement.location_from_file(str(image))
        context.config["automagic.LayerStacker.single_location"] = location
        if kernel is not None:
            options |= configuration(kernel, image, location, symbols, page_tables)
            if dump_layer is not None:
                options["kernel.layer_name.memory_layer.class"] = f"{dump_layer.__module__}.{dump_layer.__name__}"
            magics: list[Any] = [ConstructionMagic(context, "automagic.ConstructionMagic")]
        else:
            magics = automagic.choose_automagic(automagic.available(context), chosen)
        if beside is not None:
            options["kernel.symbol_table_name"] = beside.context.modules[beside.config["kernel"]].symbol_table_name
        for name, value in options.items():
            context.config[interfaces.configuration.path_join(path, chosen.__name__, _option(name))] = value
        # A minidump's layer looks for its kernel's symbol file itself.
        told = kernel is not None and dump_layer is None
        with _nothing_sought() if told else contextlib.nullcontext():
            return plugins.construct_plugin(context, magics, chosen, path, None, None)


def _option(name: str) -> str:
    return name if "." in name else name.replace("_", "-")


def configuration(
    kernel: Kernel, image: Path, location: str, symbols: Iterable[Path], page_tables: int | None = None
) -> dict[str, Any]:
    """Return what vol's automagic finds in an image, by the names of vol's configuration; arguments as of construct."""
    layer = "kernel.layer_name"
    paging = "Intel32e" if kernel.is_64bit else "IntelPAE" if kernel.is_pae else "Intel"
    file = f"windows/{kernel.pdb.name}/{kernel.pdb.guid}-{kernel.pdb.age}.json.xz"
    isf = next(path for folder in symbols if (path := folder / file).is_file())
    base = kernel.base & ((1 << 48) - 1)
    memory = f"{layer}.memory_layer"
    file_layer = "volatility3.framework.layers.physical.FileLayer"
    if page_tables is not None:
        physical = {f"{memory}.class": file_layer, f"{memory}.location": location}
    else:
        with image.open("rb") as header:
            header.seek(_DIRECTORY_TABLE_BASE)
            page_tables = int.from_bytes(header.read(8 if kernel.is_64bit else 4), "little")
        bits = 64 if kernel.is_64bit else 32
        physical = {
            f"{memory}.class": f"volatility3.framework.layers.crash.WindowsCrashDump{bits}Layer",
            f"{memory}.base_layer.class": file_layer,
            f"{memory}.base_layer.location": location,
        }
    return physical | {
        "kernel.class": "volatility3.framework.contexts.Module",
        "kernel.offset": base,
        f"{layer}.class": f"volatility3.framework.layers.intel.Windows{paging}",
        f"{layer}.kernel_virtual_offset": base,
        f"{layer}.page_map_offset": page_tables,
        f"{layer}.swap_layers": True,
        f"{layer}.swap_layers.number_of_elements": 0,
        "kernel.symbol_table_name.class": "volatility3.framework.symbols.windows.WindowsKernelIntermedSymbols",
        "kernel.symbol_table_name.isf_url": isf.resolve().as_uri(),
        "kernel.symbol_table_name.symbol_mask": 0,
    }


_DIRECTORY_TABLE_BASE = 0x10
"""Where a crash dump's header has the physical address of the page tables (wdbgexts.h, DUMP_HEADER)."""


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


def vol(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run vol's command in a process of its own, which has what vol imports from this one."""
    from volatility3 import cli
    from volatility3.plugins.windows.apcaudit import audit  # noqa: F401

    def main() -> None:
        sys.argv = ["vol", *map(str, arguments)]
        cli.CommandLine.CLI_NAME = "vol"
        # Both were made when this process imported them.
        cli.console.setStream(sys.stderr)
        cli.main()

    put_index(CACHE)
    with searching(()):
        return forked.run(main, cwd=cwd)
