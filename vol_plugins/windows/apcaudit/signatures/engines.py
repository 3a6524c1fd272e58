"""The two engines that compile YARA rules and scan with them: yara-python and yara-x."""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any

from . import rules as common
from .options import Broken, BrokenRulesError, RuleError
from .rules import AT_COMPILATION, External
from .sources import Includes, Piece, Source, make_broken

_OLDEST = (4, 3)
"""The first version whose string matches have instances, which scan() reads."""

# YARA's messages: "line 3: undefined identifier" for a source, "file.yar(3): ..." for a file that it includes.
_OF_SOURCE = re.compile(r"line (\d+): (.*)", re.DOTALL)
_OF_INCLUDE = re.compile(r"(.*?)\((\d+)\): (.*)", re.DOTALL)

_IMPORT = re.compile(r'\bimport\s+"([^"\n]*)"')


class YaraPython:
    """Compiles and loads rules with yara-python."""

    name = "yara-python"
    magic = b"YARA"

    def __init__(self, module: Any) -> None:
        version = tuple(int(part) for part in re.findall(r"\d+", module.__version__)[:2])
        if version < _OLDEST:
            raise RuleError(f"yara-python {module.__version__} is too old: 4.3 or newer is needed")
        self._yara = module

    def compile(self, sources: Sequence[Source]) -> CompiledByYaraPython:
        """Compile sources together, each in a namespace of its own."""
        named = {f"s{number}": source for number, source in enumerate(sources)}
        includes = Includes(named)
        try:
            rules = self._compile(named, includes)
        except self._yara.Error as error:
            self._blame(sources)
            if includes.refused is not None:
                raise RuleError(f"of all rules together: {includes.refused}") from error
            raise RuleError(f"the rules do not compile together: {error}") from error
        texts = (*(source.text for source in sources), *includes.texts.values())
        return CompiledByYaraPython(self._yara, rules, any(map(common.wants_start, texts)), includes.texts)

    def load(self, data: bytes, name: str) -> CompiledByYaraPython:
        """Load rules that yara-python or yarac has compiled."""
        common.check_compiled(data, name, self)
        try:
            rules = self._yara.load(file=io.BytesIO(data))
        except self._yara.Error as error:
            message = f"{name}: not by this version of YARA ({self._yara.YARA_VERSION}): {error}"
            raise RuleError(message, "yara-compiled-file") from error
        return CompiledByYaraPython(self._yara, rules, common.wants_start(data))

    def _compile(self, named: Mapping[str, Source], includes: Includes) -> Any:
        texts = {namespace: source.text for namespace, source in named.items()}
        # With a callback, YARA itself opens no file for an include.
        return self._yara.compile(sources=texts, externals=AT_COMPILATION, include_callback=includes.read)

    def _blame(self, sources: Sequence[Source]) -> None:
        """Compile each source alone, since the error of a joint compilation does not name the broken one.

        Raises:
            BrokenRulesError: some sources do not compile alone.
        """
        broken = {number: told for number, each in enumerate(sources) if (told := self._broken(each)) is not None}
        if broken:
            raise BrokenRulesError(list(broken.values()), of=len(sources), at=list(broken))

    def _broken(self, source: Source) -> Broken | None:
        includes = Includes({"": source})
        try:
            self._compile({"": source}, includes)
        except self._yara.Error as error:
            name, line, reason = source.name, None, str(error)
            included, own = _OF_INCLUDE.fullmatch(reason), _OF_SOURCE.fullmatch(reason)
            if own is not None:
                # YARA gives line 0 for an error at the end of the text.
                line, reason = int(own[1]) or source.text.count("\n") + 1, own[2]
            elif included is not None:
                name, line, reason = includes.path_of(included[1]) or included[1], int(included[2]), included[3]
            if includes.refused is not None:
                return includes.refused.describe(source, name, line)
            lacking = [
                each for each in _IMPORT.findall(source.text) if each not in getattr(self._yara, "modules", [each])
            ]
            if lacking and "unknown module" not in reason:
                # YARA reports only the last error, which is a consequence of the missing module.
                reason += f' (this YARA has no module "{lacking[0]}")'
            return make_broken(reason, name, line, source)
        return None


class CompiledByYaraPython:
    """Rules that yara-python has compiled."""

    def __init__(self, module: Any, rules: Any, wants_start: bool, included: Mapping[str, str] | None = None) -> None:
        self.wants_start = wants_start
        self.included = included or {}
        self._yara = module
        self._rules = rules

    def scan(self, data: bytes | bytearray, externals: Mapping[str, External]) -> list[common.RuleHit]:
        """Scan bytes; externals that the rules do not declare are ignored."""
        flooded = 0

        def warned(*_: Any) -> Any:
            # YARA calls this when a string has a million matches; without a callback it writes to stderr and keeps all.
            nonlocal flooded
            flooded += 1
            return self._yara.CALLBACK_ABORT if flooded > common.FLOODS_BOUND else self._yara.CALLBACK_CONTINUE

        try:
            matches = self._rules.match(
                data=data, externals=dict(externals), timeout=common.TIME_LIMIT, warnings_callback=warned
            )
        except self._yara.TimeoutError as error:
            raise common.TimeLimitError from error
        except self._yara.Error as error:
            if flooded > common.FLOODS_BOUND:
                raise common.ScanError(f"more than {common.FLOODS_BOUND} strings match a million times") from error
            raise common.ScanError(str(error)) from error
        hits = []
        for match in matches:
            places: list[tuple[int, int]] = []
            for string in match.strings:
                kept = islice(string.instances, common.MATCHES_KEPT)
                places += [(instance.offset, instance.matched_length) for instance in kept]
            hits.append(common.RuleHit(match.rule, tuple(places)))
        return hits


