"""Volatility as a library: audits an image and returns plain values. Only this module of the command imports vol."""

from __future__ import annotations

import dataclasses
import functools
import gc
import importlib
import logging
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import volatility3.plugins
import volatility3.symbols
from volatility3 import schemas
from volatility3.framework import automagic, constants, contexts, exceptions, interfaces, layers, plugins
from volatility3.framework.configuration import requirements
from volatility3.framework.layers import resources
from volatility3.framework.symbols import intermed

from apcaudit import where
from apcaudit.bulk.contents import Contents, Header, Kernel
from apcaudit.bulk.reader_cache import ReaderCache
from apcaudit.bulk.rows import Rows, address_of, dumped_drivers, seconds_of, time_of
from apcaudit.bulk.symbol_files import SymbolFiles
from apcaudit.errors import ApcAuditError

_PACKAGE = "volatility3.plugins.windows.apcaudit"
_SIGNATURES = f"{_PACKAGE}.signatures"


class NoKernelError(ApcAuditError):
    """No kernel was found in an image, or its symbol file is missing; in that case `kernel` identifies it."""

    def __init__(self, reason: str, kernel: Kernel | None) -> None:
        super().__init__(reason)
        self.kernel = kernel


def prepare(symbols: tuple[Path, ...], cache: ReaderCache, *, offline: bool) -> None:
    """Load what every image needs: vol's plugins, the folders of symbol files, and the cache that indexes them."""
    cache.begin()
    vol_cache = constants.CACHE_PATH
    # Vol writes to the first folder only, and removes files from it only.
    folders = [str(each) for each in (cache.first, *symbols, _find_own_folders())]
    others = [each for each in volatility3.symbols.__path__ if each not in folders]
    volatility3.symbols.__path__[:] = [*folders, *others, str(cache.last)]
    constants.CACHE_PATH = str(cache.own)
    constants.OFFLINE = offline
    if offline:
        # With OFFLINE alone vol raises an error and does not look for a file by its name that its index has missed.
        # With a server that has nothing, vol fails to fetch the file and then looks for it.
        constants.SYMBOL_SERVER_URL = (cache.own / "nowhere").as_uri()
    plugin = _plugin()
    # What vol itself has learned of the symbol files for minidumps, and what these processes learn, is one folder.
    opener = plugin_module("dumps.minidump_layer")
    folder = Path(vol_cache, plugin_module("dumps.kernel_match").CACHE_FOLDER)
    # Reading Opening loads the module, if it is deferred: loading it later would undo this.
    opener.opening = opener.Opening(str(folder), without_symbols=False)
    # Run the automagic that fills the index, without an image.
    context = contexts.Context()
    for magic in _magics(context):
        if type(magic).__name__ == "SymbolCacheMagic":
            magic(context, "automagic", plugin, _show_nothing)
    cache.keep()


def check_rules(rules: Path, *, skip_broken: bool = False) -> tuple[str, str | None]:
    """Compile YARA rules as an audit does; return a digest of 16 digits and a note on skipped files.

    Raises:
        ApcAuditError: they cannot be used.
    """
    _find_own_folders()
    options = dataclasses.replace(_rules(rules, skip_broken=skip_broken), defaults=False)
    try:
        compiled = importlib.import_module(f"{_SIGNATURES}.rules").compile_rules(options)
    except importlib.import_module(f"{_SIGNATURES}.options").RuleError as error:
        raise ApcAuditError(f"YARA rules: {error}") from error
    return compiled.digest[:16], compiled.note


def rule_files(rules: Path, *, skip_broken: bool = False) -> list[Path]:
    """Return the rule files that can be read, those that do not compile too, and the files that they include.

    Raises:
        ApcAuditError: they cannot be used.
    """
    check_rules(rules, skip_broken=skip_broken)
    options = dataclasses.replace(_rules(rules, skip_broken=skip_broken), defaults=False)
    sources = importlib.import_module(f"{_SIGNATURES}.sources")
    try:
        read = sources.gather(options)
    except sources.UnreadRulesError as error:
        read = error.sources
    included = importlib.import_module(f"{_SIGNATURES}.rules").compile_rules(options).included
    return [Path(each) for each in sorted({*(source.name for source in read), *included})]


