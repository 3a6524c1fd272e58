"""The two YARA engines, each imported when rules are compiled; which one is vol's own choice."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Protocol

from .externals import External
from .options import RuleError
from .sources import Source

TIME_LIMIT = 60
"""Seconds that one unit's scan may take; the largest drivers take one or two."""

_INCLUDE = re.compile(r'include\s*["/]')

MATCHES_KEPT = 10_000
"""How many matches of one string are kept; the engines themselves stop at a million."""


FLOODS_BOUND = 4
"""How many strings may match a million times in one unit before its scan is given up: each keeps a hundred MiB."""


class TimeLimitError(Exception):
    """The engine did not finish a unit in TIME_LIMIT seconds."""


class ScanError(Exception):
    """The engine failed on a unit; the message says why."""


@dataclass(frozen=True, slots=True)
class RuleHit:
    """A rule that hit, without namespace, and where its strings lie in the unit: (offset, length) in bytes."""

    rule: str
    places: tuple[tuple[int, int], ...]


class Compiled(Protocol):
    """Compiled rules; `wants_start` is whether one may ask for a thread's start, `included` what they included."""

    wants_start: bool
    included: Mapping[str, str]

    def scan(self, data: bytes | bytearray, externals: Mapping[str, External]) -> list[RuleHit]:
        """Scan a unit.

        Raises:
            TimeLimitError: it took too long.
            ScanError: the engine failed.
        """


class Engine(Protocol):
    """A YARA engine; `magic` is how its compiled files begin."""

    name: str
    magic: bytes

    def compile(self, sources: Sequence[Source]) -> Compiled:
        """Compile rules together, each source in a namespace of its own.

        Raises:
            BrokenRulesError: with file, line and message of every source that cannot be used.
            RuleError: they cannot be used together.
        """

    def load(self, data: bytes, name: str) -> Compiled:
        """Take rules that were compiled before.

        Raises:
            RuleError: it is no such file.
        """


def find_engine() -> Engine:
    """Return the engine that vol's yarascan would take: yara-x where it can be imported, else yara-python.

    Raises:
        RuleError: there is none.
    """
    for package, module, name in (("yara_x", ".engine_yara_x", "YaraX"), ("yara", ".engine_yara_python", "YaraPython")):
        try:
            imported = import_module(package)
        except ImportError:
            continue
        engine: Engine = getattr(import_module(module, __package__), name)(imported)
        return engine
    raise RuleError("no YARA engine can be imported: install yara-python or yara-x")


def wants_start(text: str | bytes) -> bool:
    """Tell whether rules, as text or compiled, may ask for a thread's start; so may what a text seems to include."""
    if isinstance(text, bytes):
        return b"start_rva" in text or b"start_size" in text
    if "start_rva" in text or "start_size" in text:
        return True
    # Looked for as a word first, which takes a fraction of what a regular expression does.
    return "include" in text and _INCLUDE.search(text) is not None


OTHER_MAGIC = {b"YARA-X": "yara-x", b"YARA": "yara-python"}
"""How compiled files of either engine begin, the longer first."""


def check_compiled(data: bytes, name: str, engine: Engine) -> None:
    """Refuse a compiled file that is the other engine's, or none at all.

    Raises:
        RuleError: it is.
    """
    written_by = next((each for magic, each in OTHER_MAGIC.items() if data.startswith(magic)), None)
    if written_by is None:
        raise RuleError(f"{name}: no compiled YARA rules: give rule text with --yara-file", "yara-compiled-file")
    if written_by != engine.name:
        raise RuleError(
            f"{name}: compiled by {written_by}, but the engine in use is {engine.name}: compile the rules with that",
            "yara-compiled-file",
        )
