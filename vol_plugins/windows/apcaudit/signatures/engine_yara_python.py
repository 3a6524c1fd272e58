"""The engine yara-python: VirusTotal's YARA behind its own module."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from . import engines
from .externals import AT_COMPILATION, External
from .includes import Includes
from .options import RuleError
from .sources import Source

_OLDEST = (4, 3)
"""The first version whose matches have instances, as the project reads them."""

# "line 3: undefined identifier" of a source, "file.yar(3): ..." of a file that it includes.
_OF_SOURCE = re.compile(r"line (\d+): (.*)", re.DOTALL)
_OF_INCLUDE = re.compile(r"(.*)\((\d+)\): (.*)", re.DOTALL)


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
        try:
            rules = self._compile(named)
        except self._yara.Error as error:
            self._blame(named)
            raise RuleError(f"the rules do not compile together: {error}") from error
        return CompiledByYaraPython(self._yara, rules, any(engines.wants_start(source.text) for source in sources))

    def load(self, data: bytes, name: str) -> CompiledByYaraPython:
        """Take rules that yara-python or yarac has compiled."""
        engines.check_compiled(data, name, self)
        try:
            rules = self._yara.load(file=io.BytesIO(data))
        except self._yara.Error as error:
            message = f"{name}: not by this version of YARA ({self._yara.YARA_VERSION}): {error}"
            raise RuleError(message, "yara-compiled-file") from error
        return CompiledByYaraPython(self._yara, rules, engines.wants_start(data))

    def _compile(self, named: Mapping[str, Source]) -> Any:
        includes = Includes(named)
        texts = {namespace: source.text for namespace, source in named.items()}
        try:
            return self._yara.compile(sources=texts, externals=AT_COMPILATION, include_callback=includes.read)
        except self._yara.Error as error:
            if includes.refused is not None:
                raise includes.refused from error
            raise

    def _blame(self, named: Mapping[str, Source]) -> None:
        """Find the source that does not compile: the error of many does not name it.

        Raises:
            RuleError: it was found.
        """
        for namespace, source in named.items():
            try:
                self._compile({namespace: source})
            except self._yara.Error as error:
                included, own = _OF_INCLUDE.fullmatch(str(error)), _OF_SOURCE.fullmatch(str(error))
                message = f"{source.name}: {error}"
                if own is not None:
                    # Of the end of the text YARA says line 0.
                    line = int(own[1]) or source.text.count("\n") + 1
                    message = f"{source.name}:{line}: {own[2]}"
                elif included is not None:
                    message = f"{included[1]}:{included[2]}: {included[3]} (included by {source.name})"
                raise RuleError(message, source.option) from error


class CompiledByYaraPython:
    """Rules that yara-python has compiled."""

    def __init__(self, module: Any, rules: Any, wants_start: bool) -> None:
        self.wants_start = wants_start
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
