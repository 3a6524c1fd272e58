"""The engine yara-python: VirusTotal's YARA behind its own module."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from . import engines
from .externals import AT_COMPILATION, External
from .includes import Includes, wrong
from .options import Broken, BrokenRulesError, RuleError
from .sources import Source

_OLDEST = (4, 3)
"""The first version whose matches have instances, as the project reads them."""

# "line 3: undefined identifier" of a source, "file.yar(3): ..." of a file that it includes.
_OF_SOURCE = re.compile(r"line (\d+): (.*)", re.DOTALL)
_OF_INCLUDE = re.compile(r"(.*?)\((\d+)\): (.*)", re.DOTALL)

_IMPORT = re.compile(r'\bimport\s+"([^"\n]*)"')


class YaraPython:
    """Compiles and loads rules by yara-python."""

    name = "yara-python"
    magic = b"YARA"

    def __init__(self, module: Any) -> None:
        version = tuple(int(part) for part in re.findall(r"\d+", module.__version__)[:2])
        if version < _OLDEST:
            raise RuleError(f"yara-python {module.__version__} is too old: 4.3 or newer is needed")
        self._yara = module

    def compile(self, sources: Sequence[Source]) -> CompiledByYaraPython:
        """Compile rules together."""
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
        return CompiledByYaraPython(self._yara, rules, any(map(engines.wants_start, texts)), includes.texts)

    def load(self, data: bytes, name: str) -> CompiledByYaraPython:
        """Take rules that yara-python or yarac has compiled."""
        engines.check_compiled(data, name, self)
        try:
            rules = self._yara.load(file=io.BytesIO(data))
        except self._yara.Error as error:
            message = f"{name}: not by this version of YARA ({self._yara.YARA_VERSION}): {error}"
            raise RuleError(message, "yara-compiled-file") from error
        return CompiledByYaraPython(self._yara, rules, engines.wants_start(data))

    def _compile(self, named: Mapping[str, Source], includes: Includes) -> Any:
        texts = {namespace: source.text for namespace, source in named.items()}
        # With a callback YARA itself opens no file for an include.
        return self._yara.compile(sources=texts, externals=AT_COMPILATION, include_callback=includes.read)

    def _blame(self, sources: Sequence[Source]) -> None:
        """Find the sources that do not compile: the error of many does not name them.

        Raises:
            BrokenRulesError: some were found.
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
                # Of the end of the text YARA says line 0.
                line, reason = int(own[1]) or source.text.count("\n") + 1, own[2]
            elif included is not None:
                name, line, reason = includes.path_of(included[1]) or included[1], int(included[2]), included[3]
            if includes.refused is not None:
                return includes.refused.told(source, name, line)
            lacking = [
                each for each in _IMPORT.findall(source.text) if each not in getattr(self._yara, "modules", [each])
            ]
            if lacking and "unknown module" not in reason:
                # YARA says only what came of it last.
                reason += f' (this YARA has no module "{lacking[0]}")'
            return wrong(reason, name, line, source)
        return None


class CompiledByYaraPython:
    """Rules that yara-python has compiled."""

    def __init__(self, module: Any, rules: Any, wants_start: bool, included: Mapping[str, str] | None = None) -> None:
        self.wants_start = wants_start
        self.included = included or {}
        self._yara = module
        self._rules = rules

    def scan(self, data: bytes | bytearray, externals: Mapping[str, External]) -> list[engines.RuleHit]:
        """Scan a unit; what the rules do not declare of the externals is passed over."""
        flooded = 0

        def warned(*_: Any) -> Any:
            # A string has a million matches: without this, YARA writes to stderr and keeps all of them, of each string.
            nonlocal flooded
            flooded += 1
            return self._yara.CALLBACK_ABORT if flooded > engines.FLOODS_BOUND else self._yara.CALLBACK_CONTINUE

        try:
            matches = self._rules.match(
                data=data, externals=dict(externals), timeout=engines.TIME_LIMIT, warnings_callback=warned
            )
        except self._yara.TimeoutError as error:
            raise engines.TimeLimitError from error
        except self._yara.Error as error:
            if flooded > engines.FLOODS_BOUND:
                raise engines.ScanError(f"more than {engines.FLOODS_BOUND} strings match a million times") from error
            raise engines.ScanError(str(error)) from error
        hits = []
        for match in matches:
            places: list[tuple[int, int]] = []
            for string in match.strings:
                kept = islice(string.instances, engines.MATCHES_KEPT)
                places += [(instance.offset, instance.matched_length) for instance in kept]
            hits.append(engines.RuleHit(match.rule, tuple(places)))
        return hits
