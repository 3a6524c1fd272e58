"""YARA rules compiled by the installed engine, and the external variables that they may use."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Protocol

from ..formats.files import path_of
from .options import Broken, BrokenRulesError, RuleError, RuleOptions, count_files, name_broken
from .sources import Source, UnreadRulesError, gather, read_bytes, read_text

External = str | int | bool

NO_START = -1
"""`start_rva` where a unit is scanned for no particular thread; no match has this offset."""


@dataclass(frozen=True, slots=True)
class Start:
    """The function at a thread's start address: relative virtual address and size in bytes."""

    rva: int = NO_START
    size: int = 0


@dataclass(frozen=True, slots=True)
class UnitFacts:
    """The facts about a unit for rules: the driver's label, path, whether it is hidden, imports as `module!Name`.

    `process` is the name of the process whose user space it lies in, `target_protection` that of what a user APC would
    run there, `wow64` whether the process runs 32-bit code.
    """

    driver: str = ""
    path: str = ""
    hidden: bool = False
    imports: tuple[str, ...] = ()
    process: str = ""
    target_protection: str = ""
    wow64: bool = False


def externals(known: UnitFacts, start: Start) -> dict[str, External]:
    """Return the value of every external variable.

    The last five are those that rule collections for files expect; `owner` stays empty, as a loaded image has none.
    """
    name = known.path.replace("/", "\\").rpartition("\\")[2]
    return {
        "driver": known.driver,
        "driver_path": known.path,
        "hidden": known.hidden,
        "imports": ",".join(known.imports),
        "start_rva": start.rva,
        "start_size": start.size,
        "process": known.process,
        "target_protection": known.target_protection,
        "wow64": known.wow64,
        "filename": name,
        "filepath": known.path,
        "extension": name.rpartition(".")[2] if "." in name else "",
        "filetype": "",
        "owner": "",
    }


# Engines check constant ranges when they compile: a start of -1, or one too near to 0, would be an error there.
AT_COMPILATION = externals(UnitFacts(), Start(0x10000, 0x100))

TIME_LIMIT = 60
"""Seconds that the scan of one unit may take; the largest drivers take one or two."""

_INCLUDE = re.compile(r'include\s*["/]')

MATCHES_KEPT = 10_000
"""How many matches of one string are kept; the engines themselves stop at a million."""


FLOODS_BOUND = 4
"""How many strings may match a million times in one unit before its scan ends: each takes a hundred MiB."""


class TimeLimitError(Exception):
    """The engine did not finish a unit within TIME_LIMIT."""


class ScanError(Exception):
    """The engine failed on a unit; the message says why."""


@dataclass(frozen=True, slots=True)
class RuleHit:
    """A rule that hit, without namespace, and where its strings lie in the unit: (offset, length) in bytes."""

    rule: str
    places: tuple[tuple[int, int], ...]


class Compiled(Protocol):
    """Compiled rules; `wants_start` is whether they may use a thread's start, `included` the included texts by path."""

    wants_start: bool
    included: Mapping[str, str]

    def scan(self, data: bytes | bytearray, externals: Mapping[str, External]) -> list[RuleHit]:
        """Scan a unit.

        Raises:
            TimeLimitError: it took too long.
            ScanError: the engine failed.
        """


class Engine(Protocol):
    """A YARA engine; `magic` are the first bytes of its compiled files."""

    name: str
    magic: bytes

    def compile(self, sources: Sequence[Source]) -> Compiled:
        """Compile rules together, each source in a namespace of its own.

        Raises:
            BrokenRulesError: with file, line and message of every source that cannot be used.
            RuleError: they cannot be used together.
        """

    def load(self, data: bytes, name: str) -> Compiled:
        """Load compiled rules.

        Raises:
            RuleError: the data are no compiled rules of this engine's version.
        """


def find_engine() -> Engine:
    """Return the engine that vol's yarascan uses: yara-x where it can be imported, else yara-python.

    Raises:
        RuleError: neither can be imported.
    """
    for package, module, name in (("yara_x", ".engines", "YaraX"), ("yara", ".engines", "YaraPython")):
        try:
            imported = import_module(package)
        except ImportError:
            continue
        engine: Engine = getattr(import_module(module, __package__), name)(imported)
        return engine
    raise RuleError("no YARA engine can be imported: install yara-python or yara-x")


def wants_start(text: str | bytes) -> bool:
    """Tell whether rules, as text or compiled, may use a thread's start; a text with includes may."""
    if isinstance(text, bytes):
        return b"start_rva" in text or b"start_size" in text
    if "start_rva" in text or "start_size" in text:
        return True
    # The plain search first, since it takes a fraction of the regular expression's time.
    return "include" in text and _INCLUDE.search(text) is not None


OTHER_MAGIC = {b"YARA-X": "yara-x", b"YARA": "yara-python"}
"""The first bytes of both engines' compiled files, the longer ones first."""