def engines() -> tuple[str, str | None, str | None]:
    """Return the version of volatility3, and the packages used for YARA and for disassembly, None where missing."""
    _find_own_folders()
    yara, code = None, None
    with suppress(importlib.import_module(f"{_SIGNATURES}.options").RuleError):
        yara = str(importlib.import_module(f"{_SIGNATURES}.rules").find_engine().name)
    with suppress(ImportError):
        code = importlib.import_module("capstone.x86").__package__
    return constants.PACKAGE_VERSION, yara, code


def symbol_folders(symbols: tuple[Path, ...]) -> list[tuple[Path, bool]]:
    """Return the folders of symbol files that an audit uses, each with whether its files were fetched by vol.

    Call it before prepare(), which adds folders of this process.
    """
    folders = [*symbols, _find_own_folders(), *(Path(each) for each in volatility3.symbols.__path__)]
    return [(each, each.is_relative_to(constants.CACHE_PATH)) for each in dict.fromkeys(folders)]


def plugin_module(name: str) -> Any:
    """Import a module of the plugin by its name in the plugin's package."""
    _find_own_folders()
    return importlib.import_module(f"{_PACKAGE}.{name}")


def _find_own_folders() -> Path:
    """Add the project's plugin to vol's path; return the folder of its symbol files."""
    own_plugins, own_symbols = where.directories()
    if str(own_plugins) not in volatility3.plugins.__path__:
        volatility3.plugins.__path__.insert(0, str(own_plugins))
    return own_symbols


_symbol_files = SymbolFiles(
    lambda url: resources.ResourceAccessor().open(url), schemas.validate, volatility3.symbols.__path__
)


def prepare_for_forks() -> None:
    """Prepare this process to be forked for each image: load everything that vol loads with the first image.

    Vol's parser of symbol files is given the kept ones. Without, vol parses a kernel's file again for each image and
    hashes it for its schema: of twelve dumps of a genuine 19041 kernel each took 0.73 s and not 0.52 s.

    Vol goes through its folder of layers 55 times for each image, to import what lies there. All of that is imported
    here, then the folder is taken out of the package's path: the seed's dump took 0.24 s and takes 0.18 s.
    """
    of_vol: Any = intermed
    of_vol.json = of_vol.schemas = _symbol_files
    nothing = Path(constants.CACHE_PATH, "nothing")
    if not nothing.exists():
        nothing.write_bytes(bytes(0x1000))
    with suppress(NoKernelError):
        identify(nothing)
    layers.__path__[:] = []
    _freeze_heap()


def prepare_audit(rules: Path | None, *, skip_broken: bool) -> None:
    """Load what audits share into this process, which will be forked for one: the plugin's modules and the rules.

    Each process forked later has them, which saves it 0.1 to 0.25 s; loading takes as long, so it is done for the
    second image.
    """
    for name in [name for name in sys.modules if name.startswith(f"{_PACKAGE}.")]:
        # A deferred module is loaded by reading what it does not have before. vars() would not load it.
        _ = sys.modules[name].__file__
    with suppress(ImportError):
        importlib.import_module("capstone.x86")
    options = _rules(rules, skip_broken=skip_broken) or importlib.import_module(f"{_SIGNATURES}.options").RuleOptions()
    with suppress(importlib.import_module(f"{_SIGNATURES}.options").RuleError):
        # The plugin keeps the last rules that it has compiled.
        importlib.import_module(f"{_SIGNATURES}.rules").compile_rules(options)
    _freeze_heap()


def count_use(url: str) -> None:
    """Count that an image needed a symbol file; with the second such image the file is parsed and kept."""
    if _symbol_files.used(url):
        _freeze_heap()


def _freeze_heap() -> None:
    """Exclude all current objects from garbage collection, which would make forked processes copy their memory."""
    gc.collect()
    gc.freeze()


