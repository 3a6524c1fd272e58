"""The engine yara-x: VirusTotal's rewrite of YARA."""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any

from . import engines
from .externals import AT_COMPILATION, External
from .includes import Includes, Piece, wrong
from .options import Broken, BrokenRulesError, RuleError
from .sources import Source

_NEEDED = (("Compiler", "enable_includes"), ("Scanner", "max_matches_per_pattern"))
"""Without the first it opens what rules include, without the second it keeps a million matches of each string."""

_PLACE = re.compile(r"--> .*?:(\d+):\d+")


class YaraX:
    """Compiles and loads rules by yara-x."""

    name = "yara-x"
    magic = b"YARA-X"

    def __init__(self, module: Any) -> None:
        for part, needed in _NEEDED:
            if not hasattr(getattr(module, part, None), needed):
                raise RuleError(f"yara-x is too old: it lacks {part}.{needed}, which 1.7 and newer have")
        self._yara_x = module

    def compile(self, sources: Sequence[Source]) -> CompiledByYaraX:
        """Compile rules together."""
        includes = Includes({f"s{number}": source for number, source in enumerate(sources)})
        compiler = self._compiler()
        broken: dict[int, Broken] = {}
        for number, source in enumerate(sources):
            compiler.new_namespace(f"s{number}")
            try:
                for piece in includes.pieces(f"s{number}", self._include_statements):
                    self._add(compiler, piece, source)
            except BrokenRulesError as error:
                broken[number] = error.broken[0]
        if broken:
            raise BrokenRulesError(list(broken.values()), of=len(sources), at=list(broken))
        texts = (*(source.text for source in sources), *includes.texts.values())
        wants_start = any(map(engines.wants_start, texts))
        return CompiledByYaraX(self._yara_x, compiler.build(), wants_start, includes.texts)

    def _compiler(self) -> Any:
        """Make a compiler that opens no file: what is included is given to it, between pieces of a source's text."""
        # Collections that were written for YARA escape more than they need to in regular expressions.
        compiler = self._yara_x.Compiler(relaxed_re_syntax=True)
        compiler.enable_includes(False)
        for name, value in AT_COMPILATION.items():
            compiler.define_global(name, value)
        return compiler

    def _include_statements(self, text: str) -> list[tuple[int, int]]:
        """Find what yara-x itself takes for an include: it complains of each, since none is allowed."""
        compiler = self._compiler()
        with suppress(self._yara_x.CompileError):
            compiler.add_source(text)
        spans = [each["labels"][0]["span"] for each in compiler.errors() if each["type"] == "IncludeNotAllowed"]
        return sorted((int(span["start"]), int(span["end"])) for span in spans)

    def _add(self, compiler: Any, piece: Piece, source: Source) -> None:
        try:
            compiler.add_source(piece.text)
        except self._yara_x.CompileError as error:
            reason, line = _reason(str(error))
            raise BrokenRulesError([wrong(reason, piece.name, line and piece.line + line - 1, source)]) from error

    def load(self, data: bytes, name: str) -> CompiledByYaraX:
        """Take rules that yara-x has compiled."""
        engines.check_compiled(data, name, self)
        try:
            rules = self._yara_x.Rules.deserialize_from(file=io.BytesIO(data))
        except (OSError, ValueError) as error:
            raise RuleError(f"{name}: not by this version of yara-x: {error}", "yara-compiled-file") from error
        return CompiledByYaraX(self._yara_x, rules, engines.wants_start(data))


class CompiledByYaraX:
    """Rules that yara-x has compiled."""

    def __init__(self, module: Any, rules: Any, wants_start: bool, included: Mapping[str, str] | None = None) -> None:
        self.wants_start = wants_start
        self.included = included or {}
        self._yara_x = module
        self._rules = rules
        self._of_thread = threading.local()

    def scan(self, data: bytes | bytearray, externals: Mapping[str, External]) -> list[engines.RuleHit]:
        """Scan a unit; what the rules do not declare of the externals is passed over."""
        scanner = self._scanner()
        for name, value in externals.items():
            try:
                scanner.set_global(name, value)
            except ValueError:
                continue
        try:
            matching = scanner.scan(bytes(data)).matching_rules  # it takes nothing else
        except self._yara_x.TimeoutError as error:
            raise engines.TimeLimitError from error
        except self._yara_x.ScanError as error:
            raise engines.ScanError(str(error)) from error
        hits = []
        for rule in matching:
            places: list[tuple[int, int]] = []
            for pattern in rule.patterns:
                kept = islice(pattern.matches, engines.MATCHES_KEPT)
                places += [(match.offset, match.length) for match in kept]
            hits.append(engines.RuleHit(rule.identifier, tuple(places)))
        return hits

    def _scanner(self) -> Any:
        """Return this thread's scanner: one may not be used in another thread than it was made in."""
        scanner = getattr(self._of_thread, "scanner", None)
        if scanner is None:
            scanner = self._of_thread.scanner = self._yara_x.Scanner(self._rules)
            scanner.set_timeout(engines.TIME_LIMIT)
            scanner.max_matches_per_pattern(engines.MATCHES_KEPT)
        return scanner


def _reason(error: str) -> tuple[str, int | None]:
    """Take out of yara-x's drawing of an error what is wrong, and in which line of the text."""
    what = re.sub(r"^error(\[\w+\])?: ", "", error.partition("\n")[0])
    place = _PLACE.search(error)
    note = re.search(r"\^+ (.*)", error)
    details = f" ({note[1]})" if note is not None else ""
    return f"{what}{details}", None if place is None else int(place[1])