def check_compiled(data: bytes, name: str, engine: Engine) -> None:
    """Check that data are rules compiled by an engine.

    Raises:
        RuleError: they are the other engine's, or no compiled rules.
    """
    written_by = next((each for magic, each in OTHER_MAGIC.items() if data.startswith(magic)), None)
    if written_by is None:
        raise RuleError(f"{name}: no compiled YARA rules: give rule text with --yara-file", "yara-compiled-file")
    if written_by != engine.name:
        raise RuleError(
            f"{name}: compiled by {written_by}, but the engine in use is {engine.name}: compile the rules with that",
            "yara-compiled-file",
        )


_COMPILED = "yara-compiled-file"
_FILE = "yara-file"


@dataclass(frozen=True, slots=True)
class Rules:
    """Compiled rules from all sources, in parts that each scan separately.

    Rules that cannot use a thread's start are a separate part, so that thousands of rules need not scan a driver again
    for every thread that starts in it. `skipped` are the rule files left out, `of` the number of all rule files.
    """

    parts: tuple[Compiled, ...]
    digest: str
    skipped: tuple[Broken, ...] = ()
    of: int = 0

    @property
    def note(self) -> str | None:
        """Which rule files were skipped, None without any."""
        if not self.skipped:
            return None
        count = count_files(len(self.skipped), self.of)
        return f"YARA: {count} cannot be used and are skipped: {name_broken(self.skipped)}"

    @property
    def included(self) -> dict[str, str]:
        """The included texts by path."""
        return {path: text for part in self.parts for path, text in part.included.items()}


# Vol asks several times whether a requirement is met before the plugin runs. The last rules are kept with the sources
# that they were made from, so that they are compiled once.
_kept: list[tuple[object, Rules | RuleError]] = []


def compile_rules(options: RuleOptions) -> Rules:
    """Compile the rules that options ask for.

    Raises:
        BrokenRulesError: some sources cannot be used; the message says of each why and in which line.
        RuleError: the rules cannot be used for another reason.
    """
    unread: tuple[Broken, ...] = ()
    try:
        sources = gather(options)
    except UnreadRulesError as error:
        sources, unread = list(error.sources), error.broken
    loaded = None if options.compiled_file is None else read_bytes(options.compiled_file, _COMPILED)
    key = (tuple(sources), unread, loaded, options.compiled_file, options.skip_broken)
    for known, result in _kept:
        if known == key:
            if isinstance(result, RuleError):
                raise result
            if _unchanged(result.included):
                return result
    _kept.clear()
    try:
        rules = _compile(options, sources, unread, loaded)
    except RuleError as error:
        # The mistake may be in an included file and be corrected there, so this error is not kept.
        if not any("include" in source.text for source in sources):
            _kept[:] = [(key, error)]
        raise
    _kept[:] = [(key, rules)]
    return rules


def _compile(options: RuleOptions, sources: Sequence[Source], unread: Sequence[Broken], loaded: bytes | None) -> Rules:
    engine = find_engine()
    parts: list[Compiled] = []
    broken = list(unread)
    for asking in (False, True):
        alike = [source for source in sources if wants_start(source.text) is asking]
        made = _part(engine, alike, broken, skip=options.skip_broken)
        parts += [] if made is None else [made]
    files = sum(source.option == _FILE for source in sources) + len(unread)
    if broken:
        broken.sort(key=lambda each: each.name)
        if not options.skip_broken or len(broken) == files or any(each.option != _FILE for each in broken):
            raise BrokenRulesError(broken, of=files)
    if loaded is not None:
        parts.append(engine.load(loaded, str(path_of(options.compiled_file or "") or options.compiled_file)))
    return Rules(tuple(parts), _digest(sources, parts, broken, loaded), tuple(broken), files)


def _part(engine: Engine, sources: Sequence[Source], broken: list[Broken], *, skip: bool) -> Compiled | None:
    """Compile rules together, if `skip` without the broken ones, which are added to `broken`; None if none is left."""
    try:
        return engine.compile(sources) if sources else None
    except BrokenRulesError as error:
        broken += error.broken
        usable = [source for number, source in enumerate(sources) if number not in error.at]
    return engine.compile(usable) if skip and usable else None


def _digest(
    sources: Sequence[Source], parts: Sequence[Compiled], broken: Sequence[Broken], loaded: bytes | None
) -> str:
    """Digest the texts that were compiled, the texts that they include, and what was skipped."""
    digest = hashlib.sha256()
    included = [text for part in parts for _, text in sorted(part.included.items())]
    for text in (*(source.text for source in sources), *included, *map(str, broken)):
        digest.update(f"{len(text)}:{text}".encode())
    digest.update(loaded or b"")
    return digest.hexdigest()


def _unchanged(included: Mapping[str, str]) -> bool:
    try:
        return all(read_text(path) == text for path, text in included.items())
    except (OSError, ValueError):
        return False