@functools.cache
def _plugin() -> Any:
    # Vol's other plugins take longer to load than a small image to audit, and none is needed.
    return importlib.import_module(_PACKAGE).ApcAudit


def _magics(context: interfaces.context.ContextInterface) -> Any:
    # Vol's annotations of the two functions do not fit together.
    available: Any = automagic.available(context)
    return automagic.choose_automagic(available, _plugin())


def read(
    image: str,
    path: Path,
    *,
    scan: bool,
    rules: Path | None,
    skip_broken: bool,
    stage: Callable[[str], None],
    progress: Callable[[str], None],
) -> Contents:
    """Audit an image.

    Args:
        image: its name in the rows.
        path: the file, unpacked.
        progress: called with texts on the progress of opening it.
        scan: whether memory is searched for threads and APCs that no list holds.
        rules: YARA rules beside those that ship: a file, or a folder of .yar files.
        skip_broken: whether rule files that cannot be used are skipped, with a note.
        stage: called with `open` and `audit` when these begin.

    Raises:
        NoKernelError: vol found no Windows kernel in it, or has no symbol file for it.
    """
    stage("open")
    warnings = _Warnings()
    with warnings:
        made = _construct(path, warnings, progress)
        stage("audit")
        options = _rules(rules, skip_broken=skip_broken)
        document = made.audit(made.context, made.config["kernel"], scan=scan, rules=options)
    facts = document.image
    of_document = importlib.import_module(f"{_PACKAGE}.output.document")
    rows = Rows(image, document, _values, of_document, importlib.import_module(f"{_PACKAGE}.output.columns").rows_of)
    for audited in document.threads:
        rows.add(audited)
    return Contents(
        symbol_file=_symbol_file(made.context, made.config["kernel"]),
        kernel=_kernel(made.context, made.config["kernel"]),
        **_of_machine(facts),
        crashing_thread=address_of(facts.crashing_thread),
        notes=(*document.notes, *(text for text in warnings.texts if text not in document.notes)),
        threads=tuple(rows.threads),
        apcs=tuple(rows.apcs),
        findings=tuple(rows.findings),
        drivers=tuple(rows.drivers()),
    )


def read_header(image: str, path: Path) -> Header | None:
    """Read what the headers of a crash dump tell without symbols, None where the file is no crash dump.

    Args:
        image: its name in the rows.
        path: the file, unpacked.
    """
    with path.open("rb") as file:
        facts = plugin_module("dumps.header_facts").read_header_facts(_reader_of(file), path.stat().st_size)
    return None if facts is None else Header(**_of_machine(facts), drivers=tuple(dumped_drivers(image, facts)))


def _of_machine(facts: Any) -> dict[str, Any]:
    """Return what Contents and Header have of the machine as such, from the plugin's ImageFacts or HeaderFacts."""
    bugcheck = facts.bugcheck
    return {
        "windows": None if facts.version is None else ".".join(str(each) for each in facts.version),
        "bits": facts.bits,
        "processors": facts.processors or None,
        "partial": facts.partial,
        "system_time": time_of(facts.system_time),
        "up_time": seconds_of(facts.up_time),
        "bugcheck": None if bugcheck is None else bugcheck.code,
        "bugcheck_parameters": None if bugcheck is None else " ".join(f"{each:#x}" for each in bugcheck.parameters),
        "crash": facts.crash,
    }


def _reader_of(file: IO[bytes]) -> Callable[[int, int], bytes]:
    def read(offset: int, length: int) -> bytes:
        file.seek(offset)
        return file.read(length)

    return read


def _rules(rules: Path | None, *, skip_broken: bool) -> Any:
    if rules is None:
        return None
    try:
        location = requirements.URIRequirement.location_from_file(str(rules))
    except ValueError as error:
        raise ApcAuditError(f"YARA rules: {error}") from error
    return importlib.import_module(f"{_SIGNATURES}.options").RuleOptions(file=location, skip_broken=skip_broken)