_NEEDED = (("Compiler", "enable_includes"), ("Scanner", "max_matches_per_pattern"))
"""Without the first, yara-x opens files that rules include; without the second, it keeps a million matches a string."""

_PLACE = re.compile(r"--> .*?:(\d+):\d+")


class YaraX:
    """Compiles and loads rules with yara-x."""

    name = "yara-x"
    magic = b"YARA-X"

    def __init__(self, module: Any) -> None:
        for part, needed in _NEEDED:
            if not hasattr(getattr(module, part, None), needed):
                raise RuleError(f"yara-x is too old: it lacks {part}.{needed}, which 1.7 and newer have")
        self._yara_x = module

    def compile(self, sources: Sequence[Source]) -> CompiledByYaraX:
        """Compile sources together, each in a namespace of its own."""
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
        wants_start = any(map(common.wants_start, texts))
        return CompiledByYaraX(self._yara_x, compiler.build(), wants_start, includes.texts)

    def _compiler(self) -> Any:
        """Make a compiler that opens no files: the caller adds included texts between the pieces of a source."""
        # Rules written for YARA have needless escapes in regular expressions, which yara-x refuses by default.
        compiler = self._yara_x.Compiler(relaxed_re_syntax=True)
        compiler.enable_includes(False)
        for name, value in AT_COMPILATION.items():
            compiler.define_global(name, value)
        return compiler

    def _include_statements(self, text: str) -> list[tuple[int, int]]:
        """Find the include statements as yara-x parses them: it reports each, since includes are disabled."""
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
            raise BrokenRulesError([make_broken(reason, piece.name, line and piece.line + line - 1, source)]) from error

    def load(self, data: bytes, name: str) -> CompiledByYaraX:
        """Load rules that yara-x has compiled."""
        common.check_compiled(data, name, self)
        try:
            rules = self._yara_x.Rules.deserialize_from(file=io.BytesIO(data))
        except (OSError, ValueError) as error:
            raise RuleError(f"{name}: not by this version of yara-x: {error}", "yara-compiled-file") from error
        return CompiledByYaraX(self._yara_x, rules, common.wants_start(data))


class CompiledByYaraX:
    """Rules that yara-x has compiled."""

    def __init__(self, module: Any, rules: Any, wants_start: bool, included: Mapping[str, str] | None = None) -> None:
        self.wants_start = wants_start
        self.included = included or {}
        self._yara_x = module
        self._rules = rules
        self._of_thread = threading.local()

    def scan(self, data: bytes | bytearray, externals: Mapping[str, External]) -> list[common.RuleHit]:
        """Scan bytes; externals that the rules do not declare are ignored."""
        scanner = self._scanner()
        for name, value in externals.items():
            try:
                scanner.set_global(name, value)
            except ValueError:
                continue
        try:
            matching = scanner.scan(bytes(data)).matching_rules  # it takes nothing else
        except self._yara_x.TimeoutError as error:
            raise common.TimeLimitError from error
        except self._yara_x.ScanError as error:
            raise common.ScanError(str(error)) from error
        hits = []
        for rule in matching:
            places: list[tuple[int, int]] = []
            for pattern in rule.patterns:
                kept = islice(pattern.matches, common.MATCHES_KEPT)
                places += [(match.offset, match.length) for match in kept]
            hits.append(common.RuleHit(rule.identifier, tuple(places)))
        return hits

    def _scanner(self) -> Any:
        """Return this thread's scanner, since a scanner may only be used in the thread that made it."""
        scanner = getattr(self._of_thread, "scanner", None)
        if scanner is None:
            scanner = self._of_thread.scanner = self._yara_x.Scanner(self._rules)
            scanner.set_timeout(common.TIME_LIMIT)
            scanner.max_matches_per_pattern(common.MATCHES_KEPT)
        return scanner


def _reason(error: str) -> tuple[str, int | None]:
    """Extract the reason and the line number from yara-x's multi-line error report."""
    what = re.sub(r"^error(\[\w+\])?: ", "", error.partition("\n")[0])
    place = _PLACE.search(error)
    note = re.search(r"\^+ (.*)", error)
    details = f" ({note[1]})" if note is not None else ""
    return f"{what}{details}", None if place is None else int(place[1])