def _values(line: Any) -> dict[str, Any]:
    """Return the values of a row of the plugin's table by column; absent values are None."""
    columns = importlib.import_module(f"{_PACKAGE}.output.columns").COLUMNS
    absent = interfaces.renderers.BaseAbsentValue
    values = {column.name: column.value(line) for column in columns}
    return {name: None if isinstance(value, absent) else value for name, value in values.items()}


def identify(path: Path, progress: Callable[[str], None] = lambda _: None) -> Kernel | None:
    """Return the kernel of an image whose symbol file is available; None where vol does not identify it.

    Args:
        path: the file, unpacked.
        progress: called with texts on the progress of opening it.

    Raises:
        NoKernelError: vol found no Windows kernel in it, or has no symbol file for it.
    """
    warnings = _Warnings()
    with warnings:
        made = _construct(path, warnings, progress)
    return _kernel(made.context, made.config["kernel"])


def _construct(path: Path, warnings: _Warnings, progress: Callable[[str], None]) -> Any:
    search = plugin_module("dumps.minidump_layer").SEARCH

    def show(_: float, text: str | None = None) -> None:
        # Vol's own steps are short, and many.
        if text is not None and text.startswith(search):
            progress(text)

    context = contexts.Context()
    plugin = _plugin()
    location = requirements.URIRequirement.location_from_file(str(path))
    context.config["automagic.LayerStacker.single_location"] = location
    try:
        # Vol annotates the last one as required; without it no plugin can write files.
        construct: Any = plugins.construct_plugin
        return construct(context, _magics(context), plugin, "plugins", show, None)
    except exceptions.UnsatisfiedException as error:
        reasons = [requirement.description for requirement in error.unsatisfied.values()]
        text = "; ".join(warnings.texts or reasons).replace("\n", " ")
        raise NoKernelError(text, _missing(context, f"plugins.{plugin.__name__}.kernel")) from error


def _show_nothing(progress: float, description: str | None = None) -> None:
    """Take vol's progress; to volatility3 2.11 it calls what it is given without asking whether there is anything."""


def how_cut(path: Path, size: int) -> str | None:
    """Say how many bytes a crash dump of `size` bytes lacks by its header; None where none, or where it is no dump."""
    headers, cut = plugin_module("formats.crash_header"), plugin_module("dumps.cut")
    with path.open("rb") as file:
        read = _reader_of(file)
        header = headers.parse_crash_header(read(0, headers.DUMP_HEADER64_SIZE))
        said = None if header is None else cut.describe_truncation(header, read, size)
    return None if said is None else str(said)


def _missing(context: interfaces.context.ContextInterface, path: str) -> Kernel | None:
    """Identify the kernel for which vol has no symbol file, None if no PDB record is found."""
    layer = context.config.get(f"{path}.layer_name", None)
    if not isinstance(layer, str) or layer not in context.layers:
        return None
    found = importlib.import_module(f"{_PACKAGE}.vol.diagnosis").find_pdb(context, layer)
    return None if found is None else Kernel(*found)


def _kernel(context: interfaces.context.ContextInterface, name: str) -> Kernel | None:
    table: Any = context.symbol_space[context.modules[name].symbol_table_name]
    said = getattr(table, "metadata", None)
    guid, age = getattr(said, "pdb_guid", None), getattr(said, "pdb_age", None)
    # The table's metadata does not name the PDB, but the symbol file's folder has its name.
    pdb = _symbol_file(context, name).replace("\\", "/").rpartition("/")[0].rpartition("/")[2]
    if not guid or age is None:
        return None
    return Kernel(pdb, str(guid), int(age))


def _symbol_file(context: interfaces.context.ContextInterface, name: str) -> str:
    table: Any = context.symbol_space[context.modules[name].symbol_table_name]
    return str(table.config.get("isf_url", ""))


class _Warnings(logging.Handler):
    """A context manager that collects the texts of the plugin's warnings."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.name.startswith(_PACKAGE) and text not in self.texts:
            self.texts.append(text)

    def __enter__(self) -> None:
        logging.getLogger("volatility3").addHandler(self)

    def __exit__(self, *_: object) -> None:
        logging.getLogger("volatility3").removeHandler(self)
